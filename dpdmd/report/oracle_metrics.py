"""Read what `dpdmd.shapes.measure --out RUN/figures.json` wrote: prompt following and diversity on the small world."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dpdmd.report.scores import Score
from dpdmd.run_folder import CKPTS
from dpdmd.utils.text_files import read_json

COLUMNS = ("entropy", "coverage", "spread")  # shown beside the accuracy of each category


@dataclass(frozen=True)
class OracleMetrics:
    """The oracle's metrics of one model.

    Attributes:
        model: the path given to `dpdmd.shapes.measure`.
        in_run: whether the model is in the run's folder; otherwise it is another model, such as the teacher.
        steps: sampling steps.
        means: column of `COLUMNS` -> mean over prompts.
        accuracy: category of prompts -> share of images that show everything that the prompt names.
        overall: mean over the categories, as in GenEval.
    """

    model: str
    in_run: bool
    steps: int
    means: dict[str, Score]
    accuracy: dict[str, Score]

    @property
    def overall(self) -> Score:
        means = [score.mean for score in self.accuracy.values() if score.mean is not None]
        return Score(sum(means) / len(means) if means else None)


def read_oracle_metrics(path: Path, root: Path) -> list[OracleMetrics]:
    """Read the metrics of every model in the file; return none if the file does not exist.

    Raises:
        ValueError: the file was not written by the small world's oracle.
    """
    if not path.is_file():
        return []
    try:
        return [_read(model, entry, root) for model, entry in read_json(path).items()]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} cannot be read ({type(error).__name__}: {error})") from None


def _read(model: str, entry: dict[str, Any], root: Path) -> OracleMetrics:
    return OracleMetrics(
        model=model,
        in_run=_is_in_run(Path(model), root.absolute()),
        steps=int(entry["steps"]),
        means={name: Score(None if (mean := entry["mean"][name]) is None else float(mean)) for name in COLUMNS},
        accuracy={name: Score(row["mean"], row["low"], row["high"]) for name, row in entry["categories"].items()},
    )


def _is_in_run(model: Path, root: Path) -> bool:
    """Return whether a model is in the run at `root`, also by a path of before the run moved or from another folder."""
    if model.exists() or model.absolute().is_relative_to(root):
        return model.absolute().is_relative_to(root)
    return (root.name, CKPTS) in pairwise(model.parts)


def categories(models: Sequence[OracleMetrics]) -> list[str]:
    """Return the categories of prompts that any model was measured on, in their order."""
    return list(dict.fromkeys(name for model in models for name in model.accuracy))
