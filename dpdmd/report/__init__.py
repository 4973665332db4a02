"""The report: read the files of runs, plot them, and write one HTML page. Imports no torch."""
