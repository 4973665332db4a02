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


def pixel_distance(images: Tensor) -> float:
    """Return the mean over all pairs of images of sqrt(mean((x_i - x_j)^2)), the root mean square of their difference.

    It needs no network, and it sees colours and positions, not content. Two black images have 0, black and white 1.

    Args:
        images: [R, 3, H, W] in [0, 1], at least two.
    """
    flat = images.flatten(1).double()
    return (torch.pdist(flat).mean() / flat.shape[1] ** 0.5).item()
