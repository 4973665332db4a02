"""Find a model that a user names: a run, a checkpoint, a pipeline folder, a LoRA, or a network's file."""

from dataclasses import dataclass, replace
from pathlib import Path

from dpdmd.config.hub_flags import HubOptions
from dpdmd.models.hub_models import locate
from dpdmd.models.layout import Layout
from dpdmd.models.lora_files import LORA_WEIGHTS
from dpdmd.models.network_files import NETWORK_FILES
from dpdmd.models.noise_schedule import DEFAULT
from dpdmd.models.registry import LAYOUTS, family_of, sampling_defaults
from dpdmd.models.sampling_defaults import DEFAULTS_FILE, SamplingDefaults, read_sampling_defaults
from dpdmd.models.weight_files import read_shapes
from dpdmd.sampling.model_source import base_source, model_place, model_places
from dpdmd.utils.logging import logger
from dpdmd.utils.paths import MODEL_INDEX, same_place

STUDENT_STEPS = 4  # paper


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
    def layout(self) -> Layout:
        """The layout of the folder's family."""
        return LAYOUTS[family_of(self.folder)]

    @property
    def source(self) -> Path:
        """The path that a user names to get this model."""
        return self.state_dict or self.lora or self.folder

    @property
    def folder_flag(self) -> str:
        """The flag that gave `folder`."""
        return "--model" if self.source == self.folder else "--base_model"


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
        if _is_lora(path):
            raise ValueError(
                f"--model {path}: is a LoRA; give its folder, in which the file has the name {LORA_WEIGHTS} and "
                "diffusers' names of weights"
            )
        if base_model is None:
            raise ValueError(f"--model {path}: is a network alone; give the pipeline it is of as --base_model")
        return Model(base_model, _defaults_of_network(path, base_model), state_dict=path)
    if place := model_place(path):
        if (place / MODEL_INDEX).is_file():
            if _is_single_file_export(place):
                raise ValueError(
                    f"--model {path}: is an export in a single file, for ComfyUI and diffusers' from_single_file; give "
                    "the run, or an export without --single_file"
                )
            return Model(place, sampling_defaults(place))
        return _with_base(place, base_model)
    raise ValueError(
        f"--model {path}: neither a pipeline folder (no model_index.json) nor a LoRA (no {LORA_WEIGHTS}) nor a "
        "checkpoint nor a run with one"
    )


def _is_lora(file: Path) -> bool:
    """Return whether a file holds a LoRA, in the names of diffusers, kohya or ComfyUI."""
    if file.suffix.lower() != ".safetensors":
        return False
    try:
        return any(".lora_" in name or "lora_down" in name for name in read_shapes(file))
    except ValueError:
        return False  # the checks of a network's file say what is wrong


def _is_single_file_export(folder: Path) -> bool:
    """Return whether all weights of a pipeline folder lie in one file beside its settings."""
    return any(folder.glob("*.safetensors")) and not any(folder.glob("*/*.safetensors"))


def _defaults_of_network(path: Path, base: Path) -> SamplingDefaults:
    """Return the sampling defaults of a network alone: the dpdmd.json beside it, else a student's of `base`.

    Beside the file is its own folder, or the pipeline, checkpoint or run that this folder belongs to. The dpdmd.json of
    the base itself does not count: it has the teacher's steps.
    """
    for folder in path.absolute().parents[:2]:
        for place in model_places(folder):
            if (place / DEFAULTS_FILE).is_file() and not same_place(place, base):
                return read_sampling_defaults(place, SamplingDefaults())
    return _student_defaults(base)


def _student_defaults(base: Path) -> SamplingDefaults:
    """Return the sampling defaults of a student of `base` that has no dpdmd.json: text as in `base`, and 4 steps."""
    own, off = sampling_defaults(base), LAYOUTS[family_of(base)].guidance.off
    return replace(own, steps=STUDENT_STEPS, guidance_scale=off, sigmas=None, grid=DEFAULT, base=None, shift=None)


def _with_base(lora: Path, base_model: Path | None) -> Model:
    """Return a LoRA with its pipeline: `base_model`, or the one in its dpdmd.json, a folder or in the Hub's cache."""
    read_shapes(lora / LORA_WEIGHTS)
    own = read_sampling_defaults(lora, SamplingDefaults())
    base = base_model or own.find_base(lora)
    if base_model is None and (source := base_source(lora)):
        base = locate(source, HubOptions()).path
    if base is None or not base.is_dir():
        raise ValueError(f"--model {lora}: is a LoRA of {base or 'a pipeline'}, which is not there; give --base_model")
    return Model(base, own if (lora / DEFAULTS_FILE).exists() else _student_defaults(base), lora=lora)
