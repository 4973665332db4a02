"""A run's networks, optimizers, text, decoder and evaluation, loaded and wired to each other. Collective throughout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd import checkpoint, distributed, methods, text_cache
from dpdmd.evaluation.in_loop import InLoopEvaluation
from dpdmd.families import family_class
from dpdmd.families.base import Family, ImageDecoder, RestingDecoder, TextEncoder
from dpdmd.networks import Networks, load_networks
from dpdmd.optimizers import make_optimizer
from dpdmd.preflight import Plan
from dpdmd.run_log import logger
from dpdmd.sampling import Sampler, SamplerSettings
from dpdmd.text_stream import StreamedTextEncoder


@dataclass
class Trained:
    """One trained network.

    Attributes:
        network: as the trainer calls it, wrapped or not.
        learning_rate: the full one, before any schedule.
        updates: how often it was updated.
    """

    network: nn.Module
    optimizer: Any
    parameters: list[nn.Parameter]
    learning_rate: float
    updates: int = 0


@dataclass(frozen=True)
class Assembly:
    """All that a trainer works with; `evaluation` is None where no scorer is configured."""

    student: Trained
    fake: Trained
    run: methods.Distillation
    text_encoder: TextEncoder
    decoder: ImageDecoder
    evaluation: InLoopEvaluation | None


def assemble(plan: Plan, accelerator: Any) -> Assembly:
    """Load everything, where the plan's checkpoint left it.

    Raises:
        ValueError: weights do not fit, or the text cache does not fit its disk.
    """
    config, resumed = plan.config, plan.checkpoint
    dtype = torch.bfloat16 if config.optim.bf16 else torch.float32
    family = family_class(config.model.family)(accelerator.device, dtype)
    teacher_folder = Path(config.model.teacher_id)
    # Text comes first: with a cache its encoders are gone before the networks need their memory.
    text_encoder = _load_text_encoder(plan, accelerator, family)
    networks = load_networks(config, family, checkpoint.student_folder(resumed, config) if resumed else None)
    if config.optim.shard_teacher:
        distributed.shard_frozen(networks.teacher, family.block_classes)
    if resumed:
        networks.fake.load_state_dict(checkpoint.load_state(resumed, "fake"), strict=True)
    student = _prepare(plan, accelerator, "student", networks.student, config.optim.lr_student)
    fake = _prepare(plan, accelerator, "fake", networks.fake, config.optim.lr_fake)
    if plan.progress:
        student.updates, fake.updates = plan.progress.student_updates, plan.progress.fake_updates
    decoder = family.load_image_decoder(teacher_folder)
    if config.optim.offload_vae:
        decoder = RestingDecoder(decoder, accelerator.device)
    schedule = family.load_schedule(teacher_folder)
    unwrap = accelerator.unwrap_model
    run = methods.Distillation(
        config=config.method,
        family=family,
        schedule=schedule,
        networks=Networks(networks.teacher, unwrap(student.network), unwrap(fake.network)),
        student_forward=student.network,
        fake_forward=fake.network,
        null=text_encoder.encode([""]),
        latent_shape=decoder.latent_shape(config.data.height, config.data.width),
        seed=config.run.seed,
        **methods.Distillation.grids(config.method, schedule, accelerator.device),
    )
    evaluation = _load_evaluation(plan, accelerator, run, text_encoder, decoder) if plan.evaluation.sets else None
    return Assembly(student, fake, run, text_encoder, decoder, evaluation)


def _load_text_encoder(plan: Plan, accelerator: Any, family: Family) -> TextEncoder:
    """The teacher's text encoders, or with `--cache_text_embeddings` what they said."""
    data, folder, no_t5 = plan.config.data, Path(plan.config.model.teacher_id), plan.config.model.no_t5

    def load() -> TextEncoder:
        encoder = family.load_text_encoder(folder, data.max_sequence_length, no_t5=no_t5)
        return StreamedTextEncoder(encoder, accelerator.device) if accelerator.device.type == "cuda" else encoder

    if not data.cache_text_embeddings:
        return load()
    pictured = [prompt for pictures in plan.evaluation.sets for prompt in pictures.prompts]
    return text_cache.cached_encoder(
        Path(data.cache_text_embeddings),
        [*plan.prompts, *pictured],
        text_cache.CacheSettings(str(folder.resolve()), data.max_sequence_length, str(family.compute_dtype), no_t5),
        accelerator.device,
        load,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        wait=accelerator.wait_for_everyone,
        tell=logger.info,
    )


def _prepare(plan: Plan, accelerator: Any, name: str, network: nn.Module, lr: float) -> Trained:
    """One trained network in its topology, with its optimizer as the checkpoint has it."""
    optimizer = make_optimizer(network.parameters(), plan.config.optim, lr, accelerator.device)
    network, optimizer = distributed.prepare(accelerator, network, optimizer)
    if plan.checkpoint:
        saved = checkpoint.load_state(plan.checkpoint, f"optimizer_{name}")
        distributed.restore_optimizer_state(network, optimizer, saved)
    return Trained(network, optimizer, list(network.parameters()), lr)


def _load_evaluation(
    plan: Plan, accelerator: Any, run: methods.Distillation, text_encoder: TextEncoder, decoder: ImageDecoder
) -> InLoopEvaluation:
    data, networks = plan.config.data, run.networks

    def sampler(network: nn.Module, sigmas: Tensor, guidance_scale: float) -> Sampler:
        settings = SamplerSettings(sigmas, guidance_scale, data.height, data.width)
        return Sampler(run.family, network, run.schedule, decoder, run.null, settings)

    return InLoopEvaluation(
        plan.config,
        plan.evaluation,
        accelerator,
        plan.folder,
        student=sampler(networks.student, run.student_sigmas, 1.0),
        teacher=sampler(networks.teacher, run.teacher_sigmas, run.config.teacher_guidance_scale),
        encoder=text_encoder,
    )
