"""A sweep in memory: its rows, its measures, and the command of each process. `sweep_file` reads it from YAML."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpdmd.config import Config

# What a sweep gives each run by itself, and what derives from that.
OWN_FLAGS = ("seed", "run_dir", "resume_from_checkpoint")
OUTPUT_FLAGS = ("run_dir", "log_path", "ckpt_dir", "eval_dir", "process_folder_name", "diversity_folder_name")
PLACE = re.compile(r"\{(\w*)\}")  # {model} and {out} in a measure's command


@dataclass(frozen=True)
class Configuration:
    """One row of the table.

    Attributes:
        model: what is measured where nothing is trained; then `launcher`, `flags` and `resolved` are empty.
        launcher: words before `-m dpdmd.train`.
        flags: of `dpdmd.train`, on top of the sweep's `config`.
        resolved: every option of a run but those that the sweep itself gives.
        paper: column -> the paper's number.
    """

    name: str
    model: str | None
    launcher: tuple[str, ...]
    flags: dict[str, Any]
    resolved: dict[str, Any]
    paper: dict[str, float]


@dataclass(frozen=True)
class Measure:
    """One program that looks at every model.

    Attributes:
        command: words, {model} and {out} still in them.
        result: the file that it leaves in {out}.
        metrics: column of the table -> name in the result.
    """

    name: str
    command: tuple[str, ...]
    result: str
    metrics: dict[str, str]


@dataclass(frozen=True)
class SampleGrid:
    """A grid: for each prompt a row a configuration, the same start noises in each."""

    prompts: tuple[str, ...]
    rows: tuple[str, ...]
    num_images: int = 9


@dataclass(frozen=True)
class Plane:
    """A diagram: columns to the right and upwards."""

    x: str
    y: str


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    path: Path
    title: str
    config: str | None
    on_cores: bool  # no launcher is given anywhere: a run is a process on one CPU core, several side by side
    seeds: tuple[int, ...]
    baseline: str | None
    configurations: dict[str, Configuration]
    measures: dict[str, Measure]
    picture: SampleGrid | None
    plane: Plane | None

    @property
    def columns(self) -> list[str]:
        return [column for measure in self.measures.values() for column in measure.metrics]

    def seeds_of(self, name: str) -> tuple[int | None, ...]:
        """Seeds of a configuration's trainings; (None,) where nothing is trained."""
        return self.seeds if self.configurations[name].model is None else (None,)

    def part(self, names: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> "Sweep":
        """Of its rows those called `names`, of its trainings those with one of `seeds`; None: all of them.

        Rows that are not trained have no seed and stay. Its table is then that of the part alone.

        Raises:
            ValueError: a name or a seed that is not there.
        """
        for name in names or ():
            if name not in self.configurations:
                raise ValueError(f"--only {name}: no such configuration; there are {', '.join(self.configurations)}")
        for seed in seeds or ():
            if seed not in self.seeds:
                known = ", ".join(map(str, self.seeds)) or "none"
                raise ValueError(f"--seeds {seed}: not one of the sweep's seeds ({known}); add it there first")
        rows = {name: row for name, row in self.configurations.items() if names is None or name in names}
        shown = tuple(name for name in self.picture.rows if name in rows) if self.picture else ()
        return replace(
            self,
            configurations=rows,
            seeds=tuple(seed for seed in self.seeds if seeds is None or seed in seeds),
            baseline=self.baseline if self.baseline in rows else None,
            picture=replace(self.picture, rows=shown) if shown else None,
        )

    def train_command(self, name: str, seed: int, run: Path) -> list[str]:
        """The command of one training."""
        configuration = self.configurations[name]
        words = ["--config", self.config] if self.config else []
        words += [_as_flag(flag, value) for flag, value in configuration.flags.items()]
        own = ["--seed", str(seed), "--run_dir", str(run), "--resume_from_checkpoint", "latest"]
        return [*_interpreter(configuration.launcher), "-m", "dpdmd.train", *words, *own]

    def measure_command(self, measure: str, model: str, out: Path) -> list[str]:
        """The command of one measure on one model."""
        places = {"model": model, "out": str(out)}
        words = [PLACE.sub(lambda place: places[place[1]], word) for word in self.measures[measure].command]
        return _interpreter(words)


def _interpreter(words: list[str] | tuple[str, ...]) -> list[str]:
    return [sys.executable if words[0] == "python" else words[0], *words[1:]]


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def options_of(config: Config) -> dict[str, Any]:
    """Every option but those that a sweep gives each run by itself."""
    own = (*OWN_FLAGS, *OUTPUT_FLAGS)
    return {name: value for group in config.as_dict().values() for name, value in group.items() if name not in own}
