"""Check what a sweep's processes would reject, before the first one starts: it saves minutes or days of work."""

import os.path
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from dpdmd.compare.jobs import TRAIN, Job, Stage
from dpdmd.compare.measure_commands import parse_command
from dpdmd.compare.sweep import Sweep
from dpdmd.config import from_dict, parse
from dpdmd.run_folder import RunFolder
from dpdmd.training import preflight
from dpdmd.utils.error_lines import unreadable
from dpdmd.utils.paths import check_free, expanded


def check(sweep: Sweep, jobs: Sequence[Job]) -> list[str]:
    """Check the inputs of the unfinished jobs without loading a model.

    Returns:
        One line per problem, with all configurations or measures that have it.
    """
    names: dict[tuple[str, str], dict[str, None]] = {}
    to_come: list[tuple[Path, float]] = []
    for kind, name, run in _checks(sweep, jobs, to_come):
        try:
            run()
        except (ValueError, OSError) as error:
            message = unreadable(error) if isinstance(error, OSError) else str(error)
            names.setdefault((kind, message), {})[name] = None
    problems = [
        f"{sweep.path}: {kind}{'s' if len(where) > 1 else ''} {', '.join(where)}: {message}"
        for (kind, message), where in names.items()
    ]
    try:
        _check_room(to_come)
    except ValueError as error:
        problems.append(f"{sweep.path}: {error}")
    return problems


def _check_room(to_come: Sequence[tuple[Path, float]]) -> None:
    """Check that the checkpoints of all trainings, (run folder, bytes) of each, fit the disk together.

    Raises:
        ValueError: they do not.
    """
    if len(to_come) > 1:
        remedy = "free some, set checkpoints_total_limit in flags, or give another --out"
        needed = sum(size for _, size in to_come)
        check_free("flags", to_come[-1][0], needed, f"the checkpoints of {len(to_come)} trainings", remedy)


def _checks(
    sweep: Sweep, jobs: Sequence[Job], to_come: list[tuple[Path, float]]
) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Yield ("configuration" or "measure", its name, check) for all unfinished stages.

    The check of a training adds its checkpoints to `to_come`.
    """
    for job in jobs:
        unfinished = [stage for stage in job.stages if not stage.is_done()]
        trains = any(stage.name == TRAIN for stage in unfinished)
        if unfinished and not trains:
            yield "configuration", job.configuration, partial(_check_model, job.model)
        for stage in unfinished:
            if stage.name == TRAIN:
                yield "configuration", job.configuration, partial(_check_training, sweep, stage, to_come)
            else:
                yield "measure", stage.name, partial(check_measure, sweep, job, stage, model_exists=not trains)


def _check_model(model: Path) -> None:
    if not Path(expanded(str(model))).exists():  # `latest` may be a text file with the checkpoint's name
        raise ValueError(f"model {model}: no such folder; scripts/download_weights.sh gets the official ones")


def _check_training(sweep: Sweep, stage: Stage, to_come: list[tuple[Path, float]]) -> None:
    """Check a training as `dpdmd.train` does, except for what only the launched processes know.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    start = stage.command.index("dpdmd.train")
    _check_launcher(stage.command[:start])
    config = parse(stage.command[start + 1 :])
    if RunFolder.from_config(config.run).checkpoints():
        return  # its inputs were checked when it started, and reading its checkpoints would take minutes
    # The steps per epoch, and so the disk space for checkpoints, depend on the number of launched processes.
    unknown = config.run.max_epoch and not sweep.on_cores
    if unknown:
        config.run.ckpt_every = sys.maxsize
    setup = preflight.check(config)
    count, size = preflight.checkpoints_to_come(setup)
    if count and not unknown:
        to_come.append((setup.folder.root, size))


def check_measure(sweep: Sweep, job: Job, stage: Stage, *, model_exists: bool) -> None:
    """Check a measure's command, and its model if `model_exists`.

    Raises:
        ValueError: one line that names the flag or file and what to do.
    """
    measure = sweep.measures[stage.name]
    command = parse_command(stage.command)
    if command is None:
        _check_program(stage.command)
        return
    _check_launcher(stage.command[: command.start])
    options = sweep.configurations[job.configuration].resolved
    size = next(iter(from_dict(dict(options), "").data.image_sizes)) if options and not model_exists else None
    known = command.check(job.folder, size)
    written = os.path.relpath(command.result, stage.folder / measure.name)
    if written != os.path.normpath(measure.result):
        raise ValueError(f"result {measure.result}: {command.name} writes {{out}}/{written}")
    for metric in measure.metrics.values():
        if metric not in known:
            raise ValueError(f"metrics: {command.name} gives no {metric!r}; there are {', '.join(known)}")
    if model_exists and job.model.exists():
        command.check_model()


def _check_launcher(words: Sequence[str]) -> None:
    """Check that the program exists, and the file of accelerate's `--config_file`.

    Raises:
        ValueError: one is missing.
    """
    _check_program(words)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, sign, value = word.partition("=")
        if flag == "--config_file" and not os.path.isfile(path := value if sign else following):
            raise ValueError(f"--config_file {path}: no such file")


def _check_program(words: Sequence[str]) -> None:
    """Check that a command's program exists, and for the running interpreter its module or its file.

    Raises:
        ValueError: it is missing.
    """
    program, *rest = words
    if shutil.which(program) is None:
        raise ValueError(f"{program}: no such program")
    if program != sys.executable or not rest:
        return
    if rest[0] == "-m":
        if len(rest) > 1 and not _is_module(rest[1]):  # a launcher ends with the -m of dpdmd.train
            raise ValueError(f"python -m {rest[1]}: no such module")
    elif not rest[0].startswith("-") and not os.path.exists(rest[0]):
        raise ValueError(f"python {rest[0]}: no such file")


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # of the packages before the last dot; a name such as ".x"
        return False
