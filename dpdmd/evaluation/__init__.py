"""Evaluation: scorers, evaluation in the loop, statistics, and what the root test_*.py programs share."""
