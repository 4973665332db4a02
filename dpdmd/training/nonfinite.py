"""The diagnostic of a loss or gradient that is not finite: the step, its prompts and statistics of its latents."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from dpdmd.utils.atomic_files import write_json


class NonFiniteError(RuntimeError):
    """A loss or gradient norm is nan or infinite; every rank raises it, and the optimizer has not stepped."""


def latent_statistics(latents: Tensor) -> dict[str, float]:
    """Return the share of latents [B, C, H, W] that is not finite, and the moments of the finite ones."""
    finite = latents[latents.isfinite()].double()
    share = {"nonfinite_share": 1 - finite.numel() / latents.numel()}
    if not finite.numel():
        return share
    moments = {"mean": finite.mean(), "std": finite.std(), "min": finite.min(), "max": finite.max()}
    return share | {name: value.item() for name, value in moments.items()}


def write_diagnostic(path: Path, step: int, turn: str, metrics: dict[str, float], ranks: list[dict[str, Any]]) -> None:
    """Write what is known about a step that was not finite.

    Args:
        turn: name of the update, under the key that older runs have.
        ranks: each rank's prompts, and the statistics of the latents behind its loss.
    """
    values = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
    content = {"step": step, "turn": turn, "metrics": values, "ranks": ranks}
    write_json(path, content, ensure_ascii=False)
