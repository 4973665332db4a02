"""Whether the scorers will load, looked at closer than `files` does: by what their libraries make of the files.

Nothing is loaded onto a device; of weights only names and shapes are read. Imports transformers, which takes seconds.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from dpdmd.evaluation.scorer_files import SOURCES, is_open_clip
from dpdmd.evaluation.scorers.imagereward import NUM_TEXT_TOKENS
from dpdmd.evaluation.scorers.imagereward import load_network as load_imagereward
from dpdmd.evaluation.scorers.maniqa import load_network as load_maniqa
from dpdmd.models.checks.transformers_parts import (
    check_image_processor,
    check_network,
    check_tokenizer,
    raise_as_value_error,
)
from dpdmd.models.weight_files import QUALITY


def check_scorer_contents(paths: Mapping[str, Mapping[str, Path]]) -> None:
    """Check the files of every scorer that `check_scorer_paths` let pass; scorer -> flag -> path.

    Raises:
        ValueError: one line that names the flag, the file, and where to get it.
    """
    transformers.utils.logging.set_verbosity_error()  # its report of what does not fit is a table of many lines
    transformers.utils.logging.disable_progress_bar()
    for name, given in paths.items():
        for flag, check in CHECKS[name].items():
            try:
                check(given)
            except ImportError as error:
                raise ValueError(f"--{flag}: {QUALITY} ({error})") from None
            except (ValueError, OSError) as error:
                hint = SOURCES[flag].hint(given[flag])
                raise ValueError(f"--{flag} {given[flag]}: {error}; {hint}") from None


def _image_tower(flag: str) -> Callable[[Mapping[str, Path]], None]:
    """Of a CLIP only the image's half."""

    def check(given: Mapping[str, Path]) -> None:
        folder = given[flag]
        if not is_open_clip(folder):
            _check_size(folder, check_network("CLIPVisionModel", folder), check_image_processor(folder))

    return check


def _clip(network: str, processor: str) -> Callable[[Mapping[str, Path]], None]:
    """A whole CLIP, and the tokenizer and processor that may lie elsewhere."""

    def check(given: Mapping[str, Path]) -> None:
        folder = given[network]
        if is_open_clip(folder):
            return
        config = check_network("CLIPModel", folder)
        _check_size(given[processor], config.vision_config, check_image_processor(given[processor]))
        length = config.text_config.max_position_embeddings
        _check_text("AutoTokenizer", given[processor], length, config.text_config.vocab_size)

    return check


def _check_size(folder: Path, config: Any, size: tuple[int, int]) -> None:
    """A CLIP has positions for images of one size alone."""
    if size != (config.image_size, config.image_size):
        raise ValueError(
            f"{folder}: its processor makes images of {size[0]} x {size[1]} pixels, but the network takes "
            f"{config.image_size} x {config.image_size}: another model's?"
        )


def _check_text(kind: str, folder: Path, length: int, vocabulary: int) -> None:
    """A tokenizer that pads to `length`, and knows no token that the network has not."""
    tokenizer = check_tokenizer(kind, folder)
    with raise_as_value_error(f"{folder}: its tokenizer does not pad to {length} tokens"):
        tokenizer(["an image"], padding="max_length", truncation=True, max_length=length)
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, but the network {vocabulary}: another model's?"
        )


def _check_dino(given: Mapping[str, Path]) -> None:
    config = check_network("AutoModel", given["dino_path"])
    if hasattr(config, "vision_config") or not hasattr(config, "image_size"):
        raise ValueError(f"{given['dino_path'] / 'config.json'} is of a {config.model_type}, but a DINO is needed")
    check_image_processor(given["dino_path"])


def _check_imagereward(given: Mapping[str, Path]) -> None:
    with torch.device("meta"):
        load_imagereward(given["ir_model_path"], given["ir_med_config"])


def _check_imagereward_text(given: Mapping[str, Path]) -> None:
    _check_text("BertTokenizer", given["ir_tokenizer_path"], NUM_TEXT_TOKENS, 2**63)


def _check_maniqa(given: Mapping[str, Path]) -> None:
    load_maniqa(given["maniqa_path"])  # not on meta: timm computes with its layers' rates


def _check_chat_model(given: Mapping[str, Path]) -> None:
    check_network("Qwen2_5_VLForConditionalGeneration", given["vq_path"])
    check_tokenizer("AutoTokenizer", given["vq_path"])
    check_image_processor(given["vq_path"])


# Scorer -> flag to name -> check, which is given all of the scorer's paths.
CHECKS: dict[str, dict[str, Callable[[Mapping[str, Path]], None]]] = {
    "div_clip": {"clip_path": _image_tower("clip_path")},
    "div_dino": {"dino_path": _check_dino},
    "pickscore": {
        "pick_processor_path": lambda given: check_image_processor(given["pick_processor_path"]) and None,
        "pick_model_path": _clip("pick_model_path", "pick_processor_path"),
    },
    "imagereward": {"ir_model_path": _check_imagereward, "ir_tokenizer_path": _check_imagereward_text},
    "clip_score": {"clip_score_path": _clip("clip_score_path", "clip_score_path")},
    "maniqa": {"maniqa_path": _check_maniqa},
    "vqr1": {"vq_path": _check_chat_model},
}
