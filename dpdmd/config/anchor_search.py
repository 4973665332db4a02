"""Defaults of the search for K (`dpdmd.find_anchor`, `--k_anchor auto`). Imports nothing heavy."""

AUTO = "auto"  # the value of --k_anchor that is replaced by the measured K
NUM_PROMPTS, NUM_SEEDS = 12, 32
THRESHOLD = 0.95  # of decidedness
PIXELS, LATENTS = SPACES = ("pixels", "latents")
