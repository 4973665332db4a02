"""Save and resume everything that continuing needs, atomically; export the student as a pipeline folder.

STEP/student/                    a complete pipeline folder: diffusers loads it, and a resumed run starts from it
STEP/state/fake.safetensors      the fake score
STEP/state/optimizer_*.safetensors
STEP/state/state.json            step, updates of each network, configuration, versions

Random draws, the data position and the schedules are functions of the step, so they need no saving.
"""

import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dpdmd import __version__
from dpdmd.config import Config, from_dict
from dpdmd.families.base import Family
from dpdmd.families.layouts import Note, read_json
from dpdmd.run_folder import LATEST, RunFolder

STUDENT, STATE = "student", "state"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: updates done, of both networks together.
        student_updates, fake_updates: of each.
        global_batch_size: prompts an update uses; fixes the data position.
    """

    step: int
    student_updates: int
    fake_updates: int
    global_batch_size: int


@dataclass(frozen=True)
class Snapshot:
    """Whole, unsharded state on the CPU: what goes to disk."""

    progress: Progress
    student: dict[str, Tensor]
    fake: dict[str, Tensor]
    optimizer_student: dict[str, Tensor]
    optimizer_fake: dict[str, Tensor]


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("torch", "diffusers", "transformers", "accelerate")
    return {
        "dpdmd": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def _sync_tree(folder: Path) -> None:
    """Flush every file and folder below to the disk, so that the rename cannot come first."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def save(folder: RunFolder, snapshot: Snapshot, config: Config, family: Family, note: Note, *, last: bool) -> Path:
    """Write one checkpoint under a temporary name, rename it, then move `latest` to it. Rank 0 only.

    The parts of the student's pipeline that are the teacher's are links, or copies in the `last` checkpoint.
    """
    target = folder.checkpoint(snapshot.progress.step)
    for leftover in folder.ckpts.glob(".step_*.tmp"):
        shutil.rmtree(leftover)
    temporary = folder.ckpts / f".{target.name}.tmp"
    (temporary / STATE).mkdir(parents=True)
    family.export(temporary / STUDENT, snapshot.student, Path(config.model.teacher_id), note, copy=last)
    for name in ("fake", "optimizer_student", "optimizer_fake"):
        save_file(
            {key: value.contiguous() for key, value in getattr(snapshot, name).items()},
            temporary / STATE / f"{name}.safetensors",
        )
    state = {"progress": vars(snapshot.progress), "config": config.as_dict(), "versions": versions()}
    (temporary / STATE / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    _sync_tree(temporary)
    if target.exists():  # a run resumed from an older checkpoint comes past this step again
        shutil.rmtree(target)
    os.replace(temporary, target)
    folder.point(LATEST, target)
    if limit := config.run.checkpoints_total_limit:
        for old in folder.checkpoints()[:-limit]:
            if old not in (target, folder.best()):
                shutil.rmtree(old)
    return target


def find(folder: RunFolder, wanted: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names.

    None for "latest" where there is none yet: a job that is always launched to resume starts its first run so.

    Raises:
        ValueError: a path that is no complete checkpoint.
    """
    found = folder.latest() if wanted == LATEST else Path(wanted)
    if found is None:
        return None
    if not (found / STATE / "state.json").is_file():
        raise ValueError(f"--resume_from_checkpoint {wanted}: {found} is no checkpoint (no {STATE}/state.json in it)")
    return found


def read_progress(checkpoint: Path, config: Config) -> Progress:
    """Progress of a checkpoint that `config` continues.

    Raises:
        ValueError: it was written by a run of another configuration; the message says what differs.
    """
    state: dict[str, Any] = read_json(checkpoint / STATE / "state.json")
    try:
        progress = Progress(**state["progress"])
        theirs = from_dict(state["config"], str(checkpoint))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: {STATE}/state.json is not of this version ({error})"
        ) from None
    if differences := config.differences(theirs):
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: of another configuration ({'; '.join(differences)})")
    return progress


def load_state(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """One of `fake`, `optimizer_student`, `optimizer_fake`, on the CPU."""
    return load_file(checkpoint / STATE / f"{name}.safetensors")
