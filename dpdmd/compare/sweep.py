"""A sweep in memory: its rows, its measures, and the command of each process. `sweep_file` reads it from YAML."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpdmd.config import Config
from dpdmd.config.validation import MAX_NAME
from dpdmd.run_folder import LORA_EMA, STUDENT_EMA, RunFolder
from dpdmd.utils.paths import LATEST

# Options that the sweep sets for each run, and the output paths derived from them.
OWN_FLAGS = ("seed", "run_dir", "resume_from_checkpoint")
OUTPUT_FLAGS = ("run_dir", "log_path", "ckpt_dir", "eval_dir", "process_folder_name", "diversity_folder_name")
CALLS = "calls"  # the cost of a training in network calls, as the size of a marker
PLACEHOLDER = re.compile(r"\{(\w*)\}")  # {model} and {out} in a measure's command


@dataclass(frozen=True)
class Configuration:
    """One row of the table.

    Attributes:
        model: path of a model that is measured without training; `launcher`, `flags` and `resolved` are then empty.
        launcher: words before `-m dpdmd.train`.
        flags: of `dpdmd.train`, on top of the sweep's `config`.
        resolved: every option of a run except those that the sweep sets.
        paper: column -> the paper's number.
        average: whether the student's moving average is measured instead of the student.
    """

    name: str
    model: str | None
    launcher: tuple[str, ...]
    flags: dict[str, Any]
    resolved: dict[str, Any]
    paper: dict[str, float]
    average: bool = False

    def measured_model(self, run: Path) -> Path:
        """Return the path of what is measured of a run: the run, or its newest checkpoint's moving average."""
        if not self.average:
            return run
        return RunFolder.of(run).ckpts / LATEST / (STUDENT_EMA if self.resolved["lora_rank"] is None else LORA_EMA)


@dataclass(frozen=True)
class Measure:
    """One program that measures every model.

    Attributes:
        command: words, with the placeholders {model} and {out}.
        result: the file that the program writes, relative to {out}.
        metrics: column of the table -> name in the result.
    """

    name: str
    command: tuple[str, ...]
    result: str
    metrics: dict[str, str]


@dataclass(frozen=True)
class SampleGrid:
    """An image grid: per prompt one row per configuration, with the same start noises in each row."""

    prompts: tuple[str, ...]
    rows: tuple[str, ...]
    num_images: int = 9


@dataclass(frozen=True)
class Plane:
    """A scatter plot: the columns of its two axes.

    Attributes:
        size: CALLS if the area of a row's marker is the cost of its training; None for equal markers.
    """

    x: str
    y: str
    size: str | None = None


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    path: Path
    title: str
    config: str | None
    on_cores: bool  # no launcher is given: each run is one process on one CPU core, several in parallel
    seeds: tuple[int, ...]
    baseline: str | None
    configurations: dict[str, Configuration]
    measures: dict[str, Measure]
    sample_grid: SampleGrid | None
    plane: Plane | None

    @property
    def columns(self) -> list[str]:
        return [column for measure in self.measures.values() for column in measure.metrics]

    def seeds_of(self, name: str) -> tuple[int | None, ...]:
        """Return the seeds of a configuration's trainings; (None,) if nothing is trained."""
        return self.seeds if self.configurations[name].model is None else (None,)

    def select(self, names: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> "Sweep":
        """Return the sweep with only the rows `names` and the seeds `seeds`; None keeps all.

        Rows that are not trained have no seed and stay.

        Raises:
            ValueError: a name or seed does not exist.
        """
        for name in names or ():
            if name not in self.configurations:
                raise ValueError(f"--only {name}: no such configuration; there are {', '.join(self.configurations)}")
        for seed in seeds or ():
            if seed not in self.seeds:
                known = ", ".join(map(str, self.seeds)) or "none"
                raise ValueError(f"--seeds {seed}: not one of the sweep's seeds ({known}); add it there first")
        rows = {name: row for name, row in self.configurations.items() if names is None or name in names}
        shown = tuple(name for name in self.sample_grid.rows if name in rows) if self.sample_grid else ()
        return replace(
            self,
            configurations=rows,
            seeds=tuple(seed for seed in self.seeds if seeds is None or seed in seeds),
            baseline=self.baseline if self.baseline in rows else None,
            sample_grid=replace(self.sample_grid, rows=shown) if shown else None,
        )

    def train_command(self, name: str, seed: int, run: Path) -> list[str]:
        """Return the command of one training."""
        configuration = self.configurations[name]
        words = ["--config", self.config] if self.config else []
        words += [_as_flag(flag, value) for flag, value in configuration.flags.items()]
        own = ["--seed", str(seed), "--run_dir", str(run), "--resume_from_checkpoint", "latest"]
        if configuration.resolved["report_to"] == "wandb" and not configuration.resolved["tracker_run_name"]:
            own += ["--tracker_run_name", f"{name[: MAX_NAME - 20]}_seed_{seed}"]  # each run folder is "run"
        return [*_interpreter(configuration.launcher), "-m", "dpdmd.train", *words, *own]

    def measure_command(self, measure: str, model: str, out: Path) -> list[str]:
        """Return the command that measures one model."""
        values = {"model": model, "out": str(out)}
        words = [PLACEHOLDER.sub(lambda match: values[match[1]], word) for word in self.measures[measure].command]
        return _interpreter(words)


def _interpreter(words: Sequence[str]) -> list[str]:
    """Replace a leading `python` by the running interpreter."""
    return [sys.executable if words[0] == "python" else words[0], *words[1:]]


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def options_of(config: Config) -> dict[str, Any]:
    """Return every option except those that a sweep sets for each run."""
    own = (*OWN_FLAGS, *OUTPUT_FLAGS)
    return {name: value for group in config.as_dict().values() for name, value in group.items() if name not in own}
