"""Check the files of a model, and load its network or its sampler."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.precisions import UNQUANTIZED, Precisions
from dpdmd.data.encoded_prompts import EncodedPrompts
from dpdmd.models.base import UNQUANTIZED_MODEL, Family, TextEncoder
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.layout import Layout
from dpdmd.models.network_files import read_network, read_network_shapes
from dpdmd.models.noise_schedule import Schedule
from dpdmd.models.registry import family_class, family_of
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.weight_files import check_weights, stored_in_16_bits
from dpdmd.sampling.find_model import Model, find_model
from dpdmd.sampling.sampler import Sampler, SamplerSettings
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.logging import logger


def network_prefixes(layout: Layout) -> tuple[str, ...]:
    """Return what may stand before the names of all weights of a network's file: of DDP, trainers and pipelines."""
    return ("module", "model", layout.network)


def model_family(
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    *,
    flag: str = "--model",
    precisions: Precisions = UNQUANTIZED_MODEL,
) -> Family:
    """Check a model's files, and return its family.

    Args:
        flag: the flag that names the model, for messages.
        precisions: how the family quantises what it loads.

    Raises:
        ValueError: a file is missing or broken, or weights do not fit.
    """
    layout, flag = model.layout, flag if model.source == model.folder else model.folder_flag
    check_folder(layout, model.folder, flag, no_t5=model.defaults.no_t5)
    from dpdmd.models.checks.contents import check_contents  # imports diffusers

    check_contents(layout, model.folder, flag, no_t5=model.defaults.no_t5)
    _check_sigmas(model, layout)
    family = family_class(family_of(model.folder))(device, dtype, precisions)
    _check_source(model, family)
    if model.state_dict and precisions.base != UNQUANTIZED:
        raise ValueError(
            f"--base_precision {precisions.base}: not possible with a network alone; export it with its pipeline "
            "(python -m dpdmd.export), and give that as --model"
        )
    return family


def _check_sigmas(model: Model, layout: Layout) -> None:
    """Check that the grid of a model's sampling defaults is one of its family.

    Raises:
        ValueError: its first or last noise level is out of the schedule's range.
    """
    schedule, sigmas = layout.read_schedule(model.folder), model.defaults.sigmas
    if sigmas and not schedule.covers(round(sigmas[0], 6), sigmas[-2]):  # a default grid's 1 may be off by one bit
        raise ValueError(f"--model {model.source}: the sigmas of its dpdmd.json must {schedule.rule}")


def _check_source(model: Model, family: Family) -> None:
    """Compare a network or a LoRA alone with its pipeline, by names and shapes of weights.

    Raises:
        ValueError: names or shapes differ.
    """
    layout = family.layout
    expected = layout.weight_shapes(model.folder, layout.network)
    if model.state_dict:
        try:
            found = read_network_shapes(model.state_dict, network_prefixes(layout))
        except ValueError as error:  # it begins with the file
            raise ValueError(f"--model {error}") from None
        try:
            check_weights(found, expected, model.state_dict, exact=True)
        except ValueError as error:
            raise ValueError(f"--model {model.state_dict}: does not fit {model.folder} ({error})") from None
    if model.lora:
        family.check_lora(model.lora, expected)


def load_network(family: Family, model: Model, dtype: torch.dtype) -> nn.Module:
    """Load a model's network, with its state dict or LoRA.

    Raises:
        ValueError: weights do not fit.
    """
    network = family.load_network(model.folder, dtype)
    if model.state_dict:
        try:
            network.load_state_dict(read_network(model.state_dict, network_prefixes(family.layout)), strict=True)
        except RuntimeError as error:
            raise ValueError(
                f"--model {model.state_dict}: does not fit {model.folder} ({shorten_error(error)})"
            ) from None
    if model.lora:
        family.load_lora(network, model.lora)
    return network


def _warn_of_untrained_size(size: ImageSize, defaults: SamplingDefaults) -> None:
    trained = defaults.trained_sizes
    if trained and size not in trained:
        logger.warning("size %s: the student was trained at %s", size, ", ".join(map(str, trained)))


def image_size(model: Model, height: int | None, width: int | None) -> tuple[int, int]:
    """Return the image size in pixels: as given, else that of the sampling defaults, else the network's own.

    Raises:
        ValueError: the model cannot make images of this size.
    """
    layout = model.layout
    sizes = []
    for side, given in (("height", height), ("width", width)):
        value, place = given, f"--{side} {given}:"
        if not given and (value := getattr(model.defaults, side)):
            place = f"--model {model.source}: {side} {value} in its dpdmd.json"
        elif not given:
            value = layout.default_size(model.folder)
            place = f"{model.folder_flag} {model.folder}: {side} {value} by the sample_size of its {layout.network}"
        layout.check_side(model.folder, value, place)
        sizes.append(value)
    return sizes[0], sizes[1]


def sampler_settings(
    model: Model,
    schedule: Schedule,
    height: int,
    width: int,
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
) -> SamplerSettings:
    """Return how to sample a model; `steps` and `guidance_scale` come from its sampling defaults if they are None.

    Args:
        schedule: at this image size.

    Raises:
        ValueError: the schedule has no grid of so many steps.
    """
    defaults = model.defaults
    try:
        grid = _grid(defaults, schedule, ImageSize(height, width), steps or defaults.steps)
    except ValueError as error:
        place = f"--steps {steps}" if steps else f"--model {model.source}: {defaults.steps} steps"
        raise ValueError(f"{place}: {error}") from None
    return SamplerSettings(
        grid,
        defaults.guidance_scale if guidance_scale is None else guidance_scale,
        height,
        width,
    )


