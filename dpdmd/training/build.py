"""Load a run's networks, optimizers, text encoders, decoder and evaluation, and connect them. All collective."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.method_table import DISCRIMINATOR, FAKE, STUDENT
from dpdmd.config.precisions import UNQUANTIZED
from dpdmd.data import teacher_sample_cache, text_embedding_cache
from dpdmd.data.prompts import pool_prompts
from dpdmd.data.tensor_cache import Processes
from dpdmd.distributed import collectives, sharding
from dpdmd.evaluation.in_loop import InLoopEvaluation
from dpdmd.methods import registry
from dpdmd.methods.context import DistillationContext
from dpdmd.methods.discriminator import Discriminator, DiscriminatorContext, choose_blocks, token_widths
from dpdmd.methods.networks import Networks, blocks_owner, load_networks, trained_parameters
from dpdmd.methods.perceptual import load_perceptual
from dpdmd.models.base import Family, ImageDecoder, TextEncoder
from dpdmd.models.identity import cache_key, identify_text
from dpdmd.models.image_decoder import OffloadedDecoder
from dpdmd.models.registry import LAYOUTS, family_class, identify_teacher
from dpdmd.models.streamed_text_encoder import StreamedTextEncoder
from dpdmd.run_folder import STUDENT_EMA
from dpdmd.sampling.sampler import Sampler, SamplerSettings
from dpdmd.training import anchor_choice, checkpoint, optimizer_state
from dpdmd.training.ema import MovingAverage
from dpdmd.training.optimizers import make_optimizer
from dpdmd.training.preflight import RunSetup
from dpdmd.training.step import TrainedNetwork
from dpdmd.utils import precision


@dataclass(frozen=True)
class TrainingState:
    """Everything that a trainer works with.

    Attributes:
        trained: the networks that the method trains, by name.
        average: the student's moving average, or None.
        evaluation: None if no scorer is configured.
    """

    trained: dict[str, TrainedNetwork]
    average: MovingAverage | None
    run: DistillationContext
    text_encoder: TextEncoder
    decoder: ImageDecoder
    evaluation: InLoopEvaluation | None


def build_training_state(setup: RunSetup, accelerator: Any) -> TrainingState:
    """Load everything, in the state of the checkpoint if the run continues one.

    Raises:
        ValueError: weights do not fit, or a cache does not fit its disk.
    """
    config, resumed = setup.config, setup.resume.path
    kind = family_class(config.model.family)
    family = kind(accelerator.device, precision.set_up(config.optim.bf16), config.model.precisions)
    teacher_folder = Path(config.model.teacher_id)
    # Text comes first: with a cache its encoders are deleted before the networks need their memory.
    text_encoder = _load_text_encoder(setup, accelerator, family)
    # The same count on all ranks, whatever their devices: sharded blocks are gathered when they are recomputed.
    config.optim.recomputed_blocks = collectives.broadcast_from_main(accelerator, config.optim.recomputed_blocks)
    # With LoRA under FSDP only the frozen base is sharded. Adapters are small: every process trains them whole.
    sharded = sharding.is_fsdp(accelerator) and (config.optim.shard_teacher or config.model.lora_rank is not None)
    networks = load_networks(
        config, family, checkpoint.student_folder(resumed, config) if resumed else None, place_frozen=not sharded
    )
    if resumed and config.model.lora_rank:
        folder = checkpoint.student_folder(resumed, config)
        networks.student.load_state_dict(checkpoint.load_adapter(resumed, STUDENT, folder, family), strict=True)
    if sharded:
        sharding.shard_frozen(blocks_owner(networks.teacher), family.block_classes, accelerator.device)
    trained = {
        STUDENT: _prepare(setup, accelerator, STUDENT, networks.student, config.optim.lr_student),
        FAKE: _prepare(setup, accelerator, FAKE, networks.fake, config.optim.lr_fake),
    }
    decoder = family.load_image_decoder(teacher_folder)
    if config.optim.offload_vae:
        decoder = OffloadedDecoder(decoder, accelerator.device)
    schedule, sizes = family.load_schedule(teacher_folder), config.data.image_sizes
    grids = DistillationContext.sized_grids(config.method, schedule, sizes, accelerator.device)
    unwrap = accelerator.unwrap_model
    run = DistillationContext(
        config=config.method,
        family=family,
        networks=Networks(networks.teacher, unwrap(trained[STUDENT].network), unwrap(trained[FAKE].network)),
        student_forward=trained[STUDENT].network,
        fake_forward=trained[FAKE].network,
        null=text_encoder.encode([family.layout.guidance.null_prompt]),
        latent_shapes=[decoder.latent_shape(*size) for size in sizes],
        seed=config.run.seed,
        decoder=decoder,
        total_steps=setup.total_steps,
        grids_by_size=grids,
        **grids[0],
    )
    if DISCRIMINATOR in registry.trained_networks(config.method):
        trained[DISCRIMINATOR], discriminator = _load_discriminator(setup, accelerator, run)
        run = replace(run, discriminator=discriminator)
    if path := config.method.perceptual_path:
        perceptual = load_perceptual(config.method.perceptual, Path(path), accelerator.device)
        run = replace(run, perceptual=perceptual)
    if config.method.teacher_cache:
        run = replace(run, stored_samples=_store_samples(setup, accelerator, run, text_encoder))
    anchor_choice.set_k_anchor(setup, accelerator, run, text_encoder, decoder)
    average = _load_average(setup, family, trained[STUDENT]) if config.optim.ema_decay is not None else None
    evaluation = _load_evaluation(setup, accelerator, run, text_encoder, decoder) if setup.evaluation.sets else None
    return TrainingState(trained, average, run, text_encoder, decoder, evaluation)


def _load_text_encoder(setup: RunSetup, accelerator: Any, family: Family) -> TextEncoder:
    """Load the teacher's text encoders, or a reader of cached embeddings if `--cache_text_embeddings` is set."""
    data, folder, no_t5 = setup.config.data, Path(setup.config.model.teacher_id), setup.config.model.no_t5

    def load() -> TextEncoder:
        encoder = family.load_text_encoder(folder, data.max_sequence_length, no_t5=no_t5)
        return StreamedTextEncoder(encoder, accelerator.device) if accelerator.device.type == "cuda" else encoder

    if not data.cache_text_embeddings:
        return load()
    dtype = replace(family.precisions, base=UNQUANTIZED).described(str(family.compute_dtype))
    layout = LAYOUTS[setup.config.model.family]
    model = collectives.call_on_main(accelerator, lambda: cache_key(identify_text(layout, folder, no_t5=no_t5)))
    return text_embedding_cache.cached_encoder(
        Path(data.cache_text_embeddings),
        [layout.guidance.null_prompt, *setup.prompts],
        text_embedding_cache.EmbeddingSettings(model, data.max_sequence_length, dtype, no_t5),
        accelerator.device,
        load,
        _processes(accelerator),
        layout.text_tensors,
        [prompt for images in setup.evaluation.sets for prompt in images.prompts],
    )


