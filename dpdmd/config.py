"""The configuration: dataclasses <-> flags <-> YAML. `validate` tells what is wrong with the values alone.

Each field carries its help text and where its default comes from; the flags, the help and the YAML reader are all
made from the fields, so a field stands once. Imports nothing heavy: a wrong flag is told within a second.
"""

import argparse
import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

METHODS = ("dpdmd", "dmd")
NORMALIZERS = ("z_t", "x_student")
DMD_TIMES = ("per_sample", "per_batch")
NONFINITE = ("stop", "skip")
TRACKERS = ("tensorboard", "wandb", "none")
IN_LOOP_SCORERS = ("div_clip", "div_dino", "pickscore", "imagereward", "clip_score")
MAX_STEPS = 6000  # paper, section 5.1: 6,000 iterations = 1,000 student updates


def _flag(default: Any, help: str, source: str = "", *, choices: tuple[str, ...] = (), free: bool = False) -> Any:
    """A field that is a flag. `free`: may differ between a run and its resumption."""
    return field(default=default, metadata={"help": help, "source": source, "choices": choices, "free": free})


@dataclass
class ModelConfig:
    """Model: the networks, each a pipeline folder in the official layout"""

    family: str = _flag("sd35", "model family", choices=("sd35",))
    teacher_id: str = _flag("weights/stabilityai/stable-diffusion-3.5-medium", "teacher's pipeline folder", "release")
    student_id: str | None = _flag(None, "folder the student starts from", "release: the teacher's")
    fake_id: str | None = _flag(None, "folder the fake score starts from", "release: the teacher's")


@dataclass
class MethodConfig:
    """Method: what is learnt"""

    method: str = _flag("dpdmd", "dpdmd, or dmd: no diversity loss and no detach", "paper", choices=METHODS)
    teacher_infer_steps: int = _flag(30, "steps of the teacher's grid", "paper")
    stu_inference_steps: int = _flag(4, "steps of the student, N", "paper")
    k_anchor: int = _flag(5, "teacher steps to the anchor, K", "paper, table 3")
    anchor_steps: int | None = _flag(
        None, "go to the anchor in so many longer steps of the teacher; without it in its own, k_anchor", "ours"
    )
    fake_rollout_reuse: int = _flag(1, "fake updates that share one roll-out of the student", "ours")
    per_train_fake_num: int = _flag(5, "fake-score updates before each student update", "paper")
    div_weight: float = _flag(0.05, "weight of the diversity loss, lambda", "paper, table 4")
    teacher_guidance_scale: float = _flag(3.5, "guidance of the teacher, u + s (c - u)", "paper")
    student_sigmas: str = _flag(
        "default", "student's grid: default (diffusers'), trailing, or N numbers 1.0,...", "release"
    )
    dmd_normalizer: str = _flag(
        "z_t",
        "DMD gradient is divided by mean |z_t - x0_real|, or |x_student - x0_real|",
        "release; DMD2",
        choices=NORMALIZERS,
    )
    dmd_t: str = _flag("per_sample", "draw the score's time for each sample or once a batch", "ours", choices=DMD_TIMES)


@dataclass
class DataConfig:
    """Data: prompts only"""

    prompt_txt: str = _flag("data/prompts_train.txt", "training prompts, one a line", "release: DiffusionDB")
    cache_text_embeddings: str | None = _flag(
        None,
        "folder: every prompt is encoded ahead, once for all runs, and the text encoders leave memory",
        "ours",
        free=True,
    )
    height: int = _flag(1024, "pixels", "paper")
    width: int = _flag(1024, "pixels", "paper")
    max_sequence_length: int | None = _flag(
        None, "T5 tokens of a prompt; without it what the teacher's folder says, else 256", "diffusers"
    )


