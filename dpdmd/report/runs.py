"""What a run left in its folder, read for a report. Whatever is missing or broken is left out and told in `notes`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpdmd.config.options import DEFAULT_MAX_STEPS
from dpdmd.evaluation import seed_grids
from dpdmd.report.measured import Measured, read_measured
from dpdmd.report.scores import AVERAGE_PREFIX, PREFIX, Metric, Score
from dpdmd.run_folder import EVAL_TURN, RunFolder, read_records
from dpdmd.utils import strict_yaml
from dpdmd.utils.manifest import read_manifest
from dpdmd.utils.text_files import read_json


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: its folder's, made longer where two would be the same.
        steps, evaluations: records of metrics.jsonl, by step, one of each.
        metrics: all that its evaluations score, in their order.
        teacher: metric's name -> the teacher's score.
        config: option -> value, flat.
        environment: as environment.json has it, else a checkpoint's versions.
        measured: what the small world's oracle said of its models.
        grids: step or `seed_grids.TEACHER` -> sheets.
        best: step of the checkpoint that `best` points to.
        notes: one line about each file that could not be read.
    """

    name: str
    folder: Path
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    metrics: list[Metric]
    teacher: dict[str, Score]
    config: dict[str, Any]
    environment: dict[str, Any]
    measured: list[Measured]
    grids: dict[int | str, list[seed_grids.SeedGrid]]
    best: int | None
    notes: list[str]

    @property
    def last_step(self) -> int:
        return max((record["step"] for record in (*self.steps, *self.evaluations)), default=0)

    @property
    def planned_steps(self) -> int | None:
        """Length of the run; None where epochs decide, which the folder does not tell."""
        return self.config.get("max_steps") or (None if self.config.get("max_epoch") else DEFAULT_MAX_STEPS)

    @property
    def unfinished(self) -> bool:
        return self.planned_steps is not None and self.last_step < self.planned_steps

    def of_average(self) -> "Run | None":
        """The moving average's evaluations as those of a run, where there are any: no updates, no images."""
        records = [
            {
                "step": record["step"],
                **{
                    PREFIX + k.removeprefix(AVERAGE_PREFIX): v
                    for k, v in record.items()
                    if k.startswith(AVERAGE_PREFIX)
                },
            }
            for record in self.evaluations
        ]
        known = [record for record in records if len(record) > 1]
        name = f"{self.name}, average"
        return replace(self, name=name, steps=[], evaluations=known, grids={}, best=None, notes=[]) if known else None

    def score(self, record: dict[str, Any], metric: Metric) -> Score:
        """A metric in one of the evaluations."""
        name = metric.name
        missing = record.get(f"{name}_missing") or 0
        return Score(record.get(name), record.get(f"{name}_low"), record.get(f"{name}_high"), missing)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs at these folders, each once.

    Raises:
        ValueError: one is no run folder; the message names it.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    return [_read(folder, name) for folder, name in zip(unique, _names(unique), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, with as many of their parents' as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while max(Counter(part[-depth:] for part in parts).values(), default=1) > 1:
        depth += 1
    return ["/".join(part[-depth:]).removeprefix("//") for part in parts]


def _read(root: Path, name: str) -> Run:
    folder, notes = RunFolder.of(root), []
    if not folder.config.is_file() and not folder.metrics.is_file():
        raise ValueError(f"{root}: is no run folder ({folder.config.name} and {folder.metrics.name} are missing)")
    records = []
    try:
        records = read_records(folder.metrics)
    except OSError as error:
        notes.append(f"{folder.metrics.name} cannot be read ({error.strerror})")
    steps = {record["step"]: record for record in records if record["turn"] != EVAL_TURN}
    evaluations = {record["step"]: record for record in records if record["turn"] == EVAL_TURN}
    metrics = {key: Metric.of(key) for record in evaluations.values() for key in record}
    return Run(
        name=name,
        folder=root,
        steps=[steps[step] for step in sorted(steps)],
        evaluations=[evaluations[step] for step in sorted(evaluations)],
        metrics=[metric for metric in metrics.values() if metric],
        teacher=_read_teacher(folder, evaluations, notes),
        config=_read_config(folder.config, notes),
        environment=_read_environment(folder),
        measured=_read_measured(folder, notes),
        grids=seed_grids.read(folder.seed_grids),
        best=_step_of(folder.best()),
        notes=notes,
    )


def _step_of(checkpoint: Path | None) -> int | None:
    number = checkpoint.name.rpartition("_")[2] if checkpoint else ""
    return int(number) if number.isdecimal() else None


def _read_config(path: Path, notes: list[str]) -> dict[str, Any]:
    """Flat values, whatever version wrote them: a report must not refuse an option that was renamed since."""
    try:
        groups = strict_yaml.read(path, path.name)
        flat = {str(name): value for group in groups.values() for name, value in group.items()}
    except ValueError as error:
        notes.append(str(error))
        return {}
    except AttributeError:
        notes.append(f"{path.name}: holds no groups of options")
        return {}
    if not isinstance(flat.get("max_steps"), int | None):
        notes.append(f"{path.name}: max_steps is no number: {flat.pop('max_steps')!r}")
    return flat


def _read_teacher(folder: RunFolder, evaluations: dict[int, dict[str, Any]], notes: list[str]) -> dict[str, Score]:
    """The teacher's row with its intervals; without its file the means that stand in the evaluations."""
    if not evaluations:
        return {}
    last = evaluations[max(evaluations)]
    teacher = {key.removesuffix("_teacher"): Score(value) for key, value in last.items() if key.endswith("_teacher")}
    try:
        rows = read_json(folder.teacher_scores)["metrics"]
        for name, row in rows.items():
            if name in teacher and teacher[name].mean == row["mean"]:
                teacher[name] = Score(row["mean"], row["low"], row["high"], row["num_missing"])
    except (ValueError, KeyError, TypeError, AttributeError):
        notes.append(f"{folder.teacher_scores.name} cannot be read: the teacher has no intervals")
    return teacher


def _read_measured(folder: RunFolder, notes: list[str]) -> list[Measured]:
    try:
        return read_measured(folder.figures, folder.root)
    except ValueError as error:
        notes.append(str(error))
        return []


def _read_environment(folder: RunFolder) -> dict[str, Any]:
    try:
        return read_json(folder.environment)
    except ValueError:
        pass
    for checkpoint in reversed(folder.checkpoints()):
        try:
            return {"versions": read_manifest(checkpoint)["versions"]}
        except (ValueError, KeyError):
            continue
    return {}
