"""Check that a model's folder is whole and of its family, by the small files and the headers of the large ones.

Does not import diffusers, which takes seconds, so a wrong path is reported at once. `contents.py` checks more.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dpdmd.config.variants import find_variant
from dpdmd.models.layout import Layout
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.models.weight_files import Shape, UnreadableError, check_weights, require_folder, where_to_get
from dpdmd.utils.text_files import expecting_mapping_keys, read_json

_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
_ANY_TOKENIZER = ("PreTrainedTokenizerFast", "TokenizersBackend")  # tokenizer_class of a tokenizer.json of any model
_CLIP_TOKENS = 77  # transformers' default


class MovedError(ValueError):
    """A component is a link to a folder that is not there."""


@contextmanager
def naming(layout: Layout, folder: Path, flag: str) -> Iterator[None]:
    """Add to errors about the files of a folder the flag that gave it, and where to get a whole one."""
    hint = where_to_get(folder, _repository(layout, folder))
    try:
        yield
    except (MovedError, UnreadableError) as error:  # no download would help
        raise ValueError(f"{flag} {folder}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{flag} {folder}: {error}; {hint}") from None
    except OSError as error:
        raise ValueError(f"{flag} {folder}: {error.filename} cannot be read ({error.strerror})") from None


def _repository(layout: Layout, folder: Path) -> str:
    """Return the repository of the model that a folder holds or, if it is missing, that its path names."""
    variant = find_variant(next(name for name, other in LAYOUTS.items() if other is layout), folder)
    return variant.repository if variant and variant.repository else layout.repository


def check_folder(layout: Layout, folder: Path, flag: str, *, network_only: bool = False, no_t5: bool = False) -> None:
    """Check a pipeline folder, or only the network that is distilled; with `no_t5` the T5 may be missing.

    Raises:
        ValueError: one line that names the flag, the file, and where to get it.
    """
    if no_t5 and not layout.t5:
        raise ValueError(f"--no_t5: a {layout.pipeline} has no T5 to leave out; leave the flag out")
    with naming(layout, folder, flag):
        require_folder(folder)
    read_sampling_defaults(folder, layout.defaults)  # this file is ours, and is not where the weights are
    with naming(layout, folder, flag):
        components = [layout.network] if network_only else _check_index(layout, folder, no_t5=no_t5)
        for component in components:
            _check_component(layout, folder, component)


def _check_index(layout: Layout, folder: Path, *, no_t5: bool) -> list[str]:
    """Check that the components of a whole pipeline are there and of the family's classes; return them."""
    found = read_json(folder / "model_index.json").get("_class_name")
    if found != layout.pipeline:
        families = [f" (it is of --family {name})" for name, other in LAYOUTS.items() if other.pipeline == found]
        raise ValueError(f"model_index.json is of a {found}, but a {layout.pipeline} is needed" + "".join(families))
    layout.check_index(folder)
    components = layout.components(folder, no_t5=no_t5)
    if missing := [name for name in (layout.network, *layout.required) if name not in components]:
        raise ValueError(f"model_index.json lacks {', '.join(missing)}")
    for name, kind in components.items():
        if kind not in (layout.classes.get(name, kind), *layout.other_classes.get(name, ())):
            raise ValueError(f"model_index.json says {name} is a {kind}, but a {layout.classes[name]} is needed")
    for encoder in layout.text_encoders(folder, no_t5=no_t5):
        if (tokenizer := encoder.replace("text_encoder", "tokenizer")) not in components:
            raise ValueError(f"model_index.json lists {encoder}, but no {tokenizer}")
    return list(components)


