"""Every option of a run, in groups: its default, the source of the default, its help and its range.

Flags, help, the YAML reader and the range checks are generated from these fields (`dpdmd.config`).
"""

from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import Any

from dpdmd.config import hub_flags
from dpdmd.config.anchor_search import AUTO
from dpdmd.config.image_sizes import MAX_PIXELS, ImageSize, parse_sizes
from dpdmd.config.method_table import METHODS
from dpdmd.config.precisions import PRECISIONS, UNQUANTIZED, Precisions
from dpdmd.config.presets import FAMILIES, as_typed
from dpdmd.config.scorer_table import IN_LOOP_SCORERS, in_loop_files

PERCEPTUAL = ("lpips", "dists", "dino")
GAN_FEATURES = ("fake", "teacher")
GRAD_STEPS = ("all", "last", "random")
ROLLOUTS = ("ode", "dmd2")
NORMALIZERS = ("z_t", "x_student")
ADAPTIVE = "adaptive"
DIV_WEIGHT_SCHEDULES = ("constant", "decreasing", "increasing", ADAPTIVE)
DMD_TIMES = ("per_sample", "per_batch")
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
POLYNOMIAL_END = 1e-7  # the learning rate at the end of "polynomial", as in diffusers
NONFINITE = ("stop", "skip")
EVAL_SIZES = ("first", "all")
OPTIMIZERS = ("adamw", "adamw_8bit")
TRACKERS = ("tensorboard", "wandb", "none")
FAMILY_DEFAULTS = "; ".join(f"{name}'s own defaults: {as_typed(own)}" for name, own in FAMILIES.items() if own)
MAX_COUNT = 10**9  # of anything: beyond any use, and products of counts still fit in 64 bits
MAX_GRID_STEPS = 1000  # number of times that the models were trained at
MAX_BATCH = 2**16
MAX_IMAGES = 100_000  # per prompt
MAX_RANK = 2**14  # beyond the width of any layer
MAX_GUIDANCE = 1e4  # beyond any use, and products with it stay finite in fp32; so for the two below
MAX_WEIGHT = 1e6
MAX_LEARNING_RATE = 100.0
DEFAULT_MAX_STEPS = 6000  # paper, section 5.1: 6,000 iterations = 1,000 student updates


def _flag(
    default: Any,
    help: str,
    source: str = "",
    *,
    choices: tuple[str, ...] = (),
    ge: float | None = None,
    gt: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    empty: bool = False,
    path: bool = False,
    may_change_on_resume: bool = False,
    words: tuple[str, ...] = (),
) -> Any:
    """Return a field that is also a flag.

    Args:
        source: where the default comes from.
        choices, ge, gt, lt, le: allowed values; without `le`, whole numbers up to MAX_COUNT, others up to fp32's.
        empty: whether an empty string is allowed and means None.
        path: whether the value is a path, so that `a` and `./a/` are equal.
        may_change_on_resume: whether a resumed run may have another value.
        words: allowed in place of a number; the run replaces a word by the number that it finds.
    """
    values = {"choices": choices, "ge": ge, "gt": gt, "lt": lt, "le": le, "empty": empty, "path": path, "words": words}
    return field(
        default=default,
        metadata={"help": help, "source": source, "may_change_on_resume": may_change_on_resume, **values},
    )


_path = partial(_flag, path=True)
_changeable = partial(_flag, may_change_on_resume=True)
_changeable_path = partial(_path, may_change_on_resume=True)


