"""Check the arithmetic of a trainer that is loaded but has not trained, with the user's configuration and weights.

Each check reports what it measured in words. The trainer runs one fake-score update before each student update, writes
to a scratch folder, and cannot be used for training afterwards.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpdmd.distributed import sharding
from dpdmd.methods import losses, registry, updates
from dpdmd.methods.context import DistillationContext, MicroBatch, ScorePredictions
from dpdmd.methods.loss_terms import StudentRollout
from dpdmd.models.base import TextEmbedding
from dpdmd.training import checkpoint, optimizer_state
from dpdmd.training.base_error import LIMIT, describe_base_error, unquantized_base
from dpdmd.training.nonfinite import NonFiniteError
from dpdmd.training.step import TrainedNetwork
from dpdmd.training.trainer import Trainer
from dpdmd.utils import rng
from dpdmd.utils.image_grid import labelled_grid, save_image, to_pil
from dpdmd.utils.paths import free_bytes
from dpdmd.utils.tables import markdown_table

STUDENT_STEP = 1  # with one fake update before each student update
GUIDANCE_LIMIT, BF16_LIMIT = 1e-4, 0.05  # relative difference of two ways to the same prediction
RESUME_LIMIT = 0.05  # of the learning rate: mean difference of the weights on a GPU, whose sums have no fixed order
STEPS = 2  # before the resume, and again after it


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        found: what was measured, in words.
        meaning: what the check requires.
    """

    name: str
    passed: bool
    found: str
    meaning: str


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def relative(grid: Tensor, other: Tensor) -> float:
    """Return the largest difference of two sigma grids, relative to each sigma above 1 (SDXL's reach 4096)."""
    grid = grid.cpu()
    return largest((grid - other) / grid.clamp_min(1))


def check_grids(trainer: Trainer, folder: Path) -> CheckResult:
    run, config = trainer.run, trainer.config
    defaults, export = trainer.checkpointer.sampling_defaults(), folder / "student"
    checkpoint.export_student(
        export,
        trainer.checkpointer.snapshot(0).networks[registry.STUDENT],
        config,
        run.family,
        defaults,
        copy=False,
    )
    source, steps, library = Path(config.model.teacher_id), config.method.teacher_infer_steps, run.family.library_sigmas
    sized = [(size, run.at_size(index)) for index, size in enumerate(config.data.image_sizes)]
    # The largest difference of a list, unlike max(), is NaN if one of them is.
    differences = torch.tensor(
        [
            (
                relative(at.teacher_sigmas, library(source, steps, size)),
                relative(at.student_sigmas, library(export, None, size)),
            )
            for size, at in sized
        ]
    )
    teacher, student = differences.amax(0).tolist()
    grid = ", ".join(f"{sigma:.3f}" for sigma in run.student_sigmas.tolist())
    return CheckResult(
        "sigma grids",
        max(teacher, student) < 1e-5,
        f"student {grid}; largest relative difference {teacher:.0e} (teacher), {student:.0e} (exported student)",
        "teacher, student and exported pipeline step through the sigmas that diffusers' own scheduler gives",
    )


@dataclass(frozen=True)
class DoctorBatch:
    """One micro-batch of a student update: its roll-out with gradient, and the predictions of both scores.

    Attributes:
        run: at the image size of the micro-batch.
    """

    run: DistillationContext
    micro_batch: MicroBatch
    rollout: StudentRollout
    scores: ScorePredictions


def prepare_batch(trainer: Trainer) -> DoctorBatch:
    micro_batch = trainer.micro_batches(STUDENT_STEP)[0]
    run = trainer.run.at_size(micro_batch.size_index)
    student = updates.roll_out_student(run, micro_batch)
    return DoctorBatch(run, micro_batch, student, run.predict_scores(micro_batch, student.x.detach()))


