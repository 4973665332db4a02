"""Diversity of one prompt's images: 1 minus the mean cosine over all pairs (paper, section 5.1)."""

import torch
from torch import Tensor


def diversity_per_image(features: Tensor) -> list[float]:
    """Return 1 - mean_j!=i cos(f_i, f_j) for each image i of one prompt; the mean of these is the prompt's diversity.

    Args:
        features: unit vectors [R, D].

    Returns:
        R values in [0, 2], computed in float64: 0 for identical images, 1 for orthogonal features.

    Raises:
        ValueError: there are fewer than two images.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"diversity needs at least two images of a prompt, not {count}")
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    cosine = unit @ unit.T
    return (1 - (cosine.sum(1) - cosine.diagonal()) / (count - 1)).clamp(min=0).tolist()