@dataclass
class ModelConfig:
    """Model: the networks, each from a pipeline folder in the diffusers layout, or from the Hub as org/name"""

    family: str = _flag("sd35", f"model family ({FAMILY_DEFAULTS})", choices=tuple(FAMILIES))
    teacher_id: str = _path("weights/stabilityai/stable-diffusion-3.5-medium", "teacher's pipeline folder", "release")
    student_id: str | None = _path(None, "pipeline folder that initialises the student", "release: the teacher's")
    fake_id: str | None = _path(None, "pipeline folder that initialises the fake score", "release: the teacher's")
    lora_rank: int | None = _flag(
        None, "train LoRA adapters of this rank; all three networks share the teacher's weights", ge=1, le=MAX_RANK
    )
    lora_alpha: float | None = _flag(None, "LoRA alpha; without it the rank", "peft", gt=0, le=MAX_WEIGHT)
    lora_targets: str | None = _flag(
        None, "layers with LoRA, as ends of layer names, a,b,...; without it attention and feed-forward layers", "ours"
    )
    lora_dropout: float = _flag(
        0.0,
        "share of the inputs of LoRA layers that is dropped in calls with gradient of the network that is trained",
        "peft",
        ge=0,
        lt=1,
    )
    fake_lora_rank: int | None = _flag(
        None,
        "LoRA rank of the fake score, which should not be lower than lora_rank; without it lora_rank",
        "ours",
        ge=1,
        le=MAX_RANK,
    )
    base_precision: str = _flag(
        UNQUANTIZED,
        "with --lora_rank: type in which the linear layers of the frozen base are kept; bf16 is not quantised, and nf4 "
        "needs bitsandbytes",
        "ours",
        choices=PRECISIONS,
    )
    text_encoder_precision: str = _flag(
        UNQUANTIZED,
        "type in which the linear layers of the text encoders are kept, as in --base_precision",
        "ours",
        choices=PRECISIONS,
    )
    no_t5: bool = _flag(
        False, "do not load SD3's third text encoder, a T5; its tokens are replaced by zeros", "diffusers"
    )

    @property
    def precisions(self) -> Precisions:
        """The precisions of the frozen weights."""
        return Precisions(self.base_precision, self.text_encoder_precision)


@dataclass
class HubConfig:
    """Hub: models that flags name as org/name, from the Hugging Face Hub; a folder of that name comes first"""

    # May change on resume: a checkpoint holds the commit.
    revision: str | None = _changeable(None, hub_flags.HELP["revision"].format(model="teacher"), "diffusers")
    variant: str | None = _flag(None, hub_flags.HELP["variant"].format(model="teacher"), "diffusers")
    cache_dir: str | None = _changeable_path(None, hub_flags.HELP["cache_dir"], "diffusers")
    download: bool = _changeable(False, hub_flags.HELP["download"], "ours")


