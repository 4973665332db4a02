"""The files that scorers read: what each flag must point to, told before anything loads.

Imports neither torch nor transformers, so a wrong path is told within a second.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpdmd.models.weight_files import (
    check_image_processor,
    check_model_folder,
    check_pickle,
    require_folder,
    where_to_get,
)
from dpdmd.utils.text_files import read_json

OPEN_CLIP_CONFIG = "open_clip_config.json"
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))


def is_open_clip(folder: Path) -> bool:
    """Whether a folder is in OpenCLIP's layout rather than transformers'."""
    return (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / "config.json").is_file()


def _need_tokenizer(folder: Path) -> None:
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise ValueError(f"{folder} holds no tokenizer (tokenizer.json, vocab.json + merges.txt or vocab.txt)")


def _check_vision(folder: Path) -> None:
    require_folder(folder)
    if is_open_clip(folder):
        read_json(folder / OPEN_CLIP_CONFIG)
    else:
        check_model_folder(folder)
        check_image_processor(folder)


def _check_vision_and_text(folder: Path) -> None:
    _check_vision(folder)
    if not is_open_clip(folder):
        _need_tokenizer(folder)


def _check_tokenizer(folder: Path) -> None:
    require_folder(folder)
    _need_tokenizer(folder)


def _check_processor(folder: Path) -> None:
    _check_tokenizer(folder)
    check_image_processor(folder)


def _check_chat_model(folder: Path) -> None:
    check_model_folder(folder)
    _check_processor(folder)


@dataclass(frozen=True)
class Source:
    """What one flag points to.

    Attributes:
        check: raises ValueError where a path is not that.
        repository: where the official one comes from.
        others: repositories of others that fit; a path of the same name means that one.
    """

    check: Callable[[Path], object]
    repository: str
    others: tuple[str, ...] = ()

    def hint(self, path: Path) -> str:
        """Where to get what should be at `path`."""
        named = (other for other in self.others if other.rpartition("/")[2] == path.name)
        return where_to_get(path, next(named, self.repository))


SOURCES = {
    "clip_path": Source(_check_vision, "openai/clip-vit-large-patch14"),
    "dino_path": Source(_check_vision, "facebook/dinov2-base", ("facebook/dinov3-vitl16-pretrain-lvd1689m",)),
    "pick_processor_path": Source(_check_processor, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "pick_model_path": Source(check_model_folder, "yuvalkirstain/PickScore_v1"),
    "ir_model_path": Source(check_pickle, "zai-org/ImageReward"),
    "ir_med_config": Source(read_json, "zai-org/ImageReward"),
    "ir_tokenizer_path": Source(_check_tokenizer, "google-bert/bert-base-uncased"),
    "clip_score_path": Source(_check_vision_and_text, "openai/clip-vit-large-patch14"),
    "maniqa_path": Source(check_pickle, "chaofengc/IQA-PyTorch-Weights"),
    "vq_path": Source(_check_chat_model, "TianheWu/VisualQuality-R1-7B"),
}


# Scorer -> the flags it needs, all of them.
REQUIREMENTS = {
    "div_clip": ("clip_path",),
    "div_dino": ("dino_path",),
    "pickscore": ("pick_processor_path", "pick_model_path"),
    "imagereward": ("ir_model_path", "ir_med_config", "ir_tokenizer_path"),
    "clip_score": ("clip_score_path",),
    "maniqa": ("maniqa_path",),
    "vqr1": ("vq_path",),
}


def check_scorer_paths(paths: Mapping[str, str | None], names: tuple[str, ...]) -> dict[str, dict[str, Path]]:
    """Scorer -> its paths, of those among `names` that are configured; `paths` is flag -> value.

    An empty path leaves its scorer out. ImageReward's tokenizer, where not given, is looked for beside its weights.

    Raises:
        ValueError: a path that is not what its flag needs, or a scorer with only some of its flags.
    """
    found: dict[str, dict[str, Path]] = {}
    for name in names:
        if any(paths.get(flag) == "" for flag in REQUIREMENTS[name] if flag != "ir_tokenizer_path"):
            continue
        given = {flag: Path(paths[flag]) for flag in REQUIREMENTS[name] if paths.get(flag)}
        if name == "imagereward" and "ir_model_path" in given and "ir_tokenizer_path" not in given:
            given["ir_tokenizer_path"] = given["ir_model_path"].parent
        lacking = [flag for flag in REQUIREMENTS[name] if flag not in given]
        if lacking and given:
            raise ValueError(f"--{lacking[0]} is missing: {name} needs it beside --{next(iter(given))}")
        if lacking:
            continue
        for flag, path in given.items():
            source = SOURCES[flag]
            try:
                source.check(path)
            except (ValueError, OSError) as error:
                raise ValueError(f"--{flag} {path}: {error}; {source.hint(path)}") from None
        found[name] = given
    return found