@torch.no_grad()
def check_guidance(trainer: Trainer, batch: DoctorBatch) -> CheckResult:
    run, text, z_t, sigma = batch.run, batch.micro_batch.text, batch.scores.z_t, batch.scores.sigma
    scale = run.config.teacher_guidance_scale
    guided = run.teacher(text)(z_t, sigma)
    conditional = run.family.bind(run.networks.teacher, text)(z_t, sigma)
    unconditional = run.family.bind(run.networks.teacher, run.null.expand(len(text)))(z_t, sigma)
    guidance = run.family.layout.guidance
    extrapolated = conditional + (scale - guidance.off) * (conditional - unconditional)
    expected = run.family.rescale(extrapolated, conditional)
    error = largest(guided - expected) / largest(guided)
    effect = largest(conditional - unconditional) / largest(conditional)
    limit, alone = GUIDANCE_LIMIT, 0.0
    if trainer.config.optim.bf16:  # bf16 rounds a row by the rows beside it, and guidance amplifies the difference
        both = TextEmbedding.concatenate([run.null.expand(len(text)), text])
        together = run.family.bind(run.networks.teacher, both)(torch.cat([z_t, z_t]), torch.cat([sigma, sigma]))
        alone = largest(together - torch.cat([unconditional, conditional])) / largest(conditional)
        amplified = (1 + 2 * abs(scale - guidance.off)) * largest(conditional) / largest(guided)
        limit = max(BF16_LIMIT, 2 * amplified * alone)
    shown = f"the prompt {guidance.null_prompt!r}" if guidance.null_prompt else "the empty prompt"
    return CheckResult(
        "guidance",
        error < limit and alone < BF16_LIMIT and effect > 1e-3,
        f"relative difference {error:.0e}; the prompt moves the prediction by {effect:.1%}",
        f"the teacher predicts {guidance.formula}, with u of {shown}, and its prediction depends on the prompt",
    )


def check_base(trainer: Trainer) -> CheckResult:
    return CheckResult(
        "quantised base",
        True,  # a large error is a warning
        describe_base_error(trainer.config.model.base_precision, trainer.base_error),
        f"the guided prediction is close to that on the base before its quantisation; a run warns above {LIMIT:.0%}",
    )


def check_sign(trainer: Trainer, batch: DoctorBatch) -> CheckResult:
    x0_real, normalizer = batch.scores.x0_real, trainer.config.method.dmd_normalizer
    x = batch.rollout.x.detach().clone().requires_grad_(True)
    fake = x.detach()  # an exact fake score, so that the loss only pulls toward x0_real
    losses.dmd_loss(x, x0_real, fake, batch.scores.z_t, normalizer).loss.backward()
    before = (x.detach() - x0_real).norm()
    step = 0.01 * before / x.grad.norm()
    after = (x.detach() - step * x.grad - x0_real).norm()
    return CheckResult(
        "sign of the DMD gradient",
        bool(after < before),
        f"a step of 1% changes the distance to x0_real by {(after / before - 1).item():+.2%}",
        "descending the DMD loss moves the student's image toward x0_real, not away",
    )


def check_detach(trainer: Trainer, batch: DoctorBatch) -> CheckResult:
    method, scores = trainer.config.method, batch.scores
    loss = losses.dmd_loss(batch.rollout.x, scores.x0_real, scores.x0_fake, scores.z_t, method.dmd_normalizer).loss
    first, gradient = batch.rollout.first_prediction, None
    if first.requires_grad:  # else no gradient can reach it
        (gradient,) = torch.autograd.grad(loss, first, allow_unused=True, retain_graph=True)
    reached = gradient is not None and largest(gradient) > 0
    should = not updates.rollout_options(method, trainer.run.seed, STUDENT_STEP).detach_first_step
    return CheckResult(
        "detach after step 1",
        reached == should,
        f"the DMD gradient {'reaches' if reached else 'does not reach'} the first prediction",
        "with --method dpdmd it must not, since step 1 belongs to the diversity loss; with dmd it must, unless "
        "--detach_first_step, --grad_steps or --rollout prevents it",
    )