def _check_component(layout: Layout, folder: Path, component: str) -> None:
    path = folder / component
    if not path.is_dir():
        if path.is_symlink():  # in an unfinished run's checkpoint, to the teacher's component
            raise MovedError(
                f"{path} is a link to {os.readlink(path)}, which is not there: was the model moved? "
                "Put it back, or a link to it"
            )
        raise ValueError(f"{path} is missing")
    if component == "scheduler":
        layout.read_schedule(folder)
    elif component.startswith("tokenizer"):
        if not any(all((path / name).exists() for name in names) for names in _TOKENIZER_FILES):
            raise ValueError(f"{path} holds no tokenizer (tokenizer.json, vocab.json + merges.txt or spiece.model)")
        _check_tokenizer(layout, folder, component)
    elif not component.startswith("feature_extractor"):
        if read_json(path / "config.json").get("quantization_config"):
            precision = "text_encoder_precision" if component.startswith("text_encoder") else "base_precision"
            raise ValueError(
                f"{path / 'config.json'} sets quantization_config, but quantised weights are not read; give the "
                f"unquantised ones, and --{precision} to quantise them"
            )
        found = layout.weight_shapes(folder, component)
        if component == layout.network:
            _check_network(layout, path, found)
        elif component == "vae":
            _check_vae(layout, folder)
        elif component.startswith("text_encoder") and layout.text_layers:
            _check_text_layers(path / "config.json", layout.text_layers)


def _check_tokenizer(layout: Layout, folder: Path, component: str) -> None:
    """Compare the small files of a tokenizer with model_index.json, and a CLIP's with its text encoder.

    The pipelines fill a CLIP's prompts to the tokenizer's own length, and read any tokenizer as the class of the index.
    """
    path, encoder = folder / component / "tokenizer_config.json", component.replace("tokenizer", "text_encoder")
    config = read_json(path) if path.exists() else {}
    wanted, found = layout.components(folder)[component], config.get("tokenizer_class") or _ANY_TOKENIZER[0]
    if found not in _ANY_TOKENIZER and str(found).removesuffix("Fast") != wanted.removesuffix("Fast"):
        raise ValueError(f"{path} is of a {found}, but model_index.json says {component} is a {wanted}")
    if layout.classes.get(encoder, "").startswith("CLIP"):
        positions = read_json(folder / encoder / "config.json").get("max_position_embeddings", _CLIP_TOKENS)
        length = config.get("model_max_length")
        if not isinstance(length, int) or length != positions:
            raise ValueError(
                f"{path} sets model_max_length {length!r}, but {encoder} has positions for {positions!r} tokens: "
                "another model's?"
            )


def _check_text_layers(path: Path, needed: int) -> None:
    with expecting_mapping_keys(path):
        found = int(read_json(path)["num_hidden_layers"])
    if found < needed:
        raise ValueError(f"{path}: its network has {found} layers, but this family reads the first {needed}")


def _check_network(layout: Layout, folder: Path, found: Mapping[str, Shape]) -> None:
    """Compare some of the weights' names and shapes with the configuration beside them."""
    config = read_json(folder / "config.json")
    with expecting_mapping_keys(folder / "config.json"):
        expected, lists = layout.shapes(config), layout.blocks(config)
        size, _ = config.get("sample_size"), layout.latents(config)  # read later, so checked here
        positive = size is None or int(size) > 0
    if not positive:
        raise ValueError(f"{folder / 'config.json'} sets sample_size {size!r}, which must be a number above 0, or null")
    for prefix, blocks in lists.items():
        numbers = {name.removeprefix(prefix).partition(".")[0] for name in found if name.startswith(prefix)}
        if len(numbers) != blocks:
            advice = "" if isinstance(blocks, int) else ", which must be a number without quotes"
            raise ValueError(f"{folder}: its weights have {len(numbers)} blocks, its config.json {blocks!r}{advice}")
    check_weights(found, expected, folder)


def _check_vae(layout: Layout, folder: Path) -> None:
    path = folder / "vae" / "config.json"
    config = read_json(path)
    with expecting_mapping_keys(path):
        factor, channels = layout.read_vae_factor(folder), layout.autoencoder.channels(config)
    if layout.vae_factor not in (None, factor):
        raise ValueError(f"{path}: a latent spans {factor} pixels, not {layout.vae_factor}")
    try:
        layout.autoencoder.check(config)  # the values are read when the first image is decoded
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    wanted = layout.latent_channels(layout.network_config(folder))
    if channels != wanted:
        raise ValueError(f"{path}: its latents have {channels} channels, the {layout.network}'s {wanted}")
