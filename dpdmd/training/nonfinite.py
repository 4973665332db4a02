"""What a run leaves behind when a loss or gradient is not finite: enough to see where it came from."""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from dpdmd.utils.atomic_files import write_text


class NonFiniteError(RuntimeError):
    """A loss or gradient norm is nan or infinite; raised on every rank, before the optimizer steps."""


def latent_statistics(latents: Tensor) -> dict[str, float]:
    """Of latents [B, C, H, W]: the share that is not finite, and the moments of the rest."""
    finite = latents[latents.isfinite()].double()
    share = {"nonfinite_share": 1 - finite.numel() / latents.numel()}
    if not finite.numel():
        return share
    moments = {"mean": finite.mean(), "std": finite.std(), "min": finite.min(), "max": finite.max()}
    return share | {name: value.item() for name, value in moments.items()}


def write_diagnostic(path: Path, step: int, turn: str, metrics: dict[str, float], ranks: list[dict[str, Any]]) -> None:
    """Write what is known of a step that was not finite.

    Args:
        ranks: of each rank its prompts and the statistics of what the loss was made of.
    """
    values = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
    content = {"step": step, "turn": turn, "metrics": values, "ranks": ranks}
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
