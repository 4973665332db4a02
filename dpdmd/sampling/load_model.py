"""Find a model that a user names (a run, a checkpoint, a pipeline folder, a .pt file) and load its sampler."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dpdmd.models.base import Family, TextEncoder
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.layout import Layout
from dpdmd.models.lora_files import LORA_WEIGHTS
from dpdmd.models.registry import LAYOUTS, family_class, family_of
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults
from dpdmd.models.weight_files import check_weights, read_checkpoint, read_shapes
from dpdmd.run_folder import LORA, STUDENT, RunFolder
from dpdmd.sampling.sampler import Sampler, SamplerSettings
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.logging import logger

STUDENT_DEFAULTS = SamplingDefaults(steps=4, guidance_scale=1.0)  # paper: 4 steps, no guidance


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        folder: pipeline folder. A network or a LoRA alone needs the pipeline folder that it was trained from.
        defaults: the model's sampling defaults.
        state_dict: file whose weights replace those of the folder's network.
        lora: folder of a LoRA of the folder's network.
    """

    folder: Path
    defaults: SamplingDefaults
    state_dict: Path | None = None
    lora: Path | None = None

    @property
    def source(self) -> Path:
        """The path that a user names to get this model."""
        return self.state_dict or self.lora or self.folder


def find_model(path: Path, base_model: Path | None) -> Model:
    """Find the model of a path: a pipeline or LoRA folder, a checkpoint, a run (its newest checkpoint), or a .pt file.

    Args:
        base_model: pipeline folder that a network or a LoRA alone was trained from.

    Raises:
        ValueError: `path` holds no model, or `base_model` is needed and was not given.
    """
    try:
        return _find(path, base_model)
    except OSError as error:
        raise ValueError(f"--model {path}: {error.filename} cannot be read ({error.strerror})") from None


def warn_of_unused_base(model: Model, base_model: Path | None) -> None:
    """Log a warning if `base_model` was given for a complete pipeline."""
    if base_model and model.source == model.folder:
        logger.warning("--base_model %s: not used, since --model is a whole pipeline", base_model)


def _find(path: Path, base_model: Path | None) -> Model:
    if path.suffix == ".pt":
        if not path.is_file():
            raise ValueError(f"--model {path}: no such file")
        if base_model is None:
            raise ValueError(f"--model {path}: is a network alone; give the pipeline it is of as --base_model")
        return Model(base_model, STUDENT_DEFAULTS, state_dict=path)
    places = [path, path / STUDENT, path / LORA]
    if latest := RunFolder.of(path).latest():
        places += [latest / STUDENT, latest / LORA]
    for place in places:
        if (place / "model_index.json").is_file():
            return Model(place, read_sampling_defaults(place, LAYOUTS[family_of(place)].defaults))
        if (place / LORA_WEIGHTS).is_file():
            return _with_base(place, base_model)
    raise ValueError(
        f"--model {path}: neither a pipeline folder (no model_index.json) nor a LoRA (no {LORA_WEIGHTS}) nor a "
        "checkpoint nor a run with one"
    )


def _with_base(lora: Path, base_model: Path | None) -> Model:
    """Return a LoRA with its pipeline: `base_model`, or the one in its dpdmd.json."""
    defaults = read_sampling_defaults(lora, STUDENT_DEFAULTS)
    read_shapes(lora / LORA_WEIGHTS)
    base = base_model or (Path(defaults.base) if defaults.base else None)
    if base is None or not base.is_dir():
        raise ValueError(f"--model {lora}: is a LoRA of {base or 'a pipeline'}, which is not there; give --base_model")
    return Model(base, defaults, lora=lora)


def model_family(model: Model, device: torch.device, dtype: torch.dtype) -> Family:
    """Check a model's files, and return its family.

    Raises:
        ValueError: a file is missing or broken, or weights do not fit.
    """
    name, flag = family_of(model.folder), "--model" if model.source == model.folder else "--base_model"
    check_folder(LAYOUTS[name], model.folder, flag, no_t5=model.defaults.no_t5)
    from dpdmd.models.checks.contents import check_contents  # imports diffusers

    check_contents(LAYOUTS[name], model.folder, flag, no_t5=model.defaults.no_t5)
    _check_source(model, LAYOUTS[name])
    return family_class(name)(device, dtype)