def _processes(accelerator: Any) -> Processes:
    def gather(value: Any) -> list[Any]:
        return collectives.gather(accelerator, [value])

    return Processes(accelerator.process_index, accelerator.num_processes, gather)


def _prepare(setup: RunSetup, accelerator: Any, name: str, network: nn.Module, lr: float) -> TrainedNetwork:
    """Wrap a network with its optimizer, both in the state of the checkpoint if there is one.

    The student already has its weights.
    """
    resumed = setup.resume.path
    if resumed and name != STUDENT:
        network.load_state_dict(checkpoint.load_state(resumed, name), strict=True)
    optimizer = make_optimizer(trained_parameters(network), setup.config.optim, lr, accelerator.device)
    lora = setup.config.model.lora_rank is not None
    network, optimizer = sharding.prepare(accelerator, network, optimizer, whole=lora)
    if resumed:
        saved = checkpoint.load_state(resumed, f"{checkpoint.OPTIMIZER}{name}")
        optimizer_state.restore_optimizer_state(network, optimizer, saved)
    updates = setup.resume.progress.updates[name] if setup.resume.progress else 0
    return TrainedNetwork(network, optimizer, trained_parameters(network), lr, updates)


def _load_discriminator(
    setup: RunSetup, accelerator: Any, run: DistillationContext
) -> tuple[TrainedNetwork, DiscriminatorContext]:
    """Build the discriminator on some blocks of the network that `--gan_features` names."""
    network = getattr(run.networks, run.config.gan_features)
    blocks = choose_blocks(run.family, blocks_owner(network))
    widths = token_widths(run.family, network, blocks, run.null, run.latent_shapes[0])
    discriminator = Discriminator(widths, run.seed).to(accelerator.device)
    trained = _prepare(setup, accelerator, DISCRIMINATOR, discriminator, setup.config.optim.lr_discriminator)
    return trained, DiscriminatorContext(accelerator.unwrap_model(trained.network), trained.network, network, blocks)


