"""What `dpdmd.shapes.measure --out RUN/figures.json` said of a run's models: prompt following and variety, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.report.scores import Score
from dpdmd.utils.text_files import read_json

COLUMNS = ("entropy", "coverage", "spread")  # of the world's figures, beside the accuracy that the kinds divide


@dataclass(frozen=True)
class Measured:
    """One model.

    Attributes:
        model: as it was given there.
        of_run: it lies in the run's folder; else it is another one, such as the teacher.
        figures: of `COLUMNS`, means over prompts.
        following: kind of prompt -> share of images that show all that the prompt names.
        overall: mean over the kinds, as GenEval's.
    """

    model: str
    of_run: bool
    steps: int
    figures: dict[str, Score]
    following: dict[str, Score]

    @property
    def overall(self) -> Score:
        means = [score.mean for score in self.following.values() if score.mean is not None]
        return Score(sum(means) / len(means) if means else None)


def read_measured(path: Path, root: Path) -> list[Measured]:
    """Every model of the file, in its order; none without the file.

    Raises:
        ValueError: the file is not what the small world's oracle writes.
    """
    if not path.is_file():
        return []
    try:
        return [_read(model, entry, root) for model, entry in read_json(path).items()]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} cannot be read ({type(error).__name__}: {error})") from None


def _read(model: str, entry: dict[str, Any], root: Path) -> Measured:
    return Measured(
        model=model,
        of_run=Path(model).absolute().is_relative_to(root.absolute()),
        steps=int(entry["steps"]),
        figures={name: Score(None if (mean := entry["mean"][name]) is None else float(mean)) for name in COLUMNS},
        following={
            name: Score(found["mean"], found["low"], found["high"]) for name, found in entry["categories"].items()
        },
    )


def kinds(measured: Sequence[Measured]) -> list[str]:
    """Kinds of prompts that any of them was asked for, in their order."""
    return list(dict.fromkeys(name for each in measured for name in each.following))