@dataclass
class MethodConfig:
    """Method: losses and sampling in training"""

    method: str = _flag(
        "dpdmd",
        "dpdmd; dmd: no diversity loss and no detach; dmd_lpips: dmd with a perceptual loss against the teacher's "
        "samples; dmd_gan: dmd with a discriminator",
        "paper",
        choices=tuple(METHODS),
    )
    teacher_infer_steps: int = _flag(30, "steps of the teacher's grid", "paper", ge=1, le=MAX_GRID_STEPS)
    stu_inference_steps: int = _flag(4, "steps of the student, N", "paper", ge=1, le=MAX_GRID_STEPS)
    k_anchor: int | str = _flag(
        5,
        "teacher steps to the anchor, K; auto: measured on the teacher before training",
        "paper, table 3",
        words=(AUTO,),
    )
    anchor_steps: int | None = _flag(
        None, "number of longer teacher steps to the anchor; without it the teacher's own k_anchor steps", "ours"
    )
    fake_rollout_reuse: int = _flag(1, "fake-score updates that share one roll-out of the student", "ours")
    per_train_fake_num: int = _flag(5, "fake-score updates before each student update", "paper", ge=1)
    fake_head_start: int = _flag(0, "fake-score updates before the first cycle", "ours", ge=0)
    div_weight: float = _flag(0.05, "weight of the diversity loss, lambda", "paper, table 4", ge=0, le=MAX_WEIGHT)
    div_weight_schedule: str = _flag(
        "constant",
        "lambda over the student updates: constant, linear from lambda to 0 (decreasing), from 0 (increasing), or "
        "adaptive: multiplied after each evaluation by (teacher's / student's diversity scores)^8",
        "paper",
        choices=DIV_WEIGHT_SCHEDULES,
    )
    teacher_guidance_scale: float = _flag(
        3.5,
        "guidance scale s of the teacher, as the family's pipeline counts it: u + s (c - u) for SD3.5",
        "paper",
        ge=0,
        le=MAX_GUIDANCE,
    )
    real_guidance_scale: float | None = _flag(
        None,
        "guidance scale of the teacher in the scores of the DMD loss; without it teacher_guidance_scale, which the "
        "anchor and the teacher's samples always have",
        "paper; apart as in DMD2",
        ge=0,
        le=MAX_GUIDANCE,
    )
    student_sigmas: str = _flag(
        "default", "student's grid: default (diffusers'), trailing, or N numbers 1.0,...", "release"
    )
    dmd_normalizer: str = _flag(
        "z_t",
        "normalise the DMD gradient by mean |z_t - x0_real| or |x_student - x0_real|",
        "release; DMD2",
        choices=NORMALIZERS,
    )
    dmd_t: str = _flag(
        "per_sample", "draw the time of the scores for each sample or once per batch", "ours", choices=DMD_TIMES
    )
    detach_first_step: bool | None = _flag(
        None, "detach the latent after step 1; without it only dpdmd does", "paper, figure 5"
    )
    grad_steps: str = _flag(
        "all",
        "roll-out steps that keep gradient, among those that may have any: all, the last, or a random one",
        "paper",
        choices=GRAD_STEPS,
    )
    rollout: str = _flag(
        "ode",
        "the student's sample: end of its trajectory (ode), or x0 predicted at a random step (DMD2's simulation)",
        "paper",
        choices=ROLLOUTS,
    )
    perceptual: str = _flag("lpips", "perceptual distance of dmd_lpips", "paper; DISTS, DINO: ours", choices=PERCEPTUAL)
    perceptual_path: str | None = _changeable_path(
        None,
        "folder with the weights of --perceptual: vgg16-397923af.pth and LPIPS_v0.1_vgg-a78928a0.pth or "
        "DISTS_weights-f5e65c96.pth, or a DINO model",
        "ours",
    )
    perceptual_weight: float = _flag(0.25, "weight of the perceptual loss", "DMD", ge=0, le=MAX_WEIGHT)
    gan_weight: float = _flag(0.005, "weight of dmd_gan's generator loss", "DMD2", ge=0, le=MAX_WEIGHT)
    gan_features: str = _flag(
        "fake", "network whose features the discriminator of dmd_gan reads", "DMD2", choices=GAN_FEATURES
    )
    teacher_cache_size: int | None = _flag(
        None,
        "dmd_lpips, dmd_gan: size of the pool of prompts and noise in updates that compare with teacher samples; "
        "without it every step draws new ones",
        "ours",
        ge=1,
        le=1_000_000,
    )
    teacher_cache: str | None = _changeable_path(
        None, "folder where the teacher's samples of the pool are made ahead, once for all runs with this seed", "ours"
    )


@dataclass
class DataConfig:
    """Data: prompts only"""

    # May change on resume: a checkpoint compares the prompts, not the path.
    prompt_txt: str = _changeable_path(
        "data/prompts_train.txt",
        "training prompts: .txt with one per line, .csv, .tsv, .json, .jsonl, .parquet, or a folder of datasets",
        "release: DiffusionDB",
    )
    prompt_column: str | None = _changeable(
        None, "column of every prompt file that has columns; without it the one named prompt, caption or text", "ours"
    )
    prompt_weight_column: str | None = _flag(
        None,
        "column of --prompt_txt with how often each prompt is drawn, relative to the others; 0 for never",
        "ours",
    )
    cache_text_embeddings: str | None = _changeable_path(
        None,
        "folder where all prompts are encoded ahead, once for all runs, so that the text encoders leave memory; "
        "empty for none where a preset names one",
        "ours",
        empty=True,
    )
    height: int = _flag(1024, "image height in pixels", "paper", ge=1, le=MAX_PIXELS)
    width: int = _flag(1024, "image width in pixels", "paper", ge=1, le=MAX_PIXELS)
    sizes: str | None = _flag(
        None,
        "several image sizes instead of height and width, WIDTHxHEIGHT[:WEIGHT],...: each roll-out draws one by weight",
        "ours",
    )
    max_sequence_length: int | None = _flag(
        None,
        "text tokens per prompt (SD3: of the T5); without it the value in the teacher's folder, else the family's",
        "diffusers",
        ge=1,
        lt=1025,
    )

    @property
    def image_sizes(self) -> dict[ImageSize, float]:
        """The sizes of the run's images in the order given, each with its weight; the first is the main one."""
        return parse_sizes(self.sizes) if self.sizes else {ImageSize(self.height, self.width): 1.0}


