"""The distillation of small_distillation.py, for the tests of the methods."""

from small_distillation import batch, decoder, embedded, make, trio  # noqa: F401
