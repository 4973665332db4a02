"""Everything that can be told before a model loads: paths, files, shapes, device, run folder. Every rank runs it."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from dpdmd.config import Config
from dpdmd.config.options import DEFAULT_MAX_STEPS, MethodConfig, OptimConfig
from dpdmd.config.validation import unused_flag_warnings
from dpdmd.data.prompts import fingerprint, read_prompts
from dpdmd.distributed.launch_env import check_launch, read_launch
from dpdmd.evaluation.in_loop_setup import EvalSetup, set_up_evaluation
from dpdmd.methods.perceptual_files import check_perceptual
from dpdmd.methods.update_schedule import num_student_updates
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.compilation import check_compiler
from dpdmd.models.noise_schedule import Schedule
from dpdmd.models.registry import LAYOUTS, adapters
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.run_folder import RunFolder
from dpdmd.training import checkpoint
from dpdmd.training.memory_estimate import MemoryEstimate, estimate_memory, fewest_recomputed_blocks
from dpdmd.training.memory_items import Topology
from dpdmd.utils.paths import check_writable, existing

OUT_OF_PROPORTION = 10  # times this machine's memory: no error of the plan, and no swap, is as large


@dataclass(frozen=True)
class RunSetup:
    """A run that may start.

    Attributes:
        checkpoint, progress: what it continues, or None.
        memory: what it will take of its device.
        warnings: one line each, for the log.
    """

    config: Config
    folder: RunFolder
    prompts: list[str]
    evaluation: EvalSetup
    checkpoint: Path | None
    progress: checkpoint.Progress | None
    memory: MemoryEstimate
    warnings: list[str]


def check(config: Config) -> RunSetup:
    """Check all that `config` points to.

    Raises:
        ValueError: one line that names the flag or file and what to do.
    """
    check_launch()
    check_agreement(config.optim)
    with _odd_files_told(config):
        _check_models(config)
    _check_device(config)
    if config.optim.compile:
        check_compiler(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    _check_tracker(config)
    _check_optimizer(config)
    for flag, cache in (
        ("--cache_text_embeddings", config.data.cache_text_embeddings),
        ("--teacher_cache", config.method.teacher_cache),
    ):
        if cache:
            check_writable(flag, Path(cache))
    if config.method.perceptual_path:
        check_perceptual(config.method.perceptual, Path(config.method.perceptual_path))
    prompts = read_prompts(Path(config.data.prompt_txt))
    evaluation = set_up_evaluation(config.eval)
    folder = RunFolder.from_config(config.run)
    found = _check_folder(config, folder)
    _check_prompts(config, prompts, found)
    stop = total_steps(config, len(prompts), _global_batch_size(config))
    _check_turns(config, stop)
    _check_space(config, folder, stop, found, evaluation)
    warnings = _warnings(config, folder, found, evaluation, stop)
    topology, device = Topology.from_environment(), _device_bytes()
    with _odd_files_told(config):
        if config.optim.recomputed_blocks == "auto":
            config.optim.recomputed_blocks = fewest_recomputed_blocks(config, evaluation, topology, device)
        memory = estimate_memory(config, evaluation, topology, device)
    warnings += memory.warnings() if device else _check_host(memory)
    _check_contents(config, evaluation)
    return RunSetup(config, folder, prompts, evaluation, found.path, found.progress, memory, warnings)


def _warnings(
    config: Config, folder: RunFolder, found: checkpoint.ResumePoint, evaluation: EvalSetup, stop: int
) -> list[str]:
    """What may be meant, and should be known: a line each."""
    warnings = [
        f"{path} does not lie under {folder.root}: this run's files are scattered" for path in folder.scattered()
    ]
    warnings += found.passed_over
    if config.run.resume_from_checkpoint and not found.path:
        warnings.append(f"no checkpoint in {folder.ckpts} yet: starting at step 0")
    pair = adapters(config.model)
    if pair and pair.fake.rank < pair.student.rank:
        warnings.append(f"--fake_lora_rank {pair.fake.rank} is below the student's: the fake score may fall behind it")
    if evaluation.skipped:
        warnings.append(evaluation.skipped)
    warnings += unused_flag_warnings(config.method.method, config.given, evaluates=bool(evaluation.sets))
    if not num_student_updates(stop, config.method):
        warnings.append(f"the run ends at step {stop}, before the student's first update: it learns nothing")
    return warnings


def _device_bytes() -> int | None:
    """What this process's GPU has; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(read_launch().local_rank).total_memory


