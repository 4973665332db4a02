"""Checks of option values: the range of each, and relations between them. No file or device is needed."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from dpdmd.config.anchor_search import AUTO
from dpdmd.config.method_table import METHODS, detaches_first_step
from dpdmd.config.options import (
    MAX_BATCH,
    MAX_COUNT,
    POLYNOMIAL_END,
    EvalConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from dpdmd.config.precisions import UNQUANTIZED
from dpdmd.utils.paths import same_place

FP32_MAX = 3.4e38  # larger numbers are infinite in fp32
MAX_SHOWN = 40  # digits of a number in a message
MAX_NAME, NOT_IN_NAMES = 128, frozenset("/\\#?%:")  # W&B's rules for a project; a slash would leave RUN/log


def check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Compare a value with its field's metadata: `choices`, or `ge`, `gt`, `lt` and `le`.

    Raises:
        ValueError: one line that names the flag and the allowed values.
    """
    choices, ge, gt, lt, le = (metadata[key] for key in ("choices", "ge", "gt", "lt", "le"))
    if choices and value not in choices:
        raise ValueError(f"--{name} {value}: choose one of {', '.join(choices)}")
    if isinstance(value, str) and not value.strip() and not metadata["empty"]:
        raise ValueError(f"--{name} {value!r}: is empty; give a value, or leave it out")
    if isinstance(value, str) and not _is_text(value):
        raise ValueError(f"--{name} {value!a}: is no text that a path or a name can be")
    if value is None:
        return
    if lt is not None:
        if not ge <= value < lt:
            raise ValueError(f"--{name} {shown(value)}: must be at least {ge} and below {lt}")
    elif gt is not None:
        if not gt < value <= (FP32_MAX if le is None else le):
            raise ValueError(f"--{name} {value}: must be a finite number above {gt}{_at_most(le)}")
    elif isinstance(value, float) and ge is not None:
        if not ge <= value <= (FP32_MAX if le is None else le):
            raise ValueError(f"--{name} {value}: must be a finite number, at least {ge}{_at_most(le)}")
    elif isinstance(value, int):
        most = MAX_COUNT if le is None else le
        if not (-MAX_COUNT if ge is None else ge) <= value <= most:
            allowed = f"at most {most}" if ge is None else f"{ge} to {most}"
            raise ValueError(f"--{name} {shown(value)}: must be {allowed}")


def _at_most(le: float | None) -> str:
    return "" if le is None else f" and at most {le:,.0f}"


def _is_text(value: str) -> bool:
    """Return whether a string is valid in paths: without zero bytes and lone surrogates, which YAML can contain."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def shown(value: Any) -> str:
    """Return a value for a message. Of a number with hundreds of digits, return the beginning."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} digits)"


