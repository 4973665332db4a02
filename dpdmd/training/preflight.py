"""Check a run before any model loads: flags, paths, files, device, run folder, disk and memory. Every rank runs it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dpdmd.config import Config
from dpdmd.config.method_table import METHODS
from dpdmd.config.options import ADAPTIVE, DEFAULT_MAX_STEPS, MAX_COUNT, DataConfig, MethodConfig
from dpdmd.config.presets import as_typed
from dpdmd.config.scorer_table import DIVERSITY_SCORERS, SCORERS
from dpdmd.config.validation import unused_flag_warnings
from dpdmd.data.prompt_files import read_prompts, read_weighted_prompts
from dpdmd.data.prompts import PromptWeights, fingerprint
from dpdmd.distributed.launch_env import read_launch, single_process_warning
from dpdmd.evaluation.in_loop_setup import EvalSetup, set_up_evaluation
from dpdmd.methods.registry import steps_with_draws
from dpdmd.methods.update_schedule import diversity_weight, num_student_updates
from dpdmd.models.checks.distilled import why_distilled
from dpdmd.models.memory_estimate import MemoryEstimate, device_bytes
from dpdmd.models.registry import LAYOUTS, adapters
from dpdmd.run_folder import RunFolder
from dpdmd.training import checkpoint, resume
from dpdmd.training.lr_schedules import lr_share
from dpdmd.training.memory_estimate import estimate_memory, fewest_recomputed_blocks, machine_warnings
from dpdmd.training.memory_items import Topology
from dpdmd.training.model_sources import locate_models
from dpdmd.training.preflight_folder import check_folder, unreadable_named
from dpdmd.training.preflight_machine import check_machine
from dpdmd.training.preflight_models import check_models, check_weights, odd_values_explained
from dpdmd.training.resume import ResumePoint
from dpdmd.utils.hub_upload import check_upload
from dpdmd.utils.paths import check_free, check_writable


@dataclass(frozen=True)
class RunSetup:
    """A run that was checked and may start.

    Attributes:
        resume: where it starts.
        memory: estimate of what one process needs.
        global_batch_size: samples of one update, over all processes and micro-batches.
        total_steps: the update after which the run ends.
        warnings: one line each, for the log.
        weights: how often each prompt is drawn; None if all are drawn equally often.
    """

    config: Config
    folder: RunFolder
    prompts: list[str]
    evaluation: EvalSetup
    resume: ResumePoint
    memory: MemoryEstimate
    global_batch_size: int
    total_steps: int
    warnings: list[str]
    weights: PromptWeights | None = None


def check(config: Config, *, saves: bool = True) -> RunSetup:
    """Check everything that `config` points to. Models of the Hub become local folders.

    The files of a checkpoint are not read here, only their sizes: `resume_from` takes a point that was read.

    Args:
        saves: whether the run writes checkpoints, which need room.

    Raises:
        ValueError: one line that names the flag or file and what to do.
        OSError: a model cannot be fetched from the Hub.
    """
    check_machine(config)
    folder = RunFolder.from_config(config.run)
    check_upload(config.run.push_to_hub, config.run.hub_model_id, config.run.private, ("--run_dir", folder.root))
    check_folder(config, folder)
    if config.hub.download:  # read once more below: a wrong path must not cost a download
        read_training_prompts(config.data)
    locate_models(config)
    check_models(config)
    _check_caches(config)
    prompts, weights = read_training_prompts(config.data)
    evaluation = set_up_evaluation(config.eval, config.data.prompt_column, list(config.data.image_sizes))
    _check_adaptive_weight(config, evaluation)
    batch_size = config.optim.batch_size * config.optim.grad_accum * read_launch().processes
    steps = _total_steps(config, len(prompts), batch_size)
    _check_schedules(config, steps)
    wanted = config.run.resume_from_checkpoint
    with unreadable_named():
        point = resume.find(folder, wanted, config, sizes_only=True) if wanted else ResumePoint()
    on_gpu = device_bytes() is not None
    memory = estimate_of_process(config, evaluation, Topology.from_environment(), on_gpu=on_gpu)
    sides = "--sizes" if memory.size else "--height, --width"
    if on_gpu:
        memory_warnings = memory.warnings() + machine_warnings(config, read_launch().local_processes)
    else:
        memory_warnings = memory.host_warnings(f"--batch_size, {sides}")
    warnings = [*_warnings(config, folder, point, evaluation, steps), *memory_warnings]
    setup = RunSetup(config, folder, prompts, evaluation, point, memory, batch_size, steps, warnings, weights)
    _check_resume_point(setup)
    if saves:
        _check_space(setup)
    check_weights(config, evaluation)  # last: it imports what takes seconds
    return setup


def resume_from(setup: RunSetup, point: ResumePoint) -> RunSetup:
    """Return `setup` with another resume point, which is checked like the first.

    Raises:
        ValueError: one line that names the flag or file and what to do.
    """
    setup = replace(setup, resume=point)
    _check_resume_point(setup)
    _check_space(setup)
    return setup


def read_training_prompts(data: DataConfig) -> tuple[list[str], PromptWeights | None]:
    """Read the prompts, and their weights if `--prompt_weight_column` is given.

    Raises:
        ValueError: the file cannot be read; the message names it.
    """
    path, column = Path(data.prompt_txt), data.prompt_column
    if data.prompt_weight_column is None:
        return read_prompts(path, column=column), None
    prompts, weights = read_weighted_prompts(path, column, data.prompt_weight_column)
    return prompts, PromptWeights(np.asarray(weights))


def _total_steps(config: Config, num_prompts: int, global_batch_size: int) -> int:
    """Return the updates of a run, up to `max_steps` or the end of pass `max_epoch` over the prompts.

    A pass is ceil(prompts / global batch) updates that draw prompts.
    """
    steps, epochs = config.run.max_steps, config.run.max_epoch
    if epochs is None:
        return steps or DEFAULT_MAX_STEPS
    drawing = epochs * math.ceil(num_prompts / global_batch_size)
    return min(steps or MAX_COUNT, steps_with_draws(drawing, config.method))


def _check_adaptive_weight(config: Config, evaluation: EvalSetup) -> None:
    """Check that evaluations have a diversity score for lambda to follow."""
    scorers = {name for images in evaluation.sets for name in images.scorers}
    if _follows_variety(config.method) and not scorers & set(DIVERSITY_SCORERS):
        flags = " or ".join(f"--{SCORERS[name].files[0].flag}" for name in sorted(DIVERSITY_SCORERS))
        raise ValueError(
            f"--div_weight_schedule {ADAPTIVE}: lambda follows the diversity scores of evaluations, and there is none; "
            f"give {flags}, and not --eval_every 0"
        )


def _follows_variety(method: MethodConfig) -> bool:
    """Return whether lambda follows the diversity scores of evaluations."""
    return method.div_weight_schedule == ADAPTIVE and "div_weight_schedule" in METHODS[method.method].options


def _check_caches(config: Config) -> None:
    """Check that caches can be written. One with content may be read-only; it is an error later if it is incomplete."""
    for flag, cache in (
        ("--cache_text_embeddings", config.data.cache_text_embeddings),
        ("--teacher_cache", config.method.teacher_cache),
    ):
        try:
            filled = cache and any(Path(cache).glob("shard_*.safetensors"))  # as in `TensorCache`
        except OSError as error:
            raise ValueError(f"{flag} {cache}: cannot be read ({error.strerror}); give another folder") from None
        if cache and not filled:
            check_writable(flag, Path(cache))


def _check_schedules(config: Config, steps: int) -> None:
    """Check what is counted in updates against the number of updates in `steps`."""
    head_start, warmup = config.method.fake_head_start, config.optim.lr_warmup_steps
    students = num_student_updates(steps, config.method)
    if head_start and not students:
        raise ValueError(
            f"--fake_head_start {head_start}: the run ends at step {steps}, before the student's first update; give "
            "fewer, or more --max_steps"
        )
    if warmup and warmup >= (fewest := min(students, steps - students)):
        raise ValueError(
            f"--lr_warmup_steps {warmup}: one network has {fewest} updates in {steps} steps; give fewer, or more "
            "--max_steps"
        )


def estimate_of_process(config: Config, evaluation: EvalSetup, topology: Topology, *, on_gpu: bool) -> MemoryEstimate:
    """Estimate the memory of one process; sets `recomputed_blocks` if it is "auto".

    Args:
        on_gpu: whether the process runs on a GPU, of this machine or of another one.
    """
    device = device_bytes()
    with odd_values_explained(config):
        if config.optim.recomputed_blocks == "auto":
            count = fewest_recomputed_blocks(config, evaluation, topology, device)
            config.derive("optim", "recomputed_blocks", count)
        return estimate_memory(config, evaluation, topology, device, on_gpu=on_gpu)


def _warnings(config: Config, folder: RunFolder, point: ResumePoint, evaluation: EvalSetup, steps: int) -> list[str]:
    """Return a line for each setting that is allowed but probably not meant."""
    warnings = [
        f"{path} does not lie under {folder.root}: this run's files are scattered" for path in folder.scattered()
    ]
    if warning := single_process_warning():
        warnings.append(warning)
    if config.outvoted:
        warnings.append(
            f"--preset: a file of --config has other values than its {as_typed(config.outvoted)}, and wins; leave out "
            "one of both, or give these flags too"
        )
    if config.run.resume_from_checkpoint and not point.path:
        warnings.append(f"no checkpoint in {folder.ckpts} yet: starting at step 0")
    recorded = config.recorded.get("teacher_id")
    if reason := why_distilled(config.model.family, Path(config.model.teacher_id), recorded):
        warnings.append(
            f"--teacher_id {config.model.teacher_id}: {reason}. A distilled teacher has less variety to pass on, and "
            f"--teacher_guidance_scale {config.method.teacher_guidance_scale} was not part of its training: give the "
            "model that it was distilled from"
        )
    method, guidance = config.method, LAYOUTS[config.model.family].guidance
    for flag in ("teacher_guidance_scale", "real_guidance_scale"):
        if (scale := getattr(method, flag)) is not None and (weak := guidance.weakens(scale)):
            warnings.append(f"--{flag}: {weak}")
    if point.progress and point.progress.models is None:
        warnings.append(
            f"{point.path}: an older version wrote it without the content of its teacher; whether "
            f"--teacher_id {config.model.teacher_id} has changed since is unknown"
        )
    warnings += _changed_curves(config, point, steps)
    pair = adapters(config.model)
    if pair and pair.fake.rank < pair.student.rank:
        warnings.append(f"--fake_lora_rank {pair.fake.rank} is below the student's: the fake score may fall behind it")
    if not folder.supports_links():
        copies = "" if pair else "each checkpoint has a copy of the teacher's other parts, and "
        warnings.append(
            f"--ckpt_dir {folder.ckpts}: the file system has no symbolic links: {copies}latest and best are text files "
            "with a checkpoint's name"
        )
    if evaluation.skipped:
        warnings.append(evaluation.skipped)
    several_sizes = len(config.data.image_sizes) > 1
    warnings += unused_flag_warnings(
        config.method.method, config.given, evaluates=bool(evaluation.sets), several_sizes=several_sizes
    )
    if not num_student_updates(max(steps, point.step), config.method):
        warnings.append(f"the run ends at step {steps}, before the student's first update: it learns nothing")
    return warnings


def _changed_curves(config: Config, point: ResumePoint, steps: int) -> list[str]:
    """Return a line for each curve over the run that goes on at another height, since the run has another length."""
    if not point.progress or point.progress.total_steps in (None, steps):
        return []
    optim, method, lines = config.optim, config.method, []
    lengths = (point.progress.total_steps, steps)
    done = num_student_updates(point.step, method)
    totals = [num_student_updates(length, method) for length in lengths]
    shares = [lr_share(optim.lr_student, optim, done, total) for total in totals]
    weights = [diversity_weight(point.step, length, method) for length in lengths]
    if abs(shares[0] - shares[1]) > 0.01:
        lines.append(f"--lr_scheduler: the learning rate jumps from {shares[0]:.0%} to {shares[1]:.0%}")
    if abs(weights[0] - weights[1]) > 0.01 * method.div_weight:
        lines.append(f"--div_weight_schedule: lambda jumps from {weights[0]:.3g} to {weights[1]:.3g}")
    return [f"{line} at the resume, because the run ends at step {steps} and not at {lengths[0]}" for line in lines]


def _check_resume_point(setup: RunSetup) -> None:
    """Check that the run continues the checkpoint's: the same prompts, batches, and for some flags the same folder."""
    config, point = setup.config, setup.resume
    if point.progress:
        if point.progress.prompts and point.progress.prompts != fingerprint(setup.prompts, setup.weights):
            those = "the prompts" if setup.weights is None else "the prompts and weights"
            raise ValueError(
                f"--prompt_txt {config.data.prompt_txt}: not {those} that {point.path} was trained on; give "
                "those, or another --run_dir"
            )
        if point.progress.global_batch_size != setup.global_batch_size:
            raise ValueError(
                f"--batch_size x --grad_accum x processes is {setup.global_batch_size}, but the checkpoint's is "
                f"{point.progress.global_batch_size}: give values with the same product"
            )
        if _follows_variety(config.method) and not setup.folder.owns(point.path):
            raise ValueError(
                f"--div_weight_schedule {ADAPTIVE}: lambda follows the evaluations of the run that "
                f"--resume_from_checkpoint {point.path} is of; give that run's --run_dir"
            )