@dataclass
class OptimConfig:
    """Optimisation: per process; the global batch is batch_size x grad_accum x processes"""

    batch_size: int = _flag(4, "prompts of one forward pass on one process", "paper", free=True)
    grad_accum: int = _flag(1, "forward passes summed into one update", "release", free=True)
    lr_student: float = _flag(1e-5, "AdamW learning rate of the student", "paper")
    lr_fake: float = _flag(1e-5, "AdamW learning rate of the fake score", "paper")
    weight_decay: float = _flag(0.0, "of both optimizers", "paper")
    adam_beta1: float = _flag(0.9, "of both optimizers", "torch")
    adam_beta2: float = _flag(0.999, "of both optimizers", "torch")
    max_grad_norm: float = _flag(1.0, "gradients are clipped at this global norm", "paper")
    bf16: bool = _flag(False, "networks compute in bf16 (weights, latents, times and losses stay fp32)", "release")
    shard_teacher: bool = _flag(
        False, "under FSDP, shard the frozen teacher as well: less memory, more traffic", "ours", free=True
    )
    gradient_checkpointing: bool = _flag(False, "recompute activations in the backward pass", "release")


@dataclass
class EvalConfig:
    """Evaluation in the loop: scorers that are given here look at pictures of the live student"""

    pick_processor_path: str | None = _flag(None, "CLIP-ViT-H-14-laion2B-s32B-b79K folder", "release", free=True)
    pick_model_path: str | None = _flag(None, "PickScore_v1 folder", "release", free=True)
    ir_model_path: str | None = _flag(None, "ImageReward.pt", "release", free=True)
    ir_med_config: str | None = _flag(None, "ImageReward's med_config.json", "release", free=True)
    ir_tokenizer_path: str | None = _flag(
        None, "bert-base-uncased tokenizer folder; without it the folder of ImageReward.pt", "ours", free=True
    )
    dino_path: str | None = _flag(None, "dinov2-base folder", "release", free=True)
    clip_path: str | None = _flag(None, "clip-vit-large-patch14 folder", "release", free=True)
    clip_score_path: str | None = _flag(None, "CLIP folder for text alignment", "ours", free=True)
    eval_every: int | None = _flag(None, "steps between evaluations; without it --ckpt_every", "release", free=True)
    div_prompts: str = _flag("data/prompts_eval.txt", "prompts for diversity", "ours", free=True)
    num_div_seeds: int = _flag(9, "pictures of each of them, R", "paper", free=True)
    pref_prompts: str = _flag(
        "data/prompts_eval.txt", "prompts for preference; the same file shares the pictures", "ours", free=True
    )
    eval_prompts_limit: str = _flag(
        "16", "first prompts of each file, or all; 16 keep evaluation below 10% of SD3.5's training", "ours", free=True
    )
    eval_batch_size: int = _flag(4, "pictures made and scored at a time on one process", "release", free=True)
    eval_seed: int = _flag(0, "of the start noises, the same at every evaluation", "ours", free=True)
    offload_scorers: bool = _flag(False, "keep the scorers on the CPU between evaluations", "ours", free=True)
    best_by: str = _flag(
        "mean_rank",
        "ckpts/best: mean rank of preference and diversity, or one score",
        "ours",
        choices=("mean_rank", *IN_LOOP_SCORERS),
        free=True,
    )


@dataclass
class RunConfig:
    """Run: length, output and resumption; a step is one update, fake or student"""

    run_dir: str | None = _flag(
        None, "run folder: log, ckpts, eval_images, process_vis and div_vis derive from it", free=True
    )
    log_path: str | None = _flag(None, "instead of RUN/log", "release", free=True)
    ckpt_dir: str | None = _flag(None, "instead of RUN/ckpts", "release", free=True)
    eval_dir: str | None = _flag(None, "instead of RUN/eval_images", "release", free=True)
    process_folder_name: str | None = _flag(None, "instead of RUN/process_vis", "release", free=True)
    diversity_folder_name: str | None = _flag(None, "instead of RUN/div_vis", "release", free=True)
    max_steps: int | None = _flag(
        None, f"updates of both networks together; {MAX_STEPS} if max_epoch is not given either", "paper", free=True
    )
    max_epoch: int | None = _flag(None, "passes over the prompts; the earlier end counts", "release", free=True)
    log_every: int = _flag(10, "steps between lines of log.txt (metrics.jsonl has every step)", "ours", free=True)
    ckpt_every: int = _flag(600, "steps between checkpoints", "ours", free=True)
    vis_every: int = _flag(60, "steps between pictures in process_vis; 0: none", "ours", free=True)
    checkpoints_total_limit: int | None = _flag(None, "checkpoints to keep, the newest", "diffusers", free=True)
    resume_from_checkpoint: str | None = _flag(None, "'latest' or a checkpoint folder", "diffusers", free=True)
    nonfinite: str = _flag(
        "stop",
        "at a loss or gradient that is not finite: stop, or skip the update and count it",
        "ours",
        choices=NONFINITE,
        free=True,
    )
    report_to: str = _flag("tensorboard", "tracker", "diffusers", choices=TRACKERS, free=True)
    seed: int = _flag(0, "of every random draw", "ours")