def check_noise(trainer: Trainer) -> CheckResult:
    run, found = trainer.run, 0.0
    for purpose in ("start noise", "score noise"):
        rows = rng.normal_per_sample(run.latent_shapes[0], run.seed, purpose, STUDENT_STEP, range(8)).flatten(1)
        correlation = torch.corrcoef(rows) - torch.eye(8)
        found = max(found, largest(correlation))
    limit = 6 / rows.shape[1] ** 0.5
    return CheckResult(
        "noise of each rank",
        found < limit,
        f"largest correlation of 8 samples {found:.3f} (chance: below {limit:.3f})",
        "every sample of the global batch, so every rank, draws its own start and score noise",
    )


def check_clipping(trainer: Trainer, batch: DoctorBatch) -> CheckResult:
    parameters = trainer.trained[registry.STUDENT].parameters
    loss = batch.rollout.x.square().mean() + batch.rollout.first_prediction.square().mean()
    loss.backward()
    norm = sharding.gradient_norm(parameters)
    exact = sum(p.grad.double().square().sum() for p in parameters if p.grad is not None).sqrt()
    torch.nn.utils.clip_grads_with_norm_(parameters, norm.item() / 2, norm)
    after = sharding.gradient_norm(parameters)
    trainer.trained[registry.STUDENT].optimizer.zero_grad()
    error = abs(norm.item() / exact.item() - 1)
    return CheckResult(
        "clipping",
        error < 1e-3 and abs(after.item() / norm.item() - 0.5) < 1e-3,
        f"norm {norm.item():.4g}, off by {error:.0e}; clipped at half of it: {after.item():.4g}",
        "gradients are clipped by the one norm of all of them",
    )


def check_training(trainer: Trainer, out: Path) -> Iterator[CheckResult]:
    """Run steps and run some of them again; a loss that is not finite ends this, and `out` gets its diagnostic."""
    try:
        yield from _check_steps(trainer)
    except NonFiniteError as error:
        scratch, kept = trainer.folder.diagnostics, out / "diagnostics"
        shutil.copytree(scratch, kept, dirs_exist_ok=True)
        yield CheckResult(
            "training",
            False,
            str(error).replace(str(scratch), str(kept)),
            "losses and gradient norms of the first updates are finite",
        )


def _check_steps(trainer: Trainer) -> Iterator[CheckResult]:
    """Run steps, return to a snapshot, and run the steps again."""
    parameters = trainer.trained[registry.STUDENT].parameters
    begin = [parameter.detach().clone() for parameter in parameters]
    for step in range(STEPS):
        trainer.take_step(step)
    snapshot = trainer.checkpointer.snapshot(STEPS)
    pairs, total = list(zip(parameters, begin, strict=True)), sum(p.numel() for p in parameters)
    share = sum((now != then).sum().item() for now, then in pairs) / total
    rounded = sum((now.bfloat16() != then.bfloat16()).sum().item() for now, then in pairs) / total
    kinds = {p.dtype for trained in trainer.trained.values() for p in trained.parameters}
    yield CheckResult(
        "master weights",
        kinds == {torch.float32} and share > 0.3,  # with LoRA only B moves at first, not A
        f"fp32; one update moved {share:.0%} of the student's weights (in bf16 it would have been {rounded:.0%})",
        "weights stay in fp32, so that small updates are not rounded away",
    )
    del begin, pairs
    records = [_losses(trainer.take_step(step)) for step in range(STEPS, 2 * STEPS)]
    after = {name: sharding.whole_network_state(trained.network) for name, trained in trainer.trained.items()}
    _restore(trainer, snapshot)
    again = [_losses(trainer.take_step(step)) for step in range(STEPS, 2 * STEPS)]
    share = max(_mean_difference(trained, after[name]) for name, trained in trainer.trained.items())
    yield CheckResult(
        "resume",
        share <= _resume_limit(trainer.accelerator.device),
        f"{STEPS} + {STEPS} steps, the last {STEPS} twice: weights differ by {share:.2g} of the learning rate on "
        f"average, losses {'not at all' if records == again else 'slightly'}",
        "a checkpoint restores all that a run needs: weights, moments and draws (bit for bit on a CPU)",
    )


def _resume_limit(device: torch.device) -> float:
    """Return the largest difference. An element of Adam's step may change sign if its gradient is nearly 0."""
    return 0.0 if device.type == "cpu" else RESUME_LIMIT