def _check_space(setup: RunSetup) -> None:
    """Check that the checkpoints to come fit the disk.

    Raises:
        ValueError: they do not.
    """
    count, needed = checkpoints_to_come(setup)
    folder = setup.folder
    if count:
        remedy = "free some, lower --checkpoints_total_limit, or give another --run_dir"
        check_free(f"--ckpt_dir {folder.ckpts}", folder.ckpts, needed, f"{count} checkpoints", remedy)


def checkpoints_to_come(setup: RunSetup) -> tuple[int, float]:
    """Return how many checkpoints a run will add to those that are there, at most, and their bytes."""
    config, folder = setup.config, setup.folder
    layout, teacher = LAYOUTS[config.model.family], Path(config.model.teacher_id)
    every, limit = config.run.ckpt_every, config.run.checkpoints_total_limit
    count = max(0, math.ceil(setup.total_steps / every) - setup.resume.step // every)
    if setup.resume.step >= setup.total_steps:  # its own checkpoint may be saved once more, without links
        count = int(checkpoint.has_links(folder.checkpoint(setup.resume.step), config))
    if limit:
        # One above the limit, since the oldest goes when the newest is whole; and `best`, which always stays.
        most = limit + 1 + bool(setup.evaluation.sets)
        count = min(count, max(1, most - len(folder.checkpoints())))
    if not count:
        return 0, 0
    needed = count * checkpoint.size_in_bytes(config)
    if adapters(config.model) is None:  # the last export holds copies of the teacher's other parts; without links all
        exports = 1 if config.optim.ema_decay is None else 2
        exports *= 1 if folder.supports_links() else count
        needed += exports * layout.bytes_beside_network(teacher, no_t5=config.model.no_t5)
    return count, needed
