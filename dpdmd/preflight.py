"""Everything that can be told before a model loads: paths, files, shapes, device, run folder. Every rank runs it."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from dpdmd import checkpoint
from dpdmd.config import Config
from dpdmd.evaluation.plan import EvalPlan, plan_evaluation
from dpdmd.families.layouts import LAYOUTS, read_note
from dpdmd.prompts import read_prompts
from dpdmd.run_folder import RunFolder
from dpdmd.schedules import parse_sigmas


@dataclass(frozen=True)
class Plan:
    """A run that may start.

    Attributes:
        checkpoint, progress: what it continues, or None.
        warnings: one line each, for the log.
    """

    config: Config
    folder: RunFolder
    prompts: list[str]
    evaluation: EvalPlan
    checkpoint: Path | None
    progress: checkpoint.Progress | None
    warnings: list[str]


def check(config: Config) -> Plan:
    """Check all that `config` points to.

    Raises:
        ValueError: one line that names the flag or file and what to do.
    """
    _check_models(config)
    _check_device(config)
    _check_tracker(config)
    prompts = read_prompts(Path(config.data.prompt_txt))
    evaluation = plan_evaluation(config.eval)
    folder = RunFolder.from_config(config.run)
    found, progress = _check_folder(config, folder)
    warnings = [
        f"{path} does not lie under {folder.root}: this run's files are scattered" for path in folder.scattered()
    ]
    if config.run.resume_from_checkpoint and not found:
        warnings.append(f"no checkpoint in {folder.ckpts} yet: starting at step 0")
    if evaluation.skipped:
        warnings.append(evaluation.skipped)
    return Plan(config, folder, prompts, evaluation, found, progress, warnings)


def _check_models(config: Config) -> None:
    model, data, method, layout = config.model, config.data, config.method, LAYOUTS[config.model.family]
    teacher = Path(model.teacher_id)
    layout.check(teacher, "--teacher_id")
    if data.max_sequence_length is None:
        data.max_sequence_length = read_note(teacher).max_sequence_length
    expected = layout.network_config(teacher)
    for flag, folder in (("--student_id", model.student_id), ("--fake_id", model.fake_id)):
        layout.check(Path(folder), flag, network_only=True)
        found = layout.network_config(Path(folder))
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if differing:
            raise ValueError(f"{flag} {folder}: not the teacher's architecture ({', '.join(differing)} differ)")
    layout.check_size(teacher, data.height, data.width)
    try:
        parse_sigmas(method.student_sigmas, method.stu_inference_steps, layout.shift(teacher))
    except ValueError as error:
        raise ValueError(f"--student_sigmas: {error}") from None


def _check_device(config: Config) -> None:
    if config.optim.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"--bf16: {torch.cuda.get_device_name()} has no bf16; leave the flag out")


def _check_tracker(config: Config) -> None:
    tracker = config.run.report_to
    if tracker != "none" and find_spec(tracker) is None:
        raise ValueError(f"--report_to {tracker}: the package is not installed; pip install {tracker}, or give none")


def _check_folder(config: Config, folder: RunFolder) -> tuple[Path | None, checkpoint.Progress | None]:
    wanted = config.run.resume_from_checkpoint
    existing = next(path for path in (folder.root.absolute(), *folder.root.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--run_dir {folder.root}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"--run_dir {folder.root}: {existing} is not writable")
    if wanted is None:
        if folder.is_used():
            raise ValueError(
                f"--run_dir {folder.root}: is not empty; --resume_from_checkpoint latest continues it, or give another"
            )
        return None, None
    found = checkpoint.find(folder, wanted)
    return found, checkpoint.read_progress(found, config) if found else None
