"""Sweeps: configurations x seeds, trained, measured and laid side by side."""