def check_relations(model: ModelConfig, method: MethodConfig, optim: OptimConfig, evaluation: EvalConfig) -> None:
    """Check the relations between options.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    _check_lora(model, optim)
    _check_prompts_limit(evaluation)
    _check_anchor(method)
    _check_rollout(method)
    _check_method(method, optim)
    _check_recomputed_blocks(optim)
    _check_lr_schedule(optim)
    if optim.batch_size * optim.grad_accum > MAX_BATCH:
        raise ValueError(
            f"--grad_accum {optim.grad_accum}: with --batch_size {optim.batch_size} these are "
            f"{optim.batch_size * optim.grad_accum} prompts per update and process; give at most {MAX_BATCH}"
        )


def check_tracker_names(run: RunConfig) -> None:
    """Check the names that a tracker uses in its own addresses and as folders.

    Raises:
        ValueError: one line that names the flag and what a name may be.
    """
    for flag in ("tracker_project_name", "tracker_run_name"):
        name = getattr(run, flag)
        if name is None:
            continue
        if len(name) > MAX_NAME or set(name) & NOT_IN_NAMES or not name.isprintable() or name.strip(" .") != name:
            raise ValueError(
                f"--{flag} {name[:MAX_SHOWN]!r}: must be at most {MAX_NAME} letters, without "
                f"{' '.join(sorted(NOT_IN_NAMES))} and without a space or dot at either end"
            )


EVALUATION_FLAGS = (
    "div_prompts",
    "num_div_seeds",
    "pref_prompts",
    "eval_prompts_limit",
    "eval_batch_size",
    "eval_sizes",
    "eval_seed",
    "offload_scorers",
    "best_by",
)


def unused_flag_warnings(method: str, given: Collection[str], *, evaluates: bool, several_sizes: bool) -> list[str]:
    """Return a line about each kind of flag that was given without effect.

    `given` holds the flags of the command line only, and the lines are no errors: files and scripts set flags of
    several methods, which later flags override.
    """
    own = METHODS[method].options
    others = [name for row in METHODS.values() for name in row.options if name not in own]
    unread = [f"--{name}" for name in dict.fromkeys(others) if name in given]
    lines = [f"{', '.join(unread)}: given, but --method {method} has no use for it"] if unread else []
    unscored = [f"--{name}" for name in EVALUATION_FLAGS if name in given and not evaluates]
    if unscored:
        lines.append(f"{', '.join(unscored)}: given, but no scorer is, so nothing is evaluated")
    elif "eval_sizes" in given and not several_sizes:
        lines.append("--eval_sizes: given, but --sizes has not several sizes, so all images have one size")
    return lines


def _check_lora(model: ModelConfig, optim: OptimConfig) -> None:
    if model.lora_dropout and model.lora_rank is None:
        raise ValueError(f"--lora_dropout {model.lora_dropout}: give --lora_rank with it")
    if model.lora_dropout and optim.compile:
        raise ValueError(
            f"--lora_dropout {model.lora_dropout}: not possible with --compile, since each sample draws its own mask; "
            "give --no-compile, or leave it out"
        )
    if model.lora_rank is None and model.base_precision != UNQUANTIZED:
        raise ValueError(
            f"--base_precision {model.base_precision}: give --lora_rank with it; a network that is trained whole has "
            "fp32 weights"
        )
    if model.lora_rank is None:
        for name in ("lora_alpha", "lora_targets", "fake_lora_rank"):
            if getattr(model, name) is not None:
                raise ValueError(f"--{name} {getattr(model, name)}: give --lora_rank with it")
        return
    for name in ("student_id", "fake_id"):
        given = getattr(model, name)
        if given is not None and not same_place(given, model.teacher_id):
            raise ValueError(f"--{name} {given}: with --lora_rank all three networks are the teacher's; leave it out")
    if model.lora_targets is not None and not all(map(str.strip, model.lora_targets.split(","))):
        raise ValueError(f"--lora_targets {model.lora_targets}: must be names such as to_q,to_k,to_v")


def _check_prompts_limit(evaluation: EvalConfig) -> None:
    limit = evaluation.eval_prompts_limit
    if limit != "all" and not (_is_count(limit) and int(limit) > 0):
        raise ValueError(f"--eval_prompts_limit {shown(limit)}: must be a number of prompts, at least 1, or all")


def _is_count(text: str) -> bool:
    """Return whether a string is a whole number of at most 10 digits. Python does not convert more than 4,300."""
    return text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_COUNT))


def _check_anchor(method: MethodConfig) -> None:
    if "k_anchor" not in METHODS[method.method].options:
        return
    limit, flag = method.k_anchor, "k_anchor"
    if limit == AUTO:
        limit, flag = method.teacher_infer_steps, "teacher_infer_steps"
    elif not 1 <= limit <= method.teacher_infer_steps:
        raise ValueError(f"--k_anchor {limit}: must be 1 to --teacher_infer_steps ({method.teacher_infer_steps})")
    if method.anchor_steps is not None and not 1 <= method.anchor_steps <= limit:
        raise ValueError(f"--anchor_steps {method.anchor_steps}: must be 1 to --{flag} ({limit})")


def _check_rollout(method: MethodConfig) -> None:
    if not 1 <= method.fake_rollout_reuse <= method.per_train_fake_num:
        raise ValueError(
            f"--fake_rollout_reuse {method.fake_rollout_reuse}: must be 1 to --per_train_fake_num "
            f"({method.per_train_fake_num})"
        )
    if method.stu_inference_steps < 2 and detaches_first_step(method.method, method.detach_first_step):
        raise ValueError(
            "--stu_inference_steps 1: the latent is detached after step 1, which leaves no step to train; give at "
            "least 2, or --no-detach_first_step"
        )
    if method.rollout != "ode" and method.grad_steps != "all":
        raise ValueError(
            f"--grad_steps {method.grad_steps}: with --rollout {method.rollout} only one step has gradient; "
            "leave it out"
        )


def _check_method(method: MethodConfig, optim: OptimConfig) -> None:
    """Compare the flags with the method's row of `METHODS`."""
    name, row, values = method.method, METHODS[method.method], {**vars(method), **vars(optim)}
    for flag, what in row.required.items():
        if values[flag] is None:
            raise ValueError(f"--method {name}: give --{flag}, {what}")
    for flag in (flag for other in METHODS.values() for flag in other.required if flag not in row.required):
        if values[flag] is not None:
            raise ValueError(f"--{flag} {values[flag]}: --method {name} does not read it; leave it out")
    if method.teacher_cache is not None and method.teacher_cache_size is None:
        raise ValueError(f"--teacher_cache {method.teacher_cache}: give --teacher_cache_size, how many samples")
    if method.teacher_cache_size is not None and not row.teacher_samples_in:
        readers = [other for other in METHODS if METHODS[other].teacher_samples_in]
        raise ValueError(
            f"--teacher_cache_size {method.teacher_cache_size}: --method {name} uses no teacher samples; "
            f"{', '.join(readers)} do"
        )
    for flag, why in row.excluded.items():
        if values[flag]:
            raise ValueError(f"--{flag}: not possible with --method {name}: {why}; give --no-{flag}")


def _check_recomputed_blocks(optim: OptimConfig) -> None:
    wanted = optim.recomputed_blocks
    if wanted not in ("all", "auto") and not _is_count(wanted):
        raise ValueError(f"--recomputed_blocks {shown(wanted)}: must be a number of blocks, auto or all")
    if wanted != "all" and not optim.gradient_checkpointing:
        raise ValueError(f"--recomputed_blocks {wanted}: give --gradient_checkpointing, or leave it out")


def _check_lr_schedule(optim: OptimConfig) -> None:
    for flag, default, reader in (("lr_num_cycles", 1, "cosine_with_restarts"), ("lr_power", 1.0, "polynomial")):
        value = getattr(optim, flag)
        if value != default and optim.lr_scheduler != reader:
            raise ValueError(f"--{flag} {value}: give --lr_scheduler {reader} with it, or leave it out")
    for flag in ("lr_student", "lr_fake", "lr_discriminator"):
        value = getattr(optim, flag)
        if optim.lr_scheduler == "polynomial" and value <= POLYNOMIAL_END:
            raise ValueError(f"--{flag} {value}: must be above {POLYNOMIAL_END}, where --lr_scheduler polynomial ends")
