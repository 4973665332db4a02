"""The scorers: one file each, loaded once, batched, from the official layouts. `build_scorer` is the way in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dpdmd.evaluation.scorers.base import Scorer
from dpdmd.evaluation.scorers.clip import ClipDiversity, ClipScore
from dpdmd.evaluation.scorers.dino import DinoDiversity
from dpdmd.evaluation.scorers.imagereward import ImageReward
from dpdmd.evaluation.scorers.maniqa import Maniqa
from dpdmd.evaluation.scorers.pickscore import PickScore
from dpdmd.evaluation.scorers.visualquality import VisualQualityR1

SCORERS: dict[str, type[Scorer]] = {
    kind.name: kind
    for kind in (ClipDiversity, DinoDiversity, PickScore, ImageReward, ClipScore, Maniqa, VisualQualityR1)
}


def build_scorer(name: str, paths: Mapping[str, Path], device: torch.device, **options: Any) -> Scorer:
    """Load one scorer; `paths` are those that `check_scorer_paths` found for it, in the order it names them.

    Raises:
        ValueError: its files do not load.
    """
    return SCORERS[name](*paths.values(), device, **options)
