"""Find a model that a user names (a run, a checkpoint, a pipeline folder, a .pt file) and load its sampler."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from dpdmd.models.base import Family, TextEncoder
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.layout import Layout
from dpdmd.models.lora_files import LORA_WEIGHTS
from dpdmd.models.noise_schedule import DEFAULT
from dpdmd.models.registry import LAYOUTS, family_class, family_of, sampling_defaults
from dpdmd.models.sampling_defaults import DEFAULTS_FILE, SamplingDefaults, read_sampling_defaults
from dpdmd.models.weight_files import NETWORK_FILES, check_weights, read_network, read_network_shapes, read_shapes
from dpdmd.run_folder import LORA, STUDENT, RunFolder
from dpdmd.sampling.sampler import Sampler, SamplerSettings
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.logging import logger
from dpdmd.utils.paths import same_place

STUDENT_STEPS = 4  # paper
NETWORK_PREFIXES = ("module", "model")  # of DDP and of trainers, before the names of a network's weights


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
    """Find the model of a path: a pipeline or LoRA folder, a checkpoint, a run (its newest checkpoint), or a network.

    A network is a file: .pt, .pth, .bin or .safetensors.

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
    if path.suffix.lower() in NETWORK_FILES and not path.is_dir():
        if not path.is_file():
            raise ValueError(f"--model {path}: no such file")
        if base_model is None:
            raise ValueError(f"--model {path}: is a network alone; give the pipeline it is of as --base_model")
        return Model(base_model, _defaults_of_network(path, base_model), state_dict=path)
    for place in _places(path):
        if (place / "model_index.json").is_file():
            return Model(place, sampling_defaults(place))
        if (place / LORA_WEIGHTS).is_file():
            return _with_base(place, base_model)
    raise ValueError(
        f"--model {path}: neither a pipeline folder (no model_index.json) nor a LoRA (no {LORA_WEIGHTS}) nor a "
        "checkpoint nor a run with one"
    )


def _places(folder: Path) -> list[Path]:
    """Return where the model of a pipeline or LoRA folder, a checkpoint or a run may be."""
    latest = RunFolder.of(folder).latest()
    checkpoints = [folder, latest] if latest else [folder]
    return [folder, *(checkpoint / name for checkpoint in checkpoints for name in (STUDENT, LORA))]


def _defaults_of_network(path: Path, base: Path) -> SamplingDefaults:
    """Return the sampling defaults of a network alone: the dpdmd.json beside it, else a student's of `base`.

    Beside the file is its own folder, or the pipeline, checkpoint or run that this folder belongs to. The dpdmd.json of
    the base itself does not count: it has the teacher's steps.
    """
    for folder in path.absolute().parents[:2]:
        for place in _places(folder):
            if (place / DEFAULTS_FILE).is_file() and not same_place(place, base):
                return read_sampling_defaults(place, SamplingDefaults())
    return _student_defaults(base)


def _student_defaults(base: Path) -> SamplingDefaults:
    """Return the sampling defaults of a student of `base` that has no dpdmd.json: text as in `base`, and 4 steps."""
    own, off = sampling_defaults(base), LAYOUTS[family_of(base)].guidance.off  # paper
    return replace(own, steps=STUDENT_STEPS, guidance_scale=off, sigmas=None, grid=DEFAULT, base=None, shift=None)


def _with_base(lora: Path, base_model: Path | None) -> Model:
    """Return a LoRA with its pipeline: `base_model`, or the one in its dpdmd.json."""
    read_shapes(lora / LORA_WEIGHTS)
    own = read_sampling_defaults(lora, SamplingDefaults())
    base = base_model or own.find_base(lora)
    if base is None or not base.is_dir():
        raise ValueError(f"--model {lora}: is a LoRA of {base or 'a pipeline'}, which is not there; give --base_model")
    return Model(base, own if (lora / DEFAULTS_FILE).exists() else _student_defaults(base), lora=lora)


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
        found = read_network_shapes(model.state_dict, (*NETWORK_PREFIXES, layout.network))
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
            layout = LAYOUTS[family_of(model.folder)]
            network.load_state_dict(read_network(model.state_dict, (*NETWORK_PREFIXES, layout.network)), strict=True)
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
        path: a run, a checkpoint, a pipeline or LoRA folder, or a file with a student's network alone, such as the .pt
            of the authors' release. All other parts of a network alone come from `base_model`. If there is no
            dpdmd.json beside it, it samples in 4 steps without guidance, with the text length of `base_model`.

    Raises:
        ValueError: missing or broken files, weights that do not fit, or an image size that the model does not allow.
    """
    model = find_model(path, base_model)
    family = model_family(model, device, dtype)
    folder, defaults, layout = model.folder, model.defaults, LAYOUTS[family_of(model.folder)]
    default_size = layout.default_size(folder)
    height, width = height or defaults.height or default_size, width or defaults.width or default_size
    layout.check_size(folder, height, width)
    max_sequence_length = layout.text_length(folder, max_sequence_length, defaults)
    schedule = family.load_schedule(folder).at_size(height, width)
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
    return Sampler(family, network, schedule, decoder, encoder.encode([layout.guidance.null_prompt]), settings), encoder