@dataclass
class OptimConfig:
    """Optimisation: per process; the global batch is batch_size x grad_accum x processes"""

    batch_size: int = _changeable(4, "prompts per forward pass and process", "paper", ge=1, le=MAX_BATCH)
    grad_accum: int = _changeable(1, "forward passes per update", "release", ge=1, le=MAX_BATCH)
    lr_student: float = _flag(1e-5, "AdamW learning rate of the student", "paper", gt=0, le=MAX_LEARNING_RATE)
    lr_fake: float = _flag(1e-5, "AdamW learning rate of the fake score", "paper", gt=0, le=MAX_LEARNING_RATE)
    lr_discriminator: float = _flag(
        1e-4, "AdamW learning rate of dmd_gan's discriminator", "ours", gt=0, le=MAX_LEARNING_RATE
    )
    lr_scheduler: str = _flag(
        "constant",
        "learning rate over each network's own updates: constant, or decreasing to 0 at its last (polynomial: to 1e-7)",
        "paper; names as in diffusers",
        choices=LR_SCHEDULERS,
    )
    lr_warmup_steps: int = _flag(0, "updates of each network over which its learning rate rises from 0", "ours", ge=0)
    lr_num_cycles: int = _flag(1, "cycles of cosine_with_restarts", "diffusers", ge=1)
    lr_power: float = _flag(1.0, "power of polynomial", "diffusers", gt=0)
    optimizer: str = _flag(
        "adamw",
        "adamw, or adamw_8bit with both moments in 8 bits (bitsandbytes; under FSDP only with LoRA)",
        "paper",
        choices=OPTIMIZERS,
    )
    ema_decay: float | None = _flag(
        None,
        "decay per student update of a moving average of the student's weights, which is saved as student_ema and "
        "evaluated beside the student",
        "ours",
        ge=0,
        lt=1,
    )
    weight_decay: float = _flag(0.0, "weight decay of all optimizers", "paper", ge=0, le=MAX_WEIGHT)
    adam_beta1: float = _flag(0.9, "beta 1 of all optimizers", "torch", ge=0, lt=1)
    adam_beta2: float = _flag(0.999, "beta 2 of all optimizers", "torch", ge=0, lt=1)
    max_grad_norm: float = _flag(1.0, "clip gradients to this global norm", "paper", gt=0)
    bf16: bool = _flag(False, "run the networks in bf16 (weights, latents, times and losses stay in fp32)", "release")
    shard_teacher: bool = _changeable(
        False, "under FSDP, also shard the frozen teacher, as LoRA always does: less memory, more communication", "ours"
    )
    offload_vae: bool = _changeable(
        False, "keep the decoder on the CPU between uses, and decode one image at a time", "ours"
    )
    gradient_checkpointing: bool = _changeable(False, "recompute activations in the backward pass", "release")
    recomputed_blocks: str = _changeable(
        "all",
        "with --gradient_checkpointing: number of transformer blocks, from the first, that recompute; all; or auto, as "
        "few as fit the device by the memory estimate",
        "ours",
    )
    compile: bool = _changeable(
        False, "compile each transformer block of all three networks with torch.compile", "diffusers"
    )
    attention_backend: str | None = _changeable(
        None,
        "attention of all three networks by a backend of diffusers: native, flash, xformers, ...; else torch's own",
        "diffusers",
    )


# A flag for each file of the in-loop scorers, from their table.
_ScorerPaths = make_dataclass(
    "_ScorerPaths",
    [(file.flag, str | None, _changeable_path(None, file.help, file.source, empty=True)) for file in in_loop_files()],
)


