"""Sweeps: train and measure configurations with several seeds, and compare them in one table."""
