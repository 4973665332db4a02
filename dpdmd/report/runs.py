"""Read a run's folder for a report. Missing or broken files are left out and listed in `warnings`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpdmd.config.options import DEFAULT_MAX_STEPS
from dpdmd.evaluation import seed_grids
from dpdmd.report.oracle_metrics import OracleMetrics, read_oracle_metrics
from dpdmd.report.scores import EMA_PREFIX, PREFIX, Metric, Score
from dpdmd.run_folder import EVAL_TURN, LATEST_IMAGE, RunFolder, comparable_with_last, read_records, step_of
from dpdmd.utils import strict_yaml
from dpdmd.utils.manifest import read_manifest
from dpdmd.utils.paths import distinct_names
from dpdmd.utils.text_files import read_json
from dpdmd.utils.wording import counted


@dataclass(frozen=True)
class RunEntry:
    """A run folder to read.

    Attributes:
        label: name of the run; "" for that of its folder.
        style, member: number of its colour, and its place among the runs of this colour.
    """

    folder: Path
    label: str = ""
    style: int = 0
    member: int = 0


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        entry: where it lies and how it is drawn.
        name: its label, else that of its folder, with parent folders if two runs would have the same name.
        updates, evaluations: records of metrics.jsonl, sorted by step, one per step.
        metrics: all metrics of its evaluations, in their order.
        teacher: metric's name -> the teacher's score.
        config: option -> value, without groups.
        environment: content of environment.json, else the versions in a checkpoint.
        oracle: metrics of the small world's oracle.
        grids: step or `seed_grids.TEACHER` -> sheets.
        process_image: process_vis/latest.png, or None.
        best: step of the checkpoint that `best` points to.
        warnings: one line per file that could not be read.
    """

    entry: RunEntry
    name: str
    updates: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    metrics: list[Metric]
    teacher: dict[str, Score]
    config: dict[str, Any]
    environment: dict[str, Any]
    oracle: list[OracleMetrics]
    grids: dict[int | str, list[seed_grids.SeedGrid]]
    process_image: Path | None
    best: int | None
    warnings: list[str]

    @property
    def comparable(self) -> list[dict[str, Any]]:
        """The evaluations that one curve may connect: those under the conditions of the last one."""
        return comparable_with_last(self.evaluations)

    @property
    def last_step(self) -> int:
        return max((record["step"] for record in (*self.updates, *self.evaluations)), default=0)

    @property
    def planned_steps(self) -> int | None:
        """Length of the run; None if it is given in epochs, whose length the folder does not contain."""
        return self.config.get("max_steps") or (None if self.config.get("max_epoch") else DEFAULT_MAX_STEPS)

    @property
    def unfinished(self) -> bool:
        return self.planned_steps is not None and self.last_step < self.planned_steps

    def of_average(self) -> "Run | None":
        """Return the moving average as a run with its comparable evaluations alone; None without any."""
        evaluations = []
        for record in self.comparable:
            scores = {
                PREFIX + key.removeprefix(EMA_PREFIX): value
                for key, value in record.items()
                if key.startswith(EMA_PREFIX)
            }
            if scores:
                evaluations.append({"step": record["step"], **scores})
        if not evaluations:
            return None
        name = f"{self.name}, average"
        return replace(self, name=name, updates=[], evaluations=evaluations, grids={}, best=None, warnings=[])


def score_of(record: dict[str, Any], metric: Metric) -> Score:
    """Return a metric's score in the record of an evaluation."""
    name = metric.name
    missing = record.get(f"{name}_missing") or 0
    return Score(record.get(name), record.get(f"{name}_low"), record.get(f"{name}_high"), missing)


def is_run(folder: Path) -> bool:
    """Return whether a folder is the folder of a run."""
    paths = RunFolder.of(folder)
    return paths.config.is_file() or paths.metrics.is_file()


def read_runs(entries: Sequence[RunEntry]) -> list[Run]:
    """Read the runs in these folders, each once.

    Raises:
        ValueError: a folder is not a run folder; the message names it.
    """
    unique: dict[str, RunEntry] = {}
    for entry in entries:
        unique.setdefault(os.path.realpath(entry.folder), entry)
    folders = [entry.folder for entry in unique.values() if not entry.label]
    names = dict(zip(folders, distinct_names(folders), strict=True))
    return [_read(entry, entry.label or names[entry.folder]) for entry in unique.values()]


def _read(entry: RunEntry, name: str) -> Run:
    root = entry.folder
    folder, warnings = RunFolder.of(root), []
    if not is_run(root):
        raise ValueError(f"{root}: is not a run folder ({folder.config.name} and {folder.metrics.name} are missing)")
    records, oracle, odd = [], [], []
    try:
        records = read_records(folder.metrics, odd)
    except OSError as error:
        warnings.append(f"{folder.metrics.name} cannot be read ({error.strerror})")
    if odd:
        warnings.append(odd[0] if len(odd) == 1 else f"{odd[0]} (and {counted(len(odd) - 1, 'more line')})")
    try:
        oracle = read_oracle_metrics(folder.figures, folder.root)
    except ValueError as error:
        warnings.append(str(error))
    updates = {record["step"]: record for record in records if record["turn"] != EVAL_TURN}
    evaluations = {record["step"]: record for record in records if record["turn"] == EVAL_TURN}
    metrics = {key: Metric.of(key) for record in evaluations.values() for key in record}
    best, process_image = folder.best(), folder.process_vis / LATEST_IMAGE
    run = Run(
        entry=entry,
        name=name,
        updates=[updates[step] for step in sorted(updates)],
        evaluations=[evaluations[step] for step in sorted(evaluations)],
        metrics=[metric for metric in metrics.values() if metric],
        teacher=_read_teacher(folder, evaluations, warnings),
        config=_read_config(folder.config, warnings),
        environment=_read_environment(folder),
        oracle=oracle,
        grids=seed_grids.read(folder.seed_grids),
        process_image=process_image if process_image.is_file() else None,
        best=step_of(best) if best else None,
        warnings=warnings,
    )
    kept = {record["step"] for record in run.comparable}
    if others := [record["step"] for record in run.evaluations if record["step"] not in kept]:
        warnings.append(
            f"{counted(len(others), 'evaluation')} up to step {others[-1]} had other prompts, seeds or scorers than "
            "the last one: no plot or sheet shows them"
        )
        for step in others:  # of other start noises
            run.grids.pop(step, None)
        if run.grids.keys() <= {seed_grids.TEACHER}:
            run.grids.clear()
    return run


def _read_config(path: Path, warnings: list[str]) -> dict[str, Any]:
    """Return option -> value. Options of other versions are accepted: a report must not fail on a renamed option."""
    try:
        groups = strict_yaml.read(path, path.name)
        flat = {str(name): value for group in groups.values() for name, value in group.items()}
    except ValueError as error:
        warnings.append(str(error))
        return {}
    except AttributeError:
        warnings.append(f"{path.name}: has no groups of options")
        return {}
    if not isinstance(flat.get("max_steps"), int | None):
        warnings.append(f"{path.name}: max_steps is not an integer: {flat.pop('max_steps')!r}")
    return flat


def _read_teacher(folder: RunFolder, evaluations: dict[int, dict[str, Any]], warnings: list[str]) -> dict[str, Score]:
    """Return the teacher's scores with intervals; without teacher_scores.json, the means in the last evaluation."""
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
        warnings.append(f"{folder.teacher_scores.name} cannot be read: the teacher has no intervals")
    return teacher


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
