"""Evaluation: scorers, the runner that shards and sums, the in-loop evaluator and the root programs' inner half."""
