"""Every option of a run, in groups: what it is, its default and where that comes from, and the values it takes.

An option stands once, here: flags, help, the YAML reader and the check of its range are made from it (`dpdmd.config`).
"""

from dataclasses import dataclass, field, make_dataclass
from typing import Any

from dpdmd.config.method_table import METHODS
from dpdmd.config.presets import FAMILIES, as_typed
from dpdmd.config.scorer_table import IN_LOOP_SCORERS, in_loop_files

PERCEPTUAL = ("lpips", "dists", "dino")
GAN_FEATURES = ("fake", "teacher")
GRAD_STEPS = ("all", "last", "random")
ROLLOUTS = ("ode", "dmd2")
NORMALIZERS = ("z_t", "x_student")
DMD_TIMES = ("per_sample", "per_batch")
LR_SCHEDULERS = ("constant", "linear", "cosine")
NONFINITE = ("stop", "skip")
OPTIMIZERS = ("adamw", "adamw_8bit")
TRACKERS = ("tensorboard", "wandb", "none")
FAMILY_DEFAULTS = "; ".join(f"{name}'s own defaults: {as_typed(own)}" for name, own in FAMILIES.items() if own)
MAX_COUNT = 10**9  # of anything: far beyond any use, and small enough for every count made of it
MAX_GRID_STEPS = 1000  # of a grid: the times that the models were trained at
MAX_BATCH = 2**16
MAX_IMAGES = 100_000  # of a prompt
MAX_PIXELS = 2**16  # a side
MAX_RANK = 2**14  # beyond the width of any layer
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
    le: int = MAX_COUNT,
    empty: bool = False,
    may_change_on_resume: bool = False,
) -> Any:
    """A field that is a flag, with its range (`le`: of whole numbers). `empty`: an empty text stands for none.
    `may_change_on_resume`: may differ between a run and its resumption."""
    values = {"choices": choices, "ge": ge, "gt": gt, "lt": lt, "le": le, "empty": empty}
    return field(
        default=default,
        metadata={"help": help, "source": source, "may_change_on_resume": may_change_on_resume, **values},
    )


@dataclass
class ModelConfig:
    """Model: the networks, each a pipeline folder in the official layout"""

    family: str = _flag("sd35", f"model family ({FAMILY_DEFAULTS})", choices=tuple(FAMILIES))
    teacher_id: str = _flag("weights/stabilityai/stable-diffusion-3.5-medium", "teacher's pipeline folder", "release")
    student_id: str | None = _flag(None, "folder the student starts from", "release: the teacher's")
    fake_id: str | None = _flag(None, "folder the fake score starts from", "release: the teacher's")
    lora_rank: int | None = _flag(
        None,
        "train LoRA adapters of this rank on the teacher's own weights, shared by all three networks",
        ge=1,
        le=MAX_RANK,
    )
    lora_alpha: float | None = _flag(None, "their alpha; without it the rank", "peft", gt=0)
    lora_targets: str | None = _flag(
        None, "layers that get one, by the ends of their names, a,b,...; without it attention and feed-forward", "ours"
    )
    fake_lora_rank: int | None = _flag(
        None, "the fake score's rank; without it lora_rank, and it should not be lower", "ours", ge=1, le=MAX_RANK
    )
    no_t5: bool = _flag(
        False, "SD3's third text encoder, a T5, is not loaded: zeros stand where its tokens were", "diffusers"
    )


