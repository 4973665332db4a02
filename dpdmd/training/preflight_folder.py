"""Checks of the run folder before a run: it can be written, and it is new or that of the run to continue."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dpdmd.config import Config
from dpdmd.run_folder import RunFolder, read_records
from dpdmd.training import resume
from dpdmd.utils.error_lines import unreadable
from dpdmd.utils.paths import check_writable


def check_folder(config: Config, folder: RunFolder) -> None:
    """Check that the run's folders can be written, and that the run does not mix with another one.

    Raises:
        ValueError: one line that names the flag or file and what to do.
    """
    for flag, path in folder.by_flag().items():
        check_writable(flag, path)
    folder.check_files()
    with unreadable_named():
        if config.run.resume_from_checkpoint is not None:
            folder.restore_checkpoints()
        _check_use(config, folder)
        if config.run.resume_from_checkpoint is not None and folder.metrics.exists():
            read_records(folder.metrics)  # an odd line would otherwise end the run after its models are loaded


@contextmanager
def unreadable_named() -> Iterator[None]:
    """Name a file of the run that cannot be read.

    Raises:
        ValueError: in place of an OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{unreadable(error)}; make it readable, or give another --run_dir") from None


def _check_use(config: Config, folder: RunFolder) -> None:
    """Check that a folder in use is that of the run to continue.

    A run that was stopped before its first checkpoint starts anew in its folder, so that the same command can start and
    continue a job.
    """
    wanted = config.run.resume_from_checkpoint
    if wanted is not None:
        resume.check_wanted(wanted)
        if folder.ckpts.is_dir():
            os.listdir(folder.ckpts)  # an unreadable folder would look like one without checkpoints
    checkpoint = folder.to_resume(wanted)
    if checkpoint and folder.owns(checkpoint):
        return
    flag = folder.flag_in_use()
    if flag is None or (wanted is not None and folder.has_nothing_to_lose()):
        return
    derived = flag == "--run_dir" and not config.run.run_dir
    given = "the run's folder, where the paths given lie," if derived else flag
    place = f"{given} {folder.by_flag()[flag]}"
    if wanted is None:
        raise ValueError(f"{place}: is not empty; --resume_from_checkpoint latest continues it, or give another")
    if checkpoint is None:
        raise ValueError(
            f"{place}: is not empty, but {folder.ckpts} has no checkpoint to continue; give the --ckpt_dir of its "
            "checkpoints, or another --run_dir"
        )
    own = "give latest to continue that run, or " if folder.numbered() else "give "
    raise ValueError(
        f"--resume_from_checkpoint {wanted}: is not of the run in {place}, which is not empty; {own}another --run_dir"
    )