def _check_source(model: Model, layout: Layout) -> None:
    """Compare a network or a LoRA alone with its pipeline, by names and shapes of weights.

    Raises:
        ValueError: names or shapes differ.
    """
    expected = layout.weight_shapes(model.folder, layout.network)
    if model.state_dict:
        found = {name: tuple(value.shape) for name, value in read_checkpoint(model.state_dict).items()}
        try:
            check_weights(found, expected, model.state_dict, exact=True)
        except ValueError as error:
            raise ValueError(f"--model {model.state_dict}: does not fit {model.folder} ({error})") from None
    for name, found in read_shapes(model.lora / LORA_WEIGHTS).items() if model.lora else ():
        layer, _, half = name.removeprefix(f"{layout.network}.").partition(".lora_")
        if half not in ("A.weight", "B.weight") or f"{layer}.weight" not in expected:
            continue  # an error when the LoRA is loaded
        side = int(half == "A.weight")  # A is [rank, inputs], B [outputs, rank]
        wanted = expected[f"{layer}.weight"]
        if len(found) == len(wanted) == 2 and found[side] != wanted[side]:
            difference = f"{layer} has {wanted[side]} {'inputs' if side else 'outputs'}, and it {found[side]}"
            raise ValueError(f"{model.lora / LORA_WEIGHTS} does not fit the network ({difference})")


def load_network(family: Family, model: Model, dtype: torch.dtype) -> nn.Module:
    """Load a model's network, with its state dict or LoRA.

    Raises:
        ValueError: weights do not fit.
    """
    network = family.load_network(model.folder, dtype)
    if model.state_dict:
        try:
            network.load_state_dict(read_checkpoint(model.state_dict), strict=True)
        except RuntimeError as error:
            raise ValueError(
                f"--model {model.state_dict}: does not fit {model.folder} ({shorten_error(error)})"
            ) from None
    if model.lora:
        family.load_lora(network, model.lora)
    return network


def load_sampler(
    path: Path,
    device: torch.device,
    *,
    base_model: Path | None = None,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    max_sequence_length: int | None = None,
) -> tuple[Sampler, TextEncoder]:
    """Load a model to sample from; options not given come from the folder's sampling defaults, else from the family's.

    Args:
        path: a run, a checkpoint, a pipeline or LoRA folder, or a student's network as a state dict in a .pt file, as
            the authors' release saves it. With a .pt file all other parts come from `base_model`, and the model samples
            in 4 steps without guidance.

    Raises:
        ValueError: missing or broken files, weights that do not fit, or an image size that the model does not allow.
    """
    model = find_model(path, base_model)
    family = model_family(model, device, dtype)
    folder, defaults, layout = model.folder, model.defaults, LAYOUTS[family_of(model.folder)]
    height, width = height or layout.default_size(folder), width or layout.default_size(folder)
    layout.check_size(folder, height, width)
    max_sequence_length = layout.text_length(folder, max_sequence_length, defaults)
    schedule = family.load_schedule(folder)
    own = defaults.sigmas and steps in (None, len(defaults.sigmas) - 1)
    settings = SamplerSettings(
        torch.tensor(defaults.sigmas) if own else schedule.named_sigmas(defaults.grid, steps or defaults.steps),
        defaults.guidance_scale if guidance_scale is None else guidance_scale,
        height,
        width,
    )
    encoder = family.load_text_encoder(folder, max_sequence_length, no_t5=defaults.no_t5)
    network = load_network(family, model, dtype).requires_grad_(False).to(device)
    decoder = family.load_image_decoder(folder)
    return Sampler(family, network, schedule, decoder, encoder.encode([""]), settings), encoder
