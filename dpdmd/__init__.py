"""DP-DMD: diversity-preserved distribution matching distillation (arXiv 2602.03139)."""

__version__ = "0.1.0"