def _load_average(setup: RunSetup, family: Family, student: TrainedNetwork) -> MovingAverage:
    """Start the student's moving average, from the checkpoint's export of it if there is one."""
    config, state = setup.config, None
    if setup.resume.path:
        folder = checkpoint.average_folder(setup.resume.path, config)
        if config.model.lora_rank:
            state = checkpoint.load_adapter(setup.resume.path, STUDENT_EMA, folder, family)
        else:
            state = family.load_network(folder, torch.float32).state_dict()
    average = MovingAverage(student.network, student.parameters, config.optim.ema_decay)
    if state is not None:
        with average.in_place():
            sharding.restore_network_state(student.network, state)
    return average


def _store_samples(
    setup: RunSetup, accelerator: Any, run: DistillationContext, text_encoder: TextEncoder
) -> list[Callable[[Sequence[int]], Tensor]]:
    """Open the cache of teacher samples at each image size; missing samples are made first."""
    config = setup.config
    pool = pool_prompts(setup.prompts, run.seed, config.method.teacher_cache_size, setup.weights)
    # The samples are latents.
    model = collectives.call_on_main(accelerator, lambda: cache_key(identify_teacher(config.model, without=("vae",))))
    settings = teacher_sample_cache.PoolSettings(
        model=model,
        dtype=run.family.precisions.described(str(run.family.compute_dtype)),
        sigmas=tuple(run.teacher_sigmas.tolist()),
        guidance_scale=run.config.teacher_guidance_scale,
        latent_shape=run.latent_shapes[0],
        max_sequence_length=config.data.max_sequence_length,
        no_t5=config.model.no_t5,
        seed=run.seed,
    )

    def stored(size_index: int, latent_shape: tuple[int, int, int]) -> Callable[[Sequence[int]], Tensor]:
        sized = run.at_size(size_index)

        def make(prompts: Sequence[str], entries: Sequence[int]) -> Tensor:
            return sized.sample_teacher(text_encoder.encode(list(prompts)), run.pool_noise(entries, size_index))

        return teacher_sample_cache.stored_samples(
            Path(config.method.teacher_cache),
            pool,
            replace(settings, latent_shape=latent_shape, sigmas=tuple(sized.teacher_sigmas.tolist())),
            accelerator.device,
            make,
            _processes(accelerator),
        )

    return [stored(index, shape) for index, shape in enumerate(run.latent_shapes)]


def _load_evaluation(
    setup: RunSetup, accelerator: Any, run: DistillationContext, text_encoder: TextEncoder, decoder: ImageDecoder
) -> InLoopEvaluation:
    """Load the scorers, with samplers of student and teacher."""

    def samplers(network: nn.Module, grid: str, guidance_scale: float) -> dict[ImageSize, Sampler]:
        found = {}
        for index, size in enumerate(setup.config.data.image_sizes):
            sized = run.at_size(index)
            settings = SamplerSettings(getattr(sized, grid), guidance_scale, *size)
            found[size] = Sampler(run.family, network, sized.schedule, decoder, run.null, settings)
        return found

    return InLoopEvaluation(
        setup.config,
        setup.evaluation,
        accelerator,
        setup.folder,
        student=samplers(run.networks.student, "student_sigmas", run.family.layout.guidance.off),
        teacher=samplers(run.networks.teacher, "teacher_sigmas", run.config.teacher_guidance_scale),
        encoder=text_encoder,
    )
