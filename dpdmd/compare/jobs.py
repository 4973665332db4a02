"""A sweep's jobs: one job trains and measures one model, in stages. Finished stages are skipped.

OUT/runs/dpdmd/seed_0/run/  train.log  train.json  oracle/  oracle.log  oracle.json  .lock

A stage's record (train.json) is written before its process starts, with the settings of the stage, and again after it.
"""

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dpdmd.compare.content import identify_inputs, measure_inputs, parsed_inputs, training_inputs
from dpdmd.compare.metrics import MeasuredMetric, read_metrics
from dpdmd.compare.sweep import Sweep, options_of
from dpdmd.config import Config, equal_values
from dpdmd.utils.atomic_files import write_json
from dpdmd.utils.paths import same_place
from dpdmd.utils.text_files import expecting_mapping_keys, read_json

TRAIN = "train"  # the stage that trains a model; the other stages measure it


@dataclass(frozen=True)
class Stage:
    """One process.

    Attributes:
        name: of the record and the log.
        settings: what must not change between calls: the configuration, or the measuring command. Plain values.
        result: of a measure, the file with its metrics in the folder that its command writes into.
        single_thread: whether the process gets one thread (processes that share cores are several times slower with
            two).
        named_inputs: models and prompt files that the process reads, by name, as far as its settings name them.
    """

    name: str
    folder: Path
    command: list[str]
    settings: dict[str, Any]
    single_thread: bool
    named_inputs: Mapping[str, Path] = field(default_factory=dict)
    result: str = ""

    @cached_property
    def inputs(self) -> dict[str, Path]:
        """All models, scorers and prompt files that the process reads, by name; their content must not change either.

        Of a measure also those that its program reads by default.
        """
        named = dict(self.named_inputs)
        if self.name != TRAIN:
            known = {os.path.realpath(path) for path in named.values()}
            parsed = parsed_inputs(self.command).items()
            named |= {flag: path for flag, path in parsed if os.path.realpath(path) not in known}
        return named

    @cached_property
    def content(self) -> dict[str, str]:
        """Digests of `inputs`, taken once: what changes while the process runs must not pass for its input."""
        return identify_inputs(self.inputs)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    def is_done(self) -> bool:
        return self.record.is_file() and _read_record(self.record).done

    @property
    def out(self) -> Path:
        """Where a measure writes."""
        return self.folder / self.name

    def metrics(self) -> dict[str, MeasuredMetric]:
        """Return the metrics that a measure has written.

        Raises:
            ValueError: there are none, or they cannot be read; the line says how to measure again.
        """
        try:
            return read_metrics(self.out / self.result)
        except ValueError as error:
            raise ValueError(f"{error}; {self.to_repeat}") from None

    @property
    def to_repeat(self) -> str:
        """How a user lets the stage run again."""
        return f"to measure again, delete {self.record} and give the same command"

    def write_record(self, done: bool) -> None:
        content = self.content
        if done and self.name != TRAIN:  # a word may be a file that the measures write in common, such as a log
            words = {name: path for name, path in self.named_inputs.items() if name != "model"}
            now = identify_inputs(words)
            content = {name: digest for name, digest in content.items() if now.get(name, digest) == digest}
        record = {"done": done, "asked": self.settings, "content": content}
        write_json(self.record, record)

    def check(self) -> str:
        """Check that an existing record has the settings of this stage, and inputs of the same content.

        Returns:
            The path of the record if an older version wrote it without the content, else "".

        Raises:
            ValueError: settings or content differ, or the record is damaged.
        """
        if not self.record.is_file():
            return ""
        record = _read_record(self.record)
        place, remedy = self.folder, "delete that folder"
        if self.name != TRAIN:  # the training beside it must not be lost
            place, remedy = self.out, self.to_repeat
            if not record.done:  # it failed, or was stopped: it begins anew with what is asked now
                return ""
        if changes := _changes(self.settings, record.settings):
            raise ValueError(f"{place}: was made with {changes}; give another --out, or {remedy}")
        if changed := record.changed_inputs(self):
            paths = ", ".join(dict.fromkeys(str(self.inputs[name]) for name in changed))
            raise ValueError(f"{place}: the content of {paths} has changed since; give another --out, or {remedy}")
        return "" if record.content is not None else str(self.record)


