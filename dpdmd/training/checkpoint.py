"""Checkpoints: their content, how they are written, and when they are deleted.

STEP/manifest.json               progress, configuration, versions; size and checksum of every file
STEP/student/                    a complete pipeline folder: diffusers loads it, and a resumed run starts from it
STEP/lora/                       instead of student/ with --lora_rank: the student's adapter for diffusers and ComfyUI,
                                 with alpha / rank in its weights
STEP/student_ema/ or lora_ema/   with --ema_decay: the student's moving average, exported like the student
STEP/state/*.safetensors         every other trained network, and optimizer_* of every trained network; with
                                 --lora_rank also the student's adapter as it is trained, and student_ema

Random draws, the data position and the schedules are functions of the step, so they need no saving.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpdmd.config import Config
from dpdmd.models.activation_memory import FP32
from dpdmd.models.base import Family
from dpdmd.models.identity import Identity, identify
from dpdmd.models.registry import LAYOUTS, adapters, identify_teacher
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.tensor_files import in_memory
from dpdmd.report.card_facts import PIPELINE, Card, Training, stored_dtype
from dpdmd.report.model_card import write_card
from dpdmd.run_folder import LATEST, LORA, LORA_EMA, STUDENT, STUDENT_EMA, RunFolder
from dpdmd.training.memory_items import count_state
from dpdmd.utils.atomic_files import is_temporary, temporary_path
from dpdmd.utils.folders import delete_tree, finish_folder
from dpdmd.utils.logging import logger
from dpdmd.utils.manifest import is_whole, write_manifest
from dpdmd.utils.versions import versions

STATE, OPTIMIZER = "state", "optimizer_"


class SaveError(RuntimeError):
    """A checkpoint could not be written; earlier checkpoints are unchanged."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: updates done, of the student and of the fake score together.
        updates: updates of each trained network, by name.
        global_batch_size: prompts of one update; with the step it fixes the data position.
        prompts: fingerprint of all prompts in their order; "" in checkpoints of older versions.
        models: identity of the models that stay as they are (`identify_models`); None in those of older versions.
        total_steps: the step at which the run was to end; None in those of older versions.
        left_behind: steps of other checkpoints, which are not on the way to this one.
    """

    step: int
    updates: dict[str, int]
    global_batch_size: int
    prompts: str = ""
    models: Identity | None = None
    total_steps: int | None = None
    left_behind: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Snapshot:
    """Whole, unsharded state on the CPU, ready to be written.

    Attributes:
        networks, optimizers: the state of each trained network and of its optimizer, by name.
        average: the student's moving average, or None.
    """

    progress: Progress
    networks: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Tensor]]
    average: dict[str, Tensor] | None = None


def identify_models(config: Config) -> Identity:
    """Return the identity of the models that a run reads and does not train: the teacher, a perceptual network.

    Raises:
        ValueError: a file cannot be read.
    """
    perceptual = config.method.perceptual_path
    return identify_teacher(config.model) | identify({"perceptual network": Path(perceptual) if perceptual else None})


def student_folder(checkpoint: Path, config: Config) -> Path:
    """Return the folder of the student's export in a checkpoint."""
    return checkpoint / (STUDENT if adapters(config.model) is None else LORA)


def average_folder(checkpoint: Path, config: Config) -> Path:
    """Return the folder of the moving average's export in a checkpoint."""
    return checkpoint / (STUDENT_EMA if adapters(config.model) is None else LORA_EMA)


def has_links(checkpoint: Path, config: Config) -> bool:
    """Return whether an export in a checkpoint has links in place of copies of the teacher's files."""
    exports = (student_folder(checkpoint, config), average_folder(checkpoint, config))
    return any(path.is_symlink() for folder in exports for path in folder.rglob("*"))


def size_in_bytes(config: Config) -> int:
    """Return the bytes of one checkpoint: fp32 weights of student, average and fake score, and their moments."""
    numbers, moments = count_state(config)
    copies = 1 if config.optim.ema_decay is None else 2
    if adapters(config.model):  # in state/, for diffusers, and for ComfyUI if its file differs
        copies *= 3 if LAYOUTS[config.model.family].comfyui_name else 2
    return FP32 * (copies * numbers["student"] + numbers["fake score"]) + moments


def export_student(
    folder: Path, state: dict[str, Tensor], config: Config, family: Family, defaults: SamplingDefaults, *, copy: bool
) -> None:
    """Write the student as a pipeline folder, or with LoRA as an adapter; `copy` as in `Family.export`."""
    teacher = Path(config.model.teacher_id)
    if pair := adapters(config.model):
        family.export_lora(folder, state, pair.student, teacher, defaults)
    else:
        family.export(folder, in_memory(state), teacher, defaults, copy=copy)