@dataclass
class MethodConfig:
    """Method: what is learnt"""

    method: str = _flag(
        "dpdmd",
        "dpdmd, or what it is compared with: dmd (no diversity loss, no detach), dmd with a perceptual loss against "
        "the teacher's samples, dmd with a discriminator",
        "paper",
        choices=tuple(METHODS),
    )
    teacher_infer_steps: int = _flag(30, "steps of the teacher's grid", "paper", ge=1, le=MAX_GRID_STEPS)
    stu_inference_steps: int = _flag(4, "steps of the student, N", "paper", ge=1, le=MAX_GRID_STEPS)
    k_anchor: int = _flag(5, "teacher steps to the anchor, K", "paper, table 3")
    anchor_steps: int | None = _flag(
        None, "go to the anchor in so many longer steps of the teacher; without it in its own, k_anchor", "ours"
    )
    fake_rollout_reuse: int = _flag(1, "fake updates that share one roll-out of the student", "ours")
    per_train_fake_num: int = _flag(5, "fake-score updates before each student update", "paper", ge=1)
    fake_head_start: int = _flag(0, "fake-score updates before the first cycle", "ours", ge=0)
    div_weight: float = _flag(0.05, "weight of the diversity loss, lambda", "paper, table 4", ge=0)
    teacher_guidance_scale: float = _flag(3.5, "guidance of the teacher, u + s (c - u)", "paper", ge=0)
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
    detach_first_step: bool | None = _flag(
        None, "detach the latent after step 1; without it as the method says: dpdmd does", "paper, figure 5"
    )
    grad_steps: str = _flag(
        "all",
        "steps of the roll-out that keep gradient, of those that it may reach: all, the last, or one drawn anew",
        "paper",
        choices=GRAD_STEPS,
    )
    rollout: str = _flag(
        "ode",
        "the student's sample: end of its trajectory, or x0 in one jump from a step drawn anew (DMD2's simulation)",
        "paper",
        choices=ROLLOUTS,
    )
    perceptual: str = _flag("lpips", "distance of dmd_lpips", "paper; DISTS, DINO: ours", choices=PERCEPTUAL)
    perceptual_path: str | None = _flag(
        None,
        "folder of its weights: vgg16-397923af.pth beside LPIPS_v0.1_vgg-a78928a0.pth or DISTS_weights-f5e65c96.pth; "
        "or of a DINO model",
        "ours",
        may_change_on_resume=True,
    )
    perceptual_weight: float = _flag(0.25, "weight of the perceptual loss", "DMD", ge=0)
    gan_weight: float = _flag(0.005, "weight of dmd_gan's generator loss", "DMD2", ge=0)
    gan_features: str = _flag("fake", "network whose features its discriminator reads", "DMD2", choices=GAN_FEATURES)
    teacher_cache_size: int | None = _flag(
        None,
        "dmd_lpips, dmd_gan: turns that look at the teacher's samples work on a pool of so many prompts and noises; "
        "without it on new ones in every step",
        "ours",
        ge=1,
        le=1_000_000,
    )
    teacher_cache: str | None = _flag(
        None,
        "folder: that pool's samples are made ahead, once for all runs of this seed",
        "ours",
        may_change_on_resume=True,
    )


@dataclass
class DataConfig:
    """Data: prompts only"""

    # Free, since a checkpoint knows the prompts themselves.
    prompt_txt: str = _flag(
        "data/prompts_train.txt", "training prompts, one a line", "release: DiffusionDB", may_change_on_resume=True
    )
    cache_text_embeddings: str | None = _flag(
        None,
        "folder: every prompt is encoded ahead, once for all runs, and the text encoders leave memory",
        "ours",
        may_change_on_resume=True,
    )
    height: int = _flag(1024, "pixels", "paper", ge=1, le=MAX_PIXELS)
    width: int = _flag(1024, "pixels", "paper", ge=1, le=MAX_PIXELS)
    max_sequence_length: int | None = _flag(
        None,
        "T5 tokens of a prompt; without it what the teacher's folder says, else 256",
        "diffusers",
        ge=1,
        lt=513,
    )


@dataclass
class OptimConfig:
    """Optimisation: per process; the global batch is batch_size x grad_accum x processes"""

    batch_size: int = _flag(
        4, "prompts of one forward pass on one process", "paper", ge=1, le=MAX_BATCH, may_change_on_resume=True
    )
    grad_accum: int = _flag(
        1, "forward passes summed into one update", "release", ge=1, le=MAX_BATCH, may_change_on_resume=True
    )
    lr_student: float = _flag(1e-5, "AdamW learning rate of the student", "paper", gt=0)
    lr_fake: float = _flag(1e-5, "AdamW learning rate of the fake score", "paper", gt=0)
    lr_discriminator: float = _flag(1e-4, "AdamW learning rate of dmd_gan's discriminator", "ours", gt=0)
    lr_scheduler: str = _flag(
        "constant",
        "learning rates over each network's own updates: constant, or down to 0 at the run's last",
        "paper; names as in diffusers",
        choices=LR_SCHEDULERS,
    )
    lr_warmup_steps: int = _flag(0, "updates of each network in which its learning rate rises from 0", "ours", ge=0)
    optimizer: str = _flag(
        "adamw",
        "adamw_8bit keeps both moments in 8 bits (bitsandbytes; not under FSDP)",
        "paper",
        choices=OPTIMIZERS,
    )
    ema_decay: float | None = _flag(
        None,
        "keep a moving average of the student's weights, this much of it after each student update; saved as "
        "student_ema and evaluated beside the student",
        "ours",
        ge=0,
        lt=1,
    )
    weight_decay: float = _flag(0.0, "of both optimizers", "paper", ge=0)
    adam_beta1: float = _flag(0.9, "of both optimizers", "torch", ge=0, lt=1)
    adam_beta2: float = _flag(0.999, "of both optimizers", "torch", ge=0, lt=1)
    max_grad_norm: float = _flag(1.0, "gradients are clipped at this global norm", "paper", gt=0)
    bf16: bool = _flag(False, "networks compute in bf16 (weights, latents, times and losses stay fp32)", "release")
    shard_teacher: bool = _flag(
        False,
        "under FSDP, shard the frozen teacher as well: less memory, more traffic",
        "ours",
        may_change_on_resume=True,
    )
    offload_vae: bool = _flag(
        False,
        "the decoder stays on the CPU between uses and decodes one image at a time",
        "ours",
        may_change_on_resume=True,
    )
    gradient_checkpointing: bool = _flag(False, "recompute activations in the backward pass", "release")
    recomputed_blocks: str = _flag(
        "all",
        "with --gradient_checkpointing: so many transformer blocks, the first, instead of all; auto: as few as the "
        "plan of memory says fit the device",
        "ours",
        may_change_on_resume=True,
    )
    compile: bool = _flag(
        False, "torch.compile each transformer block of all three networks", "diffusers", may_change_on_resume=True
    )