def _check_host(memory: MemoryEstimate) -> list[str]:
    """Compare the plan with this machine's memory, where a run without a GPU would have to live.

    Returns:
        A warning where it may not fit; a system without such figures has none.

    Raises:
        ValueError: it is out of all proportion, and the system would kill the run without a word.
    """
    try:
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return []
    told = f"{memory.summary()}; this machine has {host / 1e9:.1f} GB of memory; {memory.advice()}"
    if memory.total > OUT_OF_PROPORTION * host:
        raise ValueError(f"--batch_size, --height, --width: the run cannot fit: {told}")
    return [f"the run may not fit this machine: {told}"] if memory.total > host else []


@contextmanager
def _odd_files_told(config: Config) -> Iterator[None]:
    """One line in place of what our own arithmetic makes of a configuration file of values that it does not expect.

    Raises:
        ValueError: it met one.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(
            f"--teacher_id {config.model.teacher_id}: one of its configuration files holds what is not expected "
            f"({type(error).__name__}: {error})"
        ) from None


def _check_models(config: Config) -> None:
    model, data, method, layout = config.model, config.data, config.method, LAYOUTS[config.model.family]
    teacher = Path(model.teacher_id)
    check_folder(layout, teacher, "--teacher_id", no_t5=model.no_t5)
    data.max_sequence_length = layout.text_length(
        teacher, data.max_sequence_length, read_sampling_defaults(teacher, layout.defaults)
    )
    expected = layout.network_config(teacher)
    for flag, folder in (("--student_id", model.student_id), ("--fake_id", model.fake_id)):
        check_folder(layout, Path(folder), flag, network_only=True)
        found = layout.network_config(Path(folder))
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if differing:
            raise ValueError(f"{flag} {folder}: not the teacher's architecture ({', '.join(differing)} differ)")
    layout.check_size(teacher, data.height, data.width)
    if pair := adapters(model):
        try:
            layout.adapted_layers(teacher, pair.student.targets)
        except ValueError as error:
            raise ValueError(f"--lora_targets: {error}") from None
    _check_grids(method, layout.schedule(teacher))


def _check_contents(config: Config, evaluation: EvalSetup) -> None:
    """Look closer at the models' and the scorers' files; last of all, since it imports what takes seconds."""
    from dpdmd.evaluation.scorers import check_scorer_contents
    from dpdmd.methods.perceptual import check_perceptual_contents
    from dpdmd.models.checks.weights import check_contents

    model, layout = config.model, LAYOUTS[config.model.family]
    check_contents(layout, Path(model.teacher_id), "--teacher_id", no_t5=model.no_t5)
    for flag, folder in (("--student_id", model.student_id), ("--fake_id", model.fake_id)):
        if folder != model.teacher_id:
            check_contents(layout, Path(folder), flag, network_only=True)
    check_scorer_contents(evaluation.paths)
    if config.method.perceptual_path:
        check_perceptual_contents(config.method.perceptual, Path(config.method.perceptual_path))


def _check_grids(method: MethodConfig, schedule: Schedule) -> None:
    try:
        schedule.default_sigmas(method.teacher_infer_steps)
    except ValueError as error:
        raise ValueError(f"--teacher_infer_steps {method.teacher_infer_steps}: {error}") from None
    try:
        schedule.parse_sigmas(method.student_sigmas, method.stu_inference_steps)
    except ValueError as error:
        raise ValueError(f"--student_sigmas: {error}") from None


def _check_device(config: Config) -> None:
    rank, count = read_launch().local_rank, torch.cuda.device_count()
    if torch.cuda.is_available() and rank >= count:
        raise ValueError(
            f"--num_processes of the launcher: process {rank + 1} of this machine has no device, there are {count}; "
            "start as many processes as there are devices"
        )
    if config.optim.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"--bf16: {torch.cuda.get_device_name()} has no bf16; leave the flag out")


def _check_tracker(config: Config) -> None:
    tracker = config.run.report_to
    if tracker != "none" and find_spec(tracker) is None:
        raise ValueError(f"--report_to {tracker}: the package is not installed; pip install {tracker}, or give none")


def _check_optimizer(config: Config) -> None:
    if config.optim.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise ValueError(
            "--optimizer adamw_8bit: the package bitsandbytes is not installed; pip install 'dpdmd[memory]', or give "
            "adamw"
        )


def _check_folder(config: Config, folder: RunFolder) -> checkpoint.ResumePoint:
    wanted = config.run.resume_from_checkpoint
    for flag, path in folder.by_flag().items():
        check_writable(flag, path)
    if wanted is None:
        if folder.is_used():
            given = "--run_dir" if config.run.run_dir else "the run's folder, where the paths given lie,"
            raise ValueError(
                f"{given} {folder.root}: is not empty; --resume_from_checkpoint latest continues it, or give another"
            )
        return checkpoint.ResumePoint(None, None, [])
    return checkpoint.find(folder, wanted, config)


def _check_prompts(config: Config, prompts: list[str], found: checkpoint.ResumePoint) -> None:
    """A run goes through one list of prompts: with another, or in another order, its epochs would not be any."""
    began_with = found.progress and found.progress.prompts
    if began_with and began_with != fingerprint(prompts):
        raise ValueError(
            f"--prompt_txt {config.data.prompt_txt}: not the prompts that {found.path} was trained on; give those, or "
            "another --run_dir"
        )


def total_steps(config: Config, num_prompts: int, global_batch_size: int) -> int:
    """Updates of a run: `max_steps` or `max_epoch` x ceil(prompts / global batch), whichever ends first."""
    by_epoch = config.run.max_epoch and config.run.max_epoch * math.ceil(num_prompts / global_batch_size)
    return min((limit for limit in (config.run.max_steps, by_epoch) if limit), default=DEFAULT_MAX_STEPS)


def _global_batch_size(config: Config) -> int:
    return config.optim.batch_size * config.optim.grad_accum * read_launch().processes


def _check_turns(config: Config, stop: int) -> None:
    """Compare what is counted in updates with how many of them `stop` steps have."""
    head_start, warmup, students = (
        config.method.fake_head_start,
        config.optim.lr_warmup_steps,
        num_student_updates(stop, config.method),
    )
    if head_start and not students:
        raise ValueError(
            f"--fake_head_start {head_start}: the run ends at step {stop}, before the student's first update; give "
            "fewer, or more --max_steps"
        )
    if warmup and warmup >= (fewest := min(students, stop - students)):
        raise ValueError(
            f"--lr_warmup_steps {warmup}: one network has {fewest} updates in {stop} steps; give fewer, or more "
            "--max_steps"
        )


def _check_space(
    config: Config, folder: RunFolder, stop: int, found: checkpoint.ResumePoint, evaluation: EvalSetup
) -> None:
    """Compare what the checkpoints to come will take with what the disk has.

    Raises:
        ValueError: it has too little.
    """
    layout, teacher = LAYOUTS[config.model.family], Path(config.model.teacher_id)
    run, start = config.run, found.progress.step if found.progress else 0
    count = max(0, math.ceil(stop / run.ckpt_every) - start // run.ckpt_every)
    if run.checkpoints_total_limit:
        # One more than the limit: the oldest goes when the newest is whole. And the best, which stays beside them.
        most = run.checkpoints_total_limit + 1 + bool(evaluation.sets)
        count = min(count, max(1, most - len(folder.checkpoints())))
    if not count:
        return
    needed = count * checkpoint.size_in_bytes(config)
    if adapters(config.model) is None:  # the last export is whole
        exports = 1 if config.optim.ema_decay is None else 2
        needed += exports * layout.bytes_beside_network(teacher, no_t5=config.model.no_t5)
    free = shutil.disk_usage(existing(folder.ckpts)).free
    if needed > free:
        raise ValueError(
            f"--ckpt_dir {folder.ckpts}: {free / 1e9:.2f} GB are free, but {count} checkpoints will take about "
            f"{needed / 1e9:.2f} GB; free some, lower --checkpoints_total_limit, or give another --run_dir"
        )


def check_agreement(optim: OptimConfig) -> None:
    """Check that accelerate's file sets no knob of ours to something else.

    Raises:
        ValueError: it does.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "bf16" if optim.bf16 else "no"):
        raise ValueError(f"accelerate's mixed_precision is {asked}, --bf16 is {optim.bf16}: set it to 'no' there")
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation not in ("1", str(optim.grad_accum)):
        raise ValueError(
            f"accelerate's gradient_accumulation_steps is {accumulation}, --grad_accum is {optim.grad_accum}"
        )
