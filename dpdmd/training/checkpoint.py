"""Save and resume everything that continuing needs, atomically; export the student as a pipeline folder.

STEP/manifest.json               progress, configuration, versions; size and checksum of every file
STEP/student/                    a complete pipeline folder: diffusers loads it, and a resumed run starts from it
STEP/lora/                       in its place with --lora_rank: the student's adapter for diffusers and for ComfyUI
STEP/student_ema/                with --ema_decay its moving average, exported as the student is (or lora_ema/)
STEP/state/*.safetensors         what else the method trains, and optimizer_* of all that it trains

Random draws, the data position and the schedules are functions of the step, so they need no saving.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpdmd.config import Config, from_dict
from dpdmd.models.activation_memory import FP32
from dpdmd.models.base import Family
from dpdmd.models.registry import LAYOUTS, adapters
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.run_folder import LATEST, LORA, STUDENT, RunFolder, read_records
from dpdmd.training.optimizers import bytes_of_moments
from dpdmd.utils.manifest import MANIFEST, check_files, read_manifest, write_manifest
from dpdmd.utils.versions import versions

STATE, OPTIMIZER = "state", "optimizer_"


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


class DamagedError(ValueError):
    """A checkpoint is not as it was written."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: updates done, student's and fake score's together.
        updates: of each network that the method trains, by its name.
        global_batch_size: prompts an update uses; fixes the data position.
        prompts: fingerprint of all of them, in their order; "" in what an older version saved.
    """

    step: int
    updates: dict[str, int]
    global_batch_size: int
    prompts: str = ""


@dataclass(frozen=True)
class ResumePoint:
    """What a run continues.

    Attributes:
        path, progress: the checkpoint, or None where there is none yet.
        passed_over: one line about each newer one that is not whole.
    """

    path: Path | None
    progress: Progress | None
    passed_over: list[str]


@dataclass(frozen=True)
class Snapshot:
    """Whole, unsharded state on the CPU: what goes to disk.

    Attributes:
        networks, optimizers: the state of each network that the method trains, and of its optimizer, by its name.
        average: the student's moving average, where there is one.
    """

    progress: Progress
    networks: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Tensor]]
    average: dict[str, Tensor] | None = None


def _sync_tree(folder: Path) -> None:
    """Flush every file and folder below to the disk, so that the rename cannot come first."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def student_folder(checkpoint: Path, config: Config) -> Path:
    """Where the student's export lies in a checkpoint."""
    return checkpoint / (STUDENT if adapters(config.model) is None else LORA)


def average_folder(checkpoint: Path, config: Config) -> Path:
    """Where its moving average's export lies."""
    folder = student_folder(checkpoint, config)
    return folder.with_name(f"{folder.name}_ema")


def size_in_bytes(config: Config) -> int:
    """What one checkpoint takes, by count: fp32 weights of student, average and fake score, and moments.

    Both moments of what is trained, so not of SD3's position table. A discriminator's heads are small beside them.
    """
    exports = 1 if config.optim.ema_decay is None else 2
    layout, teacher = LAYOUTS[config.model.family], Path(config.model.teacher_id)
    moments = bytes_of_moments(config.optim)
    if pair := adapters(config.model):
        student, fake = (
            layout.count_adapter_parameters(teacher, part.targets, part.rank) for part in (pair.student, pair.fake)
        )
        weights = 2 * exports * student + fake  # the student's also for ComfyUI
        return FP32 * weights + int(moments * (student + fake))
    return FP32 * (exports + 1) * layout.count_parameters(teacher) + int(2 * moments * layout.count_trained(teacher))


def export_student(
    folder: Path, state: dict[str, Tensor], config: Config, family: Family, defaults: SamplingDefaults, *, copy: bool
) -> None:
    """Write the student for its users: a pipeline folder, with LoRA the adapter; `copy` as in `Family.export`."""
    teacher = Path(config.model.teacher_id)
    if pair := adapters(config.model):
        family.export_lora(folder, state, pair.student, teacher, defaults)
    else:
        family.export(folder, state, teacher, defaults, copy=copy)


def save(
    folder: RunFolder, snapshot: Snapshot, config: Config, family: Family, defaults: SamplingDefaults, *, last: bool
) -> Path:
    """Write one checkpoint under a temporary name, rename it, then move `latest` to it. Rank 0 only.

    The parts of the student's pipeline that are the teacher's are links, or copies in the `last` checkpoint.

    Raises:
        SaveError: the disk is full or gone; nothing half-written is left behind.
    """
    target = folder.checkpoint(snapshot.progress.step)
    temporary = folder.ckpts / f".{target.name}.tmp"
    try:
        (temporary / STATE).mkdir(parents=True)
        exports = {student_folder(temporary, config): snapshot.networks[STUDENT]}
        if snapshot.average is not None:
            exports[average_folder(temporary, config)] = snapshot.average
        for export, state in exports.items():
            export_student(export, state, config, family, defaults, copy=last)
        states = {name: state for name, state in snapshot.networks.items() if name != STUDENT}
        states |= {f"{OPTIMIZER}{name}": state for name, state in snapshot.optimizers.items()}
        for name, state in states.items():
            save_file(
                {key: value.contiguous() for key, value in state.items()}, temporary / STATE / f"{name}.safetensors"
            )
        about = {"progress": vars(snapshot.progress), "config": config.as_dict(), "versions": versions()}
        write_manifest(temporary, about)
        _sync_tree(temporary)
        replaced = _set_aside(target) if target.exists() else None  # a run resumed from an older one is here again
        os.replace(temporary, target)
        folder.point(LATEST, target)
        if replaced:
            shutil.rmtree(replaced)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SaveError(f"checkpoint {target} could not be written ({error}); the ones before it are whole") from error
    thin(folder, config)
    return target