@dataclass
class Config:
    """All of a run's configuration, in groups."""

    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values, group by group: what config.yaml holds."""
        return {group.name: dict(vars(getattr(self, group.name))) for group in fields(self)}

    def differences(self, other: "Config") -> list[str]:
        """Fields that must not change within a run and do: "name: ours, theirs"."""
        return [
            f"{item.name}: {getattr(ours, item.name)!r} here, {getattr(theirs, item.name)!r} there"
            for group in fields(self)
            for ours, theirs in [(getattr(self, group.name), getattr(other, group.name))]
            for item in fields(ours)
            if not item.metadata["free"] and getattr(ours, item.name) != getattr(theirs, item.name)
        ]


def _groups() -> dict[str, tuple[type, dict[str, Any]]]:
    """Group name -> (class, field name -> field)."""
    hints = typing.get_type_hints(Config)
    return {name: (kind, {item.name: item for item in fields(kind)}) for name, kind in hints.items()}


def _value_type(kind: type, name: str) -> tuple[type, bool]:
    """(int | float | str | bool, may be None) of one field."""
    hint = typing.get_type_hints(kind)[name]
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None)), True
    return hint, False


def _convert(value: Any, kind: type, name: str, place: str) -> Any:
    """A YAML value in its field's type; numbers may be written 1e-5, which YAML reads as text."""
    wanted, optional = _value_type(kind, name)
    if value is None and optional:
        return None
    fits = (
        isinstance(value, bool)
        if wanted is bool
        else isinstance(value, (str, int, float)) and not isinstance(value, bool)
    )
    try:
        if not fits:
            raise ValueError
        return wanted(str(value)) if wanted is not bool else value
    except ValueError:
        raise ValueError(f"{place}: {name} must be {wanted.__name__}, not {value!r}") from None


def from_dict(values: dict[str, Any], place: str) -> Config:
    """Config of nested ({group: {name: value}}) or flat ({name: value}) plain values.

    Raises:
        ValueError: unknown key or wrong type; the message names `place` and the key.
    """
    config, groups = Config(), _groups()
    owner = {name: group for group, (_, items) in groups.items() for name in items}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(value if key in groups and isinstance(value, dict) else {key: value})
    for name, value in flat.items():
        if name not in owner:
            near = difflib.get_close_matches(str(name), owner, n=1)
            raise ValueError(f"{place}: unknown key {name!r}" + (f" (did you mean {near[0]}?)" if near else ""))
        group = getattr(config, owner[name])
        setattr(group, name, _convert(value, type(group), name, place))
    return config