@dataclass(frozen=True)
class Record:
    """A stage's record; `content` is None if an older version wrote it."""

    done: bool
    settings: dict[str, Any]
    content: dict[str, str] | None

    def changed_inputs(self, stage: Stage) -> list[str]:
        """Return the inputs of a stage that have other content now. One that is gone is not compared."""
        recorded = self.content or {}
        if not recorded or not recorded.keys() & stage.inputs.keys():
            return []
        return sorted(name for name, digest in stage.content.items() if recorded.get(name, digest) != digest)


def _read_record(path: Path) -> Record:
    """Read a stage's record.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        record = read_json(path)
        with expecting_mapping_keys(path):
            content = record.get("content")
            return Record(bool(record["done"]), {**record["asked"]}, None if content is None else {**content})
    except ValueError as error:
        raise ValueError(f"{error}; delete it: its stage is then continued or repeated") from None


def _changes(settings: dict[str, Any], recorded: dict[str, Any]) -> str:
    """Describe the differences. An option that is newer than the record counts as its default."""
    recorded = {**{key: value for key, value in options_of(Config()).items() if key in settings}, **recorded}
    keys = [key for key in settings.keys() | recorded.keys() if not _equal(key, settings.get(key), recorded.get(key))]
    return ", ".join(f"{key} {recorded.get(key)!r} (now {settings.get(key)!r})" for key in sorted(keys))


def _equal(key: str, one: Any, other: Any) -> bool:
    one, other = (os.path.expanduser(each) if isinstance(each, str) else each for each in (one, other))
    if key == "model" and one and other:
        return same_place(one, other)
    return equal_values(key, one, other)


@dataclass(frozen=True)
class Job:
    """One model and the stages that train and measure it.

    Attributes:
        seed: of the training; None if nothing is trained.
        model: the path that is measured and sampled.
    """

    configuration: str
    seed: int | None
    folder: Path
    model: Path
    stages: tuple[Stage, ...]

    @property
    def label(self) -> str:
        return self.configuration if self.seed is None else f"{self.configuration}, seed {self.seed}"

    def is_done(self) -> bool:
        return all(stage.is_done() for stage in self.stages)


def build_jobs(sweep: Sweep, out: Path, reuse: Sequence[Path] = ()) -> list[Job]:
    """Return every job of a sweep, ordered by seed, so that an interrupted sweep has complete rows.

    A model is only measured if a sweep in one of the folders `reuse` trained it with the same options and seed.
    """
    pairs = [(name, seed) for name in sweep.configurations for seed in sweep.seeds_of(name)]
    order = {seed: index for index, seed in enumerate((None, *sweep.seeds))}
    return [_job(sweep, name, seed, out, reuse) for name, seed in sorted(pairs, key=lambda pair: order[pair[1]])]


def _job(sweep: Sweep, name: str, seed: int | None, out: Path, reuse: Sequence[Path]) -> Job:
    configuration = sweep.configurations[name]
    model = configuration.model
    folder = out / "runs" / (name if seed is None else f"{name}/seed_{seed}")
    stages = []
    if seed is not None:
        settings = {"launcher": list(configuration.launcher), **configuration.resolved}
        command = sweep.train_command(name, seed, folder / "run")
        train = Stage(TRAIN, folder, command, settings, sweep.on_cores, training_inputs(configuration.resolved))
        model = _find_trained(train, reuse)
        stages += [train] if model is None else []
    path = configuration.measured_model(folder / "run" if model is None else Path(model))
    for measure in sweep.measures.values():
        settings = {"command": list(measure.command), "model": model}
        settings |= {"average": True} if configuration.average else {}  # older records have no such key
        command = sweep.measure_command(measure.name, str(path), folder / measure.name)
        inputs = measure_inputs(measure.command)
        if model is not None:  # one that is trained here is known by its training
            inputs["model"] = path
        stages.append(Stage(measure.name, folder, command, settings, sweep.on_cores, inputs, measure.result))
    return Job(name, seed, folder, path, tuple(stages))


def _find_trained(train: Stage, reuse: Sequence[Path]) -> str | None:
    """Return the run folder of a finished training with the same settings and inputs of the same content.

    Return None if a training has already started here. A record of an older version, without content, does not count.

    Raises:
        ValueError: a record in `reuse` is damaged.
    """
    if train.record.is_file():
        return None
    for record in (path for out in reuse for path in sorted(out.glob(f"runs/*/{train.folder.name}/train.json"))):
        found = _read_record(record)
        same = found.done and not _changes(train.settings, found.settings)
        if same and found.content is not None and not found.changed_inputs(train):
            return str(record.with_name("run"))
    return None