def thin(folder: RunFolder, config: Config) -> None:
    """Delete what is more than `checkpoints_total_limit`: the oldest, but neither `latest` nor `best`. Rank 0 only."""
    if limit := config.run.checkpoints_total_limit:
        for old in folder.checkpoints()[:-limit]:
            if old not in (folder.latest(), folder.best()):
                shutil.rmtree(_set_aside(old))


def _set_aside(checkpoint: Path) -> Path:
    """Another name for what is to be deleted: who comes after a kill must not find half a checkpoint under its own."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    os.replace(checkpoint, doomed)
    return doomed


def find(folder: RunFolder, wanted: str, config: Config) -> ResumePoint:
    """The checkpoint that `--resume_from_checkpoint` names; of "latest", the newest that is whole.

    Nothing for "latest" where there is none yet: a job that is always launched to resume starts its first run so.

    Raises:
        ValueError: a path that is no whole checkpoint, none whole among those there, or one of another configuration;
            the message says what differs.
    """
    if wanted != LATEST:
        if not os.path.isdir(wanted):
            raise ValueError(f"--resume_from_checkpoint {wanted}: no such folder; give latest, or a checkpoint's")
        try:
            return ResumePoint(Path(wanted), _read(Path(wanted), config), [])
        except DamagedError as error:
            raise ValueError(f"--resume_from_checkpoint {wanted}: no whole checkpoint: {error}") from None
    candidates = _newest_first(folder)
    passed_over = [f"{path} is half-written: passed over" for path in folder.half_written()]
    for path in candidates:
        try:
            return ResumePoint(path, _read(path, config), passed_over)
        except DamagedError as error:
            passed_over.append(f"{path} is not whole ({error}): passed over")
    if candidates:  # also where it is a copied run's `latest` alone: its steps are not to be trained anew unasked
        raise ValueError(
            f"--resume_from_checkpoint latest: no checkpoint in {folder.ckpts} is whole ({passed_over[-1]}); "
            "give another --run_dir"
        )
    return ResumePoint(None, None, passed_over)


def _newest_first(folder: RunFolder) -> list[Path]:
    """Where to look for the newest: at what `latest` points to, then down the steps.

    One of a later step was left by a run that was resumed from an earlier one since, and comes last. Unless it is the
    younger one and its step is on record: then the process was killed before it moved the link.
    """
    found, newest = folder.checkpoints()[::-1], folder.latest()
    if newest not in found:
        return [newest, *found] if newest else found
    later, below = found[: found.index(newest)], found[found.index(newest) :]
    recorded = max((each["step"] for each in read_records(folder.metrics)), default=0) if folder.metrics.exists() else 0
    unlinked = [path for path in later if _written(path) > _written(newest) and step_of(path) <= recorded]
    return [*unlinked, *below, *(path for path in later if path not in unlinked)]


def _written(checkpoint: Path) -> float:
    """When a checkpoint's last file was written; 0 where that is gone."""
    manifest = checkpoint / MANIFEST
    return manifest.stat().st_mtime if manifest.is_file() else 0.0


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.rpartition("_")[2])


def _read(checkpoint: Path, config: Config) -> Progress:
    """Progress of a whole checkpoint that `config` continues.

    Raises:
        DamagedError: a file of it is missing, truncated or altered.
        ValueError: it was written by a run of another configuration, or by another version.
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
    if differences := config.differences(theirs):
        teacher = theirs.model.teacher_id
        moved = "" if os.path.isdir(teacher) else f"; was the model {teacher} moved? Put it back, or a link to it"
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: of another configuration ({'; '.join(differences)}){moved}"
        )
    try:
        check_files(checkpoint, manifest)
    except ValueError as error:
        raise DamagedError(str(error)) from None
    return progress


def _check_counts(progress: Progress) -> None:
    """Compare what a manifest counts with what can be: a file may hold anything.

    Raises:
        DamagedError: the first that is something else.
    """
    for name, count in {"step": progress.step, "global_batch_size": progress.global_batch_size}.items():
        if type(count) is not int or count < 1:
            raise DamagedError(f"{MANIFEST} says that {name} is {count!r}, which must be a whole number, at least 1")
    for name, count in progress.updates.items():
        if type(count) is not int or not 0 <= count <= progress.step:
            raise DamagedError(f"{MANIFEST} counts {count!r} updates of {name} in {progress.step} steps")


def load_state(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """A network of the method's but the student, or with OPTIMIZER before its name its optimizer, on the CPU."""
    return load_file(checkpoint / STATE / f"{name}.safetensors")