def read_yaml(path: Path) -> Config:
    """Config of a YAML file.

    Raises:
        ValueError: missing, no YAML mapping, unknown key or wrong type; the message names the file.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must hold keys and values, such as 'k_anchor: 5'")
    return from_dict(values, f"--config {path}")


def write_yaml(config: Config, path: Path) -> None:
    """Write the resolved configuration; `read_yaml` gives it back."""
    path.write_text(yaml.safe_dump(config.as_dict(), sort_keys=False), encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """The flags of `dpdmd.train`, grouped, each with its default and where that comes from."""
    parser = argparse.ArgumentParser(
        prog="dpdmd.train",
        description="Distil a slow guided teacher into a few-step student that keeps its diversity.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of any of the flags below; flags win")
    for kind, items in _groups().values():
        group = parser.add_argument_group((kind.__doc__ or "").splitlines()[0])
        for name, item in items.items():
            wanted, _ = _value_type(kind, name)
            source = f", {item.metadata['source']}" if item.metadata["source"] else ""
            options: dict[str, Any] = {
                "help": f"{item.metadata['help']} (default: {item.default}{source})".replace("%", "%%")
            }
            if wanted is bool:
                options["action"] = argparse.BooleanOptionalAction
            else:
                options.update(type=wanted, metavar=wanted.__name__.upper())
                if item.metadata["choices"]:
                    options.update(choices=item.metadata["choices"], metavar=None)
            group.add_argument(f"--{name}", **options)
    return parser


def parse(argv: Sequence[str] | None = None) -> Config:
    """Defaults, then the file of --config, then the flags.

    Raises:
        ValueError: unusable file, or values that `validate` refuses.
        SystemExit: argparse's own, status 2, on an unknown or malformed flag.
    """
    given = vars(build_parser().parse_args(argv))
    path = given.pop("config", None)
    config = read_yaml(Path(path)) if path is not None else Config()
    owner = {name: group for group, (_, items) in _groups().items() for name in items}
    for name, value in given.items():
        setattr(getattr(config, owner[name]), name, value)
    config.model.student_id = config.model.student_id or config.model.teacher_id
    config.model.fake_id = config.model.fake_id or config.model.teacher_id
    validate(config)
    return config


def validate(config: Config) -> None:
    """Check the values alone: ranges, choices, and fields against each other.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    for kind, items in _groups().values():
        group = next(value for value in vars(config).values() if type(value) is kind)
        for name, item in items.items():
            value, choices = getattr(group, name), item.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"--{name} {value}: choose one of {', '.join(choices)}")
    method, data, optim, run = config.method, config.data, config.optim, config.run
    at_least = {
        1: {
            **{
                name: getattr(method, name)
                for name in ("teacher_infer_steps", "stu_inference_steps", "per_train_fake_num")
            },
            **{name: getattr(data, name) for name in ("height", "width", "max_sequence_length")},
            **{name: getattr(optim, name) for name in ("batch_size", "grad_accum")},
            **{
                name: getattr(run, name)
                for name in ("max_steps", "max_epoch", "log_every", "ckpt_every", "checkpoints_total_limit")
            },
            "eval_every": config.eval.eval_every,
            "eval_batch_size": config.eval.eval_batch_size,
        },
        2: {"num_div_seeds": config.eval.num_div_seeds},
        0: {
            "eval_seed": config.eval.eval_seed,
            "div_weight": method.div_weight,
            "teacher_guidance_scale": method.teacher_guidance_scale,
            "weight_decay": optim.weight_decay,
            "vis_every": run.vis_every,
            "seed": run.seed,
        },
    }
    for bound, values in at_least.items():
        for name, value in values.items():
            if value is not None and not bound <= value < float("inf"):
                raise ValueError(f"--{name} {value}: must be a finite number, at least {bound}")
    for name in ("lr_student", "lr_fake", "max_grad_norm"):
        if not 0 < getattr(optim, name) < float("inf"):
            raise ValueError(f"--{name} {getattr(optim, name)}: must be a finite number above 0")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(optim, name) < 1:
            raise ValueError(f"--{name} {getattr(optim, name)}: must be at least 0 and below 1")
    limit = config.eval.eval_prompts_limit
    if limit != "all" and not (limit.isdecimal() and int(limit) > 0):
        raise ValueError(f"--eval_prompts_limit {limit}: must be a number of prompts, at least 1, or all")
    if not 1 <= method.k_anchor <= method.teacher_infer_steps:
        raise ValueError(
            f"--k_anchor {method.k_anchor}: must be 1 to --teacher_infer_steps ({method.teacher_infer_steps})"
        )
    if method.anchor_steps is not None and not 1 <= method.anchor_steps <= method.k_anchor:
        raise ValueError(f"--anchor_steps {method.anchor_steps}: must be 1 to --k_anchor ({method.k_anchor})")
    if not 1 <= method.fake_rollout_reuse <= method.per_train_fake_num:
        raise ValueError(
            f"--fake_rollout_reuse {method.fake_rollout_reuse}: must be 1 to --per_train_fake_num "
            f"({method.per_train_fake_num})"
        )
    if method.method == "dpdmd" and method.stu_inference_steps < 2:
        raise ValueError(
            "--stu_inference_steps 1: dpdmd trains the steps after the first; give at least 2, or --method dmd"
        )