def _grid(defaults: SamplingDefaults, schedule: Schedule, size: ImageSize, steps: int) -> Tensor:
    """Return the grid [steps + 1] of images of a `size`: that in the sampling defaults, unless it is of another size.

    Numbers that `--student_sigmas` gave are the grid of every size. A named grid may depend on the size.
    """
    if not defaults.sigmas or steps != len(defaults.sigmas) - 1:
        return schedule.named_sigmas(defaults.grid, steps)
    sigmas, trained = torch.tensor(defaults.sigmas), next(iter(defaults.trained_sizes), size)
    if schedule.depends_on_size and trained != size:
        named = schedule.at_size(*trained).named_sigmas(defaults.grid, steps)
        if torch.allclose(sigmas, named, rtol=0, atol=1e-6):
            return schedule.named_sigmas(defaults.grid, steps)
    return sigmas


def uses_bf16(model: Model, requested: bool | None) -> bool:
    """Return whether a model computes in bf16: as `requested`, else as in its training, else by its stored weights.

    A GPU without bf16 computes in fp32 if nothing is requested. A pickled network counts as stored like its pipeline.

    Raises:
        ValueError: a file is missing or broken.
    """
    if requested is not None:
        return requested
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return False
    if model.defaults.bf16 is not None:
        return model.defaults.bf16
    layout = model.layout
    check_folder(layout, model.folder, model.folder_flag, no_t5=model.defaults.no_t5)
    if model.state_dict and model.state_dict.suffix.lower() == ".safetensors":
        return stored_in_16_bits([model.state_dict])
    return stored_in_16_bits(layout.weight_files(model.folder, layout.network))


@dataclass(frozen=True)
class SamplerPlan:
    """A checked model with its options, before any weight is loaded.

    Attributes:
        max_sequence_length: tokens of a prompt.
    """

    model: Model
    family: Family
    schedule: Schedule
    settings: SamplerSettings
    max_sequence_length: int

    def load(self, prompts: Sequence[str] | None = None, *, progress: str = "") -> tuple[Sampler, TextEncoder]:
        """Load the sampler and a text encoder.

        Args:
            prompts: all prompts to come. They are encoded first, and the text encoders are deleted before the network
                loads; the returned encoder knows only these prompts. If None, the text encoders stay in memory.
            progress: label of a progress bar of the encoding; "" for none.

        Raises:
            ValueError: weights do not fit.
            OSError: the file system of temporary files has too little space for the embeddings.
        """
        family, folder = self.family, self.model.folder
        null_prompt = family.layout.guidance.null_prompt
        encoder = family.load_text_encoder(folder, self.max_sequence_length, no_t5=self.model.defaults.no_t5)
        if prompts is not None:
            encoder = EncodedPrompts(encoder, [null_prompt, *prompts], family.device, progress=progress)
            gc.collect()  # the libraries' pipelines hold reference cycles
            torch.cuda.empty_cache()
        network = load_network(family, self.model, family.compute_dtype).requires_grad_(False).to(family.device)
        decoder = family.load_image_decoder(folder)
        return Sampler(family, network, self.schedule, decoder, encoder.encode([null_prompt]), self.settings), encoder


def plan_sampler(
    model: Model,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    max_sequence_length: int | None = None,
    precisions: Precisions = UNQUANTIZED_MODEL,
) -> SamplerPlan:
    """Check a model to sample from; options not given come from the folder's sampling defaults, else the family's.

    Raises:
        ValueError: missing or broken files, weights that do not fit, or an image size that the model does not allow.
    """
    family = model_family(model, device, dtype, precisions=precisions)
    folder, defaults, layout = model.folder, model.defaults, family.layout
    height, width = image_size(model, height, width)
    _warn_of_untrained_size(ImageSize(height, width), defaults)
    max_sequence_length = layout.text_length(folder, max_sequence_length, defaults, model.source)
    schedule = family.load_schedule(folder).at_size(height, width)
    settings = sampler_settings(model, schedule, height, width, steps=steps, guidance_scale=guidance_scale)
    if weak := layout.guidance.weakens(settings.guidance_scale):
        logger.warning("%s", weak)
    return SamplerPlan(model, family, schedule, settings, max_sequence_length)


def load_sampler(
    path: Path, device: torch.device, *, base_model: Path | None = None, **options: Any
) -> tuple[Sampler, TextEncoder]:
    """Load a model to sample any prompts from; `options` are those of `plan_sampler`.

    Args:
        path: a run, a checkpoint, a pipeline or LoRA folder, or a file with a student's network alone, such as the .pt
            of the authors' release. All other parts of a network alone come from `base_model`. If there is no
            dpdmd.json beside it, it samples in 4 steps without guidance, with the text length of `base_model`.

    Raises:
        ValueError: as `plan_sampler`, or weights do not fit.
    """
    return plan_sampler(find_model(path, base_model), device, **options).load()