@dataclass
class EvalConfig(_ScorerPaths):
    """Evaluation during training: the scorers whose paths are given score images of the student"""

    eval_every: int | None = _changeable(
        None, "steps between evaluations; 0 for none; without it --ckpt_every", "release", ge=0
    )
    div_prompts: str = _changeable_path("data/prompts_eval.txt", "prompts of the diversity scores", "ours")
    num_div_seeds: int = _changeable(9, "images per diversity prompt, R", "paper", ge=2, le=MAX_IMAGES)
    pref_prompts: str = _changeable_path(
        "data/prompts_eval.txt",
        "prompts of the preference scores; with the same file as div_prompts, images are shared",
        "ours",
    )
    eval_prompts_limit: str = _changeable(
        "16",
        "number of first prompts of each file, or all; with 16, evaluation takes less than 10% of the time with SD3.5",
        "ours",
    )
    eval_batch_size: int = _changeable(
        4, "images sampled and scored at a time per process", "release", ge=1, le=MAX_BATCH
    )
    eval_sizes: str = _changeable(
        "first",
        "with --sizes: evaluate at the first size, or at all; they are scored apart",
        "ours",
        choices=EVAL_SIZES,
    )
    eval_seed: int = _changeable(0, "seed of the start noise, the same at every evaluation", "ours", ge=0, lt=2**32)
    offload_scorers: bool = _changeable(False, "keep the scorers on the CPU between evaluations", "ours")
    best_by: str = _changeable(
        "mean_rank",
        "score that chooses ckpts/best: one scorer, or the mean rank of preference and diversity",
        "ours",
        choices=("mean_rank", *IN_LOOP_SCORERS),
    )


@dataclass
class RunConfig:
    """Run: length, output and resume; a step is one update of the fake score or the student"""

    run_dir: str | None = _changeable(None, "run folder, with log, ckpts, eval_images, process_vis and div_vis")
    log_path: str | None = _changeable(None, "instead of RUN/log", "release")
    ckpt_dir: str | None = _changeable(None, "instead of RUN/ckpts", "release")
    eval_dir: str | None = _changeable(None, "instead of RUN/eval_images", "release")
    process_folder_name: str | None = _changeable(None, "instead of RUN/process_vis", "release")
    diversity_folder_name: str | None = _changeable(None, "instead of RUN/div_vis", "release")
    max_steps: int | None = _changeable(
        None, f"updates of both networks together; {DEFAULT_MAX_STEPS} if max_epoch is not given", "paper", ge=1
    )
    max_epoch: int | None = _changeable(
        None, "passes over the prompts; the run ends at the earlier of max_steps and max_epoch", "release", ge=1
    )
    log_every: int = _changeable(10, "steps between lines in log.txt (metrics.jsonl has every step)", "ours", ge=1)
    ckpt_every: int = _changeable(600, "steps between checkpoints", "ours", ge=1)
    vis_every: int = _changeable(60, "steps between images in process_vis; 0 for none", "ours", ge=0)
    checkpoints_total_limit: int | None = _changeable(
        None, "number of newest checkpoints to keep, besides the best", "diffusers", ge=1
    )
    resume_from_checkpoint: str | None = _changeable(
        None, "'latest' or a checkpoint folder to resume from", "diffusers"
    )
    nonfinite: str = _changeable(
        "stop", "if a loss or gradient is not finite: stop, or skip the update and count it", "ours", choices=NONFINITE
    )
    push_to_hub: bool = _changeable(False, "upload the student to the Hugging Face Hub at the end", "diffusers")
    hub_model_id: str | None = _changeable(
        None, "repository on the Hub, NAME or ORGANISATION/NAME; without it the run folder's name", "diffusers"
    )
    private: bool = _changeable(False, "create the repository on the Hub as a private one", "ours")
    report_to: str = _changeable("tensorboard", "experiment tracker", "diffusers", choices=TRACKERS)
    tracker_project_name: str = _changeable("dpdmd", "W&B's project; TensorBoard's folder in RUN/log", "diffusers")
    tracker_run_name: str | None = _changeable(
        None, "W&B's name of the run, else the run folder's name; TensorBoard's folder in RUN/log/PROJECT"
    )
    seed: int = _flag(0, "seed of all random draws", "ours", ge=0, lt=2**32)