# A flag for each file of the in-loop scorers, from their table.
_ScorerPaths = make_dataclass(
    "_ScorerPaths",
    [
        (file.flag, str | None, _flag(None, file.help, file.source, empty=True, may_change_on_resume=True))
        for file in in_loop_files()
    ],
)


@dataclass
class EvalConfig(_ScorerPaths):
    """Evaluation in the loop: scorers that are given here look at images of the live student"""

    eval_every: int | None = _flag(
        None, "steps between evaluations; 0: none; without it --ckpt_every", "release", ge=0, may_change_on_resume=True
    )
    div_prompts: str = _flag("data/prompts_eval.txt", "prompts for diversity", "ours", may_change_on_resume=True)
    num_div_seeds: int = _flag(9, "images of each of them, R", "paper", ge=2, le=MAX_IMAGES, may_change_on_resume=True)
    pref_prompts: str = _flag(
        "data/prompts_eval.txt",
        "prompts for preference; the same file shares the images",
        "ours",
        may_change_on_resume=True,
    )
    eval_prompts_limit: str = _flag(
        "16",
        "first prompts of each file, or all; 16 keep evaluation below 10% of SD3.5's training",
        "ours",
        may_change_on_resume=True,
    )
    eval_batch_size: int = _flag(
        4, "images made and scored at a time on one process", "release", ge=1, le=MAX_BATCH, may_change_on_resume=True
    )
    eval_seed: int = _flag(
        0, "of the start noises, the same at every evaluation", "ours", ge=0, lt=2**32, may_change_on_resume=True
    )
    offload_scorers: bool = _flag(
        False, "keep the scorers on the CPU between evaluations", "ours", may_change_on_resume=True
    )
    best_by: str = _flag(
        "mean_rank",
        "ckpts/best: mean rank of preference and diversity, or one score",
        "ours",
        choices=("mean_rank", *IN_LOOP_SCORERS),
        may_change_on_resume=True,
    )


@dataclass
class RunConfig:
    """Run: length, output and resumption; a step is one update, fake or student"""

    run_dir: str | None = _flag(
        None, "run folder: log, ckpts, eval_images, process_vis and div_vis derive from it", may_change_on_resume=True
    )
    log_path: str | None = _flag(None, "instead of RUN/log", "release", may_change_on_resume=True)
    ckpt_dir: str | None = _flag(None, "instead of RUN/ckpts", "release", may_change_on_resume=True)
    eval_dir: str | None = _flag(None, "instead of RUN/eval_images", "release", may_change_on_resume=True)
    process_folder_name: str | None = _flag(None, "instead of RUN/process_vis", "release", may_change_on_resume=True)
    diversity_folder_name: str | None = _flag(None, "instead of RUN/div_vis", "release", may_change_on_resume=True)
    max_steps: int | None = _flag(
        None,
        f"updates of both networks together; {DEFAULT_MAX_STEPS} if max_epoch is not given either",
        "paper",
        ge=1,
        may_change_on_resume=True,
    )
    max_epoch: int | None = _flag(
        None, "passes over the prompts; the earlier end counts", "release", ge=1, may_change_on_resume=True
    )
    log_every: int = _flag(
        10, "steps between lines of log.txt (metrics.jsonl has every step)", "ours", ge=1, may_change_on_resume=True
    )
    ckpt_every: int = _flag(600, "steps between checkpoints", "ours", ge=1, may_change_on_resume=True)
    vis_every: int = _flag(60, "steps between images in process_vis; 0: none", "ours", ge=0, may_change_on_resume=True)
    checkpoints_total_limit: int | None = _flag(
        None,
        "checkpoints to keep, the newest; the best stays beside them",
        "diffusers",
        ge=1,
        may_change_on_resume=True,
    )
    resume_from_checkpoint: str | None = _flag(
        None, "'latest' or a checkpoint folder", "diffusers", may_change_on_resume=True
    )
    nonfinite: str = _flag(
        "stop",
        "at a loss or gradient that is not finite: stop, or skip the update and count it",
        "ours",
        choices=NONFINITE,
        may_change_on_resume=True,
    )
    report_to: str = _flag("tensorboard", "tracker", "diffusers", choices=TRACKERS, may_change_on_resume=True)
    seed: int = _flag(0, "of every random draw", "ours", ge=0, lt=2**32)
