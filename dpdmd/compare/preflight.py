"""What a sweep's processes would refuse, told before the first of them starts: minutes of loading, days of training."""

import os.path
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from dpdmd.compare import measure_commands
from dpdmd.compare.jobs import TRAIN, Job, Stage
from dpdmd.compare.sweep import Sweep
from dpdmd.config import parse
from dpdmd.run_folder import RunFolder
from dpdmd.training import preflight


def check(sweep: Sweep, jobs: Sequence[Job]) -> list[str]:
    """Check what the unfinished jobs point to, as far as can be told without loading a model.

    Returns:
        A line for each thing that is wrong, with all the rows or measures for which it is; none if all is well.
    """
    names: dict[tuple[str, str], dict[str, None]] = {}
    for kind, name, run in _checks(sweep, jobs):
        try:
            run()
        except ValueError as error:
            names.setdefault((kind, str(error)), {})[name] = None
    return [
        f"{sweep.path}: {kind}{'s' if len(where) > 1 else ''} {', '.join(where)}: {told}"
        for (kind, told), where in names.items()
    ]


def _checks(sweep: Sweep, jobs: Sequence[Job]) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """(configuration or measure, its name, check) of everything that is still to be done."""
    for job in jobs:
        to_come = [stage for stage in job.stages if not stage.is_done()]
        trains = any(stage.name == TRAIN for stage in to_come)
        row = "configuration", job.configuration
        if to_come and not trains:
            yield *row, partial(_check_model, job.model)
        for stage in to_come:
            if stage.name == TRAIN:
                yield *row, partial(_check_training, sweep, stage)
            else:
                yield "measure", stage.name, partial(_check_measure, sweep, job, stage, to_be_made=trains)


def _check_model(model: Path) -> None:
    if not model.exists():
        raise ValueError(f"model {model}: no such folder; scripts/download_weights.sh gets the official ones")


def _check_training(sweep: Sweep, stage: Stage) -> None:
    """As `dpdmd.train` itself would, but for what only the launched processes know.

    Raises:
        ValueError: as from there.
    """
    start = stage.command.index("dpdmd.train")
    _check_launcher(stage.command[:start])
    config = parse(stage.command[start + 1 :])
    if RunFolder.from_config(config.run).checkpoints():
        return  # its inputs were whole when it began, and to read its checkpoints once more would take minutes
    if config.run.max_epoch and not sweep.on_cores:
        # How many steps an epoch has, and so how many checkpoints will want space, is for the launcher to say.
        config.run.ckpt_every = sys.maxsize
    preflight.check(config)


def _check_measure(sweep: Sweep, job: Job, stage: Stage, *, to_be_made: bool) -> None:
    """The command, and the model too unless it is still `to_be_made`.

    Raises:
        ValueError: one line that names the flag or file and what to do.
    """
    measure = sweep.measures[stage.name]
    found = measure_commands.find(stage.command)
    if found is None:
        _check_launcher(stage.command[:1])
        return
    _check_launcher(stage.command[: found.start])
    known = found.check(job.folder)
    written = os.path.relpath(found.result, stage.folder / measure.name)
    if written != os.path.normpath(measure.result):
        raise ValueError(f"result {measure.result}: {found.name} writes {written}, seen from {{out}}")
    for metric in measure.metrics.values():
        if metric not in known:
            raise ValueError(f"metrics: {found.name} gives no {metric!r}; there are {', '.join(known)}")
    if not to_be_made and job.model.exists():
        found.check_model()


def _check_launcher(words: Sequence[str]) -> None:
    """Check the words before a program: that there is such a command, and the file of accelerate's `--config_file`.

    Raises:
        ValueError: there is not.
    """
    if shutil.which(words[0]) is None:
        raise ValueError(f"{words[0]}: no such program")
    for flag, value in zip(words, [*words[1:], ""], strict=True):
        if flag == "--config_file" and not Path(value).is_file():
            raise ValueError(f"--config_file {value}: no such file")