def student_card(name: str, config: Config, defaults: SamplingDefaults, training: Training | None) -> Card:
    """Return what the model card of an exported student is made from; `name` as in `Card`."""
    layout, teacher = LAYOUTS[config.model.family], Path(config.model.teacher_id)
    kind, dtype = PIPELINE, "float32"
    if adapters(config.model):
        kind, dtype = LORA, stored_dtype(layout, teacher)
    return Card(name, kind, layout, defaults, base=teacher, dtype=dtype, training=training)


def _write_card(folder: Path, step: int, num_prompts: int | None, config: Config, defaults: SamplingDefaults) -> None:
    """Write the model card of an exported student, without scores and images: those of its step come later."""
    flat = {name: value for group in config.as_dict().values() for name, value in group.items()}
    card = student_card(folder.name, config, defaults, Training(flat, step, num_prompts))
    write_card(folder, card, images=False)


def save(
    folder: RunFolder,
    snapshot: Snapshot,
    config: Config,
    family: Family,
    defaults: SamplingDefaults,
    *,
    last: bool,
    num_prompts: int | None = None,
) -> Path:
    """Write one checkpoint under a temporary name, rename it, then move `latest` to it. Rank 0 only.

    The exported pipeline links to the teacher's other parts; the `last` checkpoint has copies of them. The student's
    card says `num_prompts`.

    Raises:
        SaveError: the disk is full or gone, or the teacher's files cannot be read; nothing half-written remains.
    """
    target = folder.checkpoint(snapshot.progress.step)
    temporary = temporary_path(target)
    try:
        temporary.mkdir(parents=True)
        exports = {student_folder(temporary, config): snapshot.networks[STUDENT]}
        if snapshot.average is not None:
            exports[average_folder(temporary, config)] = snapshot.average
        for export, state in exports.items():
            export_student(export, state, config, family, defaults, copy=last)
            _write_card(export, snapshot.progress.step, num_prompts, config, defaults)
        _write_state(temporary / STATE, snapshot, adapter=adapters(config.model) is not None)
        about = {"progress": vars(snapshot.progress), "config": config.as_dict(), "num_prompts": num_prompts}
        write_manifest(temporary, {**about, "versions": versions()})
        finish_folder(temporary, sync=True)
        replaced = _set_aside(target) if os.path.lexists(target) else None  # a resumed run may reach a step again
        try:
            os.replace(temporary, target)
        except OSError:
            if replaced:
                os.replace(replaced, target)
            raise
        folder.point(LATEST, target)
        folder.saved.touch()
    except (OSError, ValueError, SafetensorError) as error:
        with suppress(OSError):
            delete_tree(temporary)
        raise SaveError(f"checkpoint {target} could not be written ({error}); the ones before it are whole") from error
    if replaced:
        _try_to_delete(replaced)
    delete_oldest(folder, config)
    return target


def _write_state(folder: Path, snapshot: Snapshot, *, adapter: bool) -> None:
    """Write what a resumed run needs beside the exports; the weights of an exported adapter are rounded with alpha."""
    folder.mkdir()
    states = {name: state for name, state in snapshot.networks.items() if adapter or name != STUDENT}
    if adapter and snapshot.average is not None:
        states[STUDENT_EMA] = snapshot.average
    states |= {f"{OPTIMIZER}{name}": state for name, state in snapshot.optimizers.items()}
    for name, state in states.items():
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")


def delete_oldest(folder: RunFolder, config: Config) -> None:
    """Delete the oldest checkpoints beyond `checkpoints_total_limit`, but neither `latest` nor `best`. Rank 0 only.

    Those of later steps than `latest` come first: the run has since been resumed from an earlier one. A folder that is
    no whole checkpoint does not count and is not deleted.
    """
    if limit := config.run.checkpoints_total_limit:
        whole, latest = [path for path in folder.checkpoints() if is_whole(path)], folder.latest()
        done = whole.index(latest) + 1 if latest in whole else len(whole)
        for old in (whole[done:] + whole[:done])[:-limit]:
            if old not in (folder.latest(), folder.best()):
                _try_to_delete(old)


def _set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint before it is deleted: a killed process must not leave half of it under its own name."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    delete_tree(doomed)
    os.replace(checkpoint, doomed)
    return doomed


def _try_to_delete(checkpoint: Path) -> None:
    """Delete a checkpoint that is no longer needed. If that fails, log a warning: the run itself is not at risk."""
    try:
        delete_tree(checkpoint if is_temporary(checkpoint) else _set_aside(checkpoint))
    except OSError as error:
        logger.warning("%s could not be deleted (%s)", checkpoint, error)


def load_state(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Load a state by its name: that of a trained network, or OPTIMIZER + that of an optimizer's network."""
    return load_file(checkpoint / STATE / f"{name}.safetensors")


def load_adapter(checkpoint: Path, name: str, export: Path, family: Family) -> dict[str, Tensor]:
    """Load the student's adapter, or its average (STUDENT_EMA), as trained; older versions have it in `export`."""
    stored = (checkpoint / STATE / f"{name}.safetensors").exists()
    return load_state(checkpoint, name) if stored else family.read_lora(export)