def _mean_difference(trained: TrainedNetwork, before: Mapping[str, Tensor]) -> float:
    """Return the mean difference of the trained weights to `before`, in learning rates."""
    state = sharding.whole_network_state(trained.network)
    total = sum((value - before[name]).abs().sum(dtype=torch.float64).item() for name, value in state.items())
    return total / sum(p.numel() for p in trained.parameters) / trained.optimizer.param_groups[0]["lr"]


def _losses(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name.startswith("loss")}


def _restore(trainer: Trainer, snapshot: checkpoint.Snapshot) -> None:
    for name, trained in trainer.trained.items():
        trained.network.load_state_dict(snapshot.networks[name], strict=True)
        optimizer_state.restore_optimizer_state(trained.network, trained.optimizer, snapshot.optimizers[name])


def check_scorers(trainer: Trainer) -> CheckResult:
    loaded = list(trainer.evaluation.scorers) if trainer.evaluation else []
    return CheckResult(
        "scorers",
        True,
        f"loaded: {', '.join(loaded) or 'none'}",
        "scorers whose paths are given load; without scorers there is no evaluation in the loop",
    )


def check_disk(trainer: Trainer, folder: Path) -> CheckResult:
    free = free_bytes(folder)
    each = checkpoint.size_in_bytes(trainer.config)
    return CheckResult(
        "free disk",
        free > 2 * each,
        f"{free / 1e9:.1f} GB are free at {folder}, a checkpoint takes {each / 1e9:.2f} GB",
        "at least two checkpoints must fit; a run checks at its start that all of them do",
    )


def check_memory(trainer: Trainer) -> CheckResult:
    memory = trainer.setup.memory
    return CheckResult(
        "device memory",
        memory.fits,
        memory.summary(),
        "the estimated memory of a run fits its device; memory.txt lists the items",
    )


def save_images(trainer: Trainer, batch: DoctorBatch, path: Path) -> CheckResult:
    latents = {"student": batch.rollout.x.detach()}
    if trainer.base_error is not None:
        with torch.no_grad(), unquantized_base(trainer.config, batch.run):
            latents["student, base not quantised"] = updates.roll_out_student(batch.run, batch.micro_batch).x
    latents |= {"x0_real": batch.scores.x0_real, "x0_fake": batch.scores.x0_fake}
    images = trainer.decoder.decode(torch.cat(list(latents.values())))
    rows = [to_pil(part) for part in images.chunk(len(latents))]
    sigmas = ", ".join(f"{sigma:.2f}" for sigma in batch.scores.sigma.tolist())
    save_image(labelled_grid(rows, list(latents), f"score times {sigmas}"), path)
    contrast = images.chunk(len(latents))[0].flatten(1).std(dim=1).min().item()
    return CheckResult(
        "images",
        bool(images.isfinite().all()) and contrast > 0.01,
        f"{path}; least contrast of the student {contrast:.2f}",
        "check by eye: x0_real is the teacher's prediction for each prompt, x0_fake the fake score's",
    )


def run_checks(trainer: Trainer, out: Path, scratch: Path, checkpoints: Path) -> list[CheckResult]:
    """Run every check, in the order in which to look for a fault; write the image to `out`."""
    batch = prepare_batch(trainer)
    return [
        check_grids(trainer, scratch),
        check_guidance(trainer, batch),
        *([check_base(trainer)] if trainer.base_error is not None else []),
        check_sign(trainer, batch),
        check_detach(trainer, batch),
        check_noise(trainer),
        check_clipping(trainer, batch),
        save_images(trainer, batch, out / "pictures.png"),
        check_scorers(trainer),
        check_disk(trainer, checkpoints),
        check_memory(trainer),
        *check_training(trainer, out),
    ]


def table(results: Sequence[CheckResult]) -> str:
    """Return the results as a Markdown table."""
    rows = ([each.name, "ok" if each.passed else "**FAILED**", each.found, each.meaning] for each in results)
    return markdown_table(["check", "", "found", "what it means"], rows)
