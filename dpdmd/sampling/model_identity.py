"""The identity of a model that a user names: of its pipeline, and of the network or LoRA in place of the pipeline's."""

from typing import Any

from dpdmd.models.identity import Identity, identify, identify_pipeline
from dpdmd.models.lora_files import LORA_WEIGHTS
from dpdmd.models.sampling_defaults import DEFAULTS_FILE
from dpdmd.sampling.find_model import Model
from dpdmd.sampling.image_folder import CONTENT, LIBRARIES, MODEL
from dpdmd.utils.versions import library_versions


def identify_model(model: Model) -> Identity:
    """Return the identity of everything on disk that decides the model's images.

    Raises:
        ValueError: a file cannot be read.
    """
    pipeline = identify_pipeline(model.layout, model.folder, no_t5=model.defaults.no_t5)
    lora = {f"lora/{name}": model.lora / name for name in (LORA_WEIGHTS, DEFAULTS_FILE)} if model.lora else {}
    present = {name: path for name, path in lora.items() if path.exists()}
    return pipeline | identify({"state_dict": model.state_dict, **present})


def model_settings(model: Model) -> dict[str, Any]:
    """Return the entries of pictures.json about the model: its path, its content, and the libraries' versions.

    Raises:
        ValueError: a file cannot be read.
    """
    return {MODEL: str(model.source.resolve()), CONTENT: identify_model(model), LIBRARIES: library_versions()}
