"""Find the checkpoint that a run continues: the one that is asked for, or the newest that is whole."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from dpdmd.config import Config, from_dict
from dpdmd.models.identity import Identity, changed_parts
from dpdmd.run_folder import CKPTS, LATEST, RunFolder, read_records, step_folders, step_of
from dpdmd.training.checkpoint import Progress, identify_models
from dpdmd.utils.hub import parse_id
from dpdmd.utils.manifest import MANIFEST, check_files, check_sizes, read_manifest


class DamagedError(ValueError):
    """A checkpoint differs from what was written."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts.

    Attributes:
        path, progress: the checkpoint to continue; None for a run that starts anew.
        passed_over: one line about each newer checkpoint that is damaged or half-written.
    """

    path: Path | None = None
    progress: Progress | None = None
    passed_over: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Updates done before."""
        return self.progress.step if self.progress else 0


def find(folder: RunFolder, wanted: str, config: Config, *, sizes_only: bool = False) -> ResumePoint:
    """Find the checkpoint that `--resume_from_checkpoint` names; "latest" is the newest that is whole.

    Without any checkpoint "latest" starts anew, so that a job may always be launched with it.

    Args:
        sizes_only: check that the files are there in full length, but do not read them (55 GB for SD3.5-M), nor the
            models that were not trained.

    Raises:
        ValueError: the checkpoint that is asked for is damaged, all are, or the configuration is another one; the
            message says what differs.
    """
    if wanted != LATEST:
        check_wanted(wanted)
        try:
            return ResumePoint(Path(wanted), _read(Path(wanted), config, sizes_only))
        except DamagedError as error:
            raise ValueError(f"--resume_from_checkpoint {wanted}: no whole checkpoint: {error}") from None
    candidates = _newest_first(folder)
    passed_over = [f"{path} is half-written: passed over" for path in folder.half_written()]
    for path in candidates:
        try:
            return ResumePoint(path, _read(path, config, sizes_only), tuple(passed_over))
        except DamagedError as error:
            passed_over.append(f"{path} is not whole ({error}): passed over")
    if candidates:  # also for a copied run whose only checkpoint is `latest`: do not repeat its steps unasked
        raise ValueError(
            f"--resume_from_checkpoint latest: no checkpoint in {folder.ckpts} is whole ({passed_over[-1]}); "
            "give another --run_dir"
        )
    return ResumePoint(passed_over=tuple(passed_over))


def check_wanted(wanted: str) -> None:
    """Check that `--resume_from_checkpoint` is "latest" or names a folder, and not that of a run or of its checkpoints.

    Raises:
        ValueError: it does not.
    """
    try:
        known = wanted == LATEST or stat.S_ISDIR(os.stat(wanted).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        known = False
    except OSError as error:
        raise ValueError(f"--resume_from_checkpoint {wanted}: cannot be read ({error.strerror})") from None
    if not known:
        raise ValueError(f"--resume_from_checkpoint {wanted}: no such folder; give latest, or a checkpoint's")
    if wanted != LATEST and not os.path.exists(Path(wanted) / MANIFEST):
        inside = [path for place in (Path(wanted), Path(wanted) / CKPTS) for _, path in step_folders(place)]
        if inside:
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: is no checkpoint; give one in it, such as {inside[-1]}, or latest "
                "for that of --run_dir"
            )


def _newest_first(folder: RunFolder) -> list[Path]:
    """Order the checkpoints: the one that `latest` points to, then those of earlier steps, then those of later steps.

    A later checkpoint was left by a run that has since been resumed from an earlier one. If instead it is younger than
    `latest` and its step is on record, the process was killed before it moved the link, and the checkpoint comes first.
    """
    found, newest = folder.numbered()[::-1], folder.latest()
    if newest not in found:
        return [newest, *found] if newest else found
    later, earlier = found[: found.index(newest)], found[found.index(newest) :]
    recorded = max((each["step"] for each in read_records(folder.metrics)), default=0) if folder.metrics.exists() else 0
    unlinked = [path for path in later if _written_at(path) > _written_at(newest) and step_of(path) <= recorded]
    return [*unlinked, *earlier, *(path for path in later if path not in unlinked)]


def _written_at(checkpoint: Path) -> float:
    """Return when the last file of a checkpoint was written; 0 if that file is missing."""
    manifest = checkpoint / MANIFEST
    return manifest.stat().st_mtime if manifest.is_file() else 0.0


def _read(checkpoint: Path, config: Config, sizes_only: bool) -> Progress:
    """Return the progress of a whole checkpoint that `config` continues.

    Numbers that the run would have to find anew, such as that of `--k_anchor auto`, are set to the checkpoint's.

    Raises:
        DamagedError: a file is missing, truncated or altered.
        ValueError: a run of another configuration or another version wrote the checkpoint.
    """
    try:
        manifest = read_manifest(checkpoint)
    except ValueError as error:
        raise DamagedError(str(error)) from None
    try:
        progress = Progress(**manifest["progress"])
        _check_counts(progress)
        theirs = from_dict(manifest["config"], MANIFEST)
    except DamagedError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: not of this version ({error})") from None
    config.take_found(theirs)
    if differences := config.differences(theirs):
        teacher = theirs.model.teacher_id
        there = os.path.isdir(teacher) or parse_id(teacher)  # a commit of the Hub cannot be moved
        moved = "" if there else f"; was the model {teacher} moved? Put it back, or a link to it"
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: of another configuration ({'; '.join(differences)}){moved}"
        )
    if progress.models is not None and not sizes_only:
        _check_models(checkpoint, progress.models, config)
    try:
        (check_sizes if sizes_only else check_files)(checkpoint, manifest)
    except ValueError as error:
        raise DamagedError(str(error)) from None
    return progress


def _check_models(checkpoint: Path, before: Identity, config: Config) -> None:
    """Check that the teacher has the content that the checkpoint was trained with, which its path does not show.

    Raises:
        ValueError: the content differs, or a file cannot be read.
    """
    if changed := changed_parts(before, identify_models(config)):
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: --teacher_id {config.model.teacher_id} has changed since in "
            f"{', '.join(changed)}; put the old files back, or give another --run_dir"
        )


def _check_counts(progress: Progress) -> None:
    """Check that the counts of a manifest are possible: a file may hold anything.

    Raises:
        DamagedError: names the first count that is not.
    """
    counts = {"step": progress.step, "global_batch_size": progress.global_batch_size}
    if progress.total_steps is not None:
        counts["total_steps"] = progress.total_steps
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise DamagedError(f"{MANIFEST} says that {name} is {count!r}, which must be a whole number, at least 1")
    if not isinstance(progress.left_behind, list) or any(type(step) is not int for step in progress.left_behind):
        raise DamagedError(f"{MANIFEST} says that left_behind is {progress.left_behind!r}, which must be steps")
    for name, count in progress.updates.items():
        if type(count) is not int or not 0 <= count <= progress.step:
            raise DamagedError(f"{MANIFEST} counts {count!r} updates of {name} in {progress.step} steps")
