"""Model families, a folder each with layout.py and family.py, and what they share."""
