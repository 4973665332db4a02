"""Check that transformers will load networks, tokenizers and image processors of a folder; no weights are read.

transformers puts random numbers where a file has none, and only warns. A wrong file makes it raise anything from
KeyError to errors of its own.
"""

from pathlib import Path
from typing import Any

import transformers
from PIL import Image

from dpdmd.models.loading import load_strict, raise_as_value_error
from dpdmd.utils.text_files import read_any_json


def check_network(name: str, folder: Path, *, all_layers: bool = False) -> Any:
    """Check that a network of the class `name` will load from the folder with all its weights; return its config.

    Args:
        all_layers: also reject weights of layers that the network does not have (`load_strict`).

    Raises:
        ValueError: the network will not load.
    """
    kind = getattr(transformers, name)
    read_any_json(folder / "config.json")
    with raise_as_value_error(f"{folder / 'config.json'} does not describe a {name}"):
        config_class = getattr(kind, "config_class", None) or transformers.AutoConfig
        config = config_class.from_pretrained(folder, local_files_only=True)
    load_strict(kind, folder, all_layers=all_layers, config=config, device_map="meta")
    return config


def check_dino(folder: Path) -> Any:
    """Check that a folder has a DINO and its image processor; return the network's config.

    Raises:
        ValueError: it has another network, or a part will not load.
    """
    config = check_network("AutoModel", folder)
    if config.model_type != "vit" and not config.model_type.startswith("dino"):  # the first DINO is a plain ViT
        raise ValueError(f"{folder / 'config.json'} is of a {config.model_type}, but a DINO is needed")
    check_image_processor(folder)
    return config


def check_tokenizer(name: str, folder: Path) -> Any:
    """Check that a tokenizer of the class `name`, or an AutoTokenizer, will load; return it.

    Raises:
        ValueError: the tokenizer will not load; the message names the file if transformers does.
    """
    _read_all_json(folder)
    with raise_as_value_error(f"{folder} does not load as a {name}"):
        tokenizer = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
        tokenizer("an image")
    return tokenizer


def check_prompt_tokenizer(name: str, folder: Path, length: int, vocabulary: int | None = None) -> Any:
    """Check that a tokenizer will load, pads to `length` tokens, and has at most `vocabulary` tokens; return it.

    Raises:
        ValueError: the tokenizer will not load, does not pad, or has a token that the network does not have.
    """
    tokenizer = check_tokenizer(name, folder)
    with raise_as_value_error(f"{folder}: its tokenizer does not pad to {length} tokens"):
        tokenizer(["an image"], padding="max_length", truncation=True, max_length=length)
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if vocabulary is not None and tokens > vocabulary:
        raise ValueError(f"{folder}: its tokenizer has {tokens} tokens, but the network {vocabulary}: another model's?")
    return tokenizer


def check_image_processor(folder: Path) -> tuple[int, int]:
    """Check that the folder's image processor works; return the (height, width) of its images.

    Raises:
        ValueError: the processor will not load, or cannot process an image.
    """
    _read_all_json(folder)
    with raise_as_value_error(f"{folder} does not load as an image's processor"):
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        pixels = processor(images=[Image.new("RGB", (96, 64))], return_tensors="pt")["pixel_values"]
        height, width = pixels.shape[-2:]
    return height, width


def _read_all_json(folder: Path) -> None:
    """Read the JSON files of a folder, since transformers does not say which of them it cannot parse."""
    for path in sorted(folder.glob("*.json")):
        read_any_json(path)
