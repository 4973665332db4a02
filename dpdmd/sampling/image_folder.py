"""Pictures on disk for the root programs: made once and kept, or found in a folder that somebody else filled."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.text_files import read_json, shorten_error

MANIFEST = "pictures.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff", ".gif")
_OUR_NAME = re.compile(r"(\d+)_(\d+)")
_RELEASE_NAME = re.compile(r"(\d+)")
_PAPER = (255, 255, 255)


@dataclass(frozen=True)
class ImageFile:
    """One image to score: key = (prompt index, sample index)."""

    key: tuple[int, int]
    prompt: str
    path: Path


def file_name(key: tuple[int, int]) -> str:
    """Where an image of ours lies in its folder."""
    return f"{key[0]:05d}_{key[1]:03d}.png"


def open_image(path: Path) -> Image.Image:
    """RGB pixels of a whole image file, as a person would see them: what is transparent lies on white.

    Raises:
        ValueError: missing, truncated, no image, or one whose values have no known white.
    """
    try:
        with Image.open(path) as image:
            return _as_seen(image)
    except Exception as error:  # Pillow raises whatever the broken file led to
        raise ValueError(f"{path} is no whole image ({shorten_error(error)})") from None


def _as_seen(image: Image.Image) -> Image.Image:
    """To RGB. Pillow's own conversion clips what has more than 8 bits, and shows what lies under transparent pixels."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # no PNG has 32 bits
        grey = np.asarray(image, dtype=np.float64) / 65535
        return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, whose white is not known: save it with 8 bits")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, _PAPER), seen).convert("RGB")
    return image.convert("RGB")


def is_whole(path: Path) -> bool:
    """Whether an image is there and can be read."""
    try:
        open_image(path)
    except ValueError:
        return False
    return True


def read_manifest(folder: Path, flag: str) -> dict[str, Any] | None:
    """The settings that an image folder notes; None where it holds no images yet.

    Raises:
        ValueError: they cannot be read, or it holds images of nobody knows which.
    """
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            return read_json(manifest)
        except ValueError as error:
            raise ValueError(
                f"{flag}: {error}, so nobody knows whose images are beside it; give another folder"
            ) from None
    if folder.is_dir() and any(path.suffix in SUFFIXES for path in folder.iterdir()):
        raise ValueError(f"{flag} {folder}: holds images that are not this program's; give another folder")
    return None


def keep_or_refuse(folder: Path, settings: dict[str, Any], flag: str) -> None:
    """Note the settings in an image folder; images that are there already must be of the same ones. Rank 0 only.

    Raises:
        ValueError: the folder holds images of other settings, or of nobody knows which.
    """
    found = read_manifest(folder, flag)
    if found is None:
        write_text(folder / MANIFEST, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        return
    if differing := sorted(k for k in settings.keys() | found.keys() if settings.get(k) != found.get(k)):
        told = ", ".join(f"{k}: {found.get(k)!r} there, {settings.get(k)!r} now" for k in differing)
        raise ValueError(f"{flag} {folder}: holds images of other settings ({told}); give another folder")


def find_images(folder: Path, prompts: Sequence[str]) -> list[ImageFile]:
    """Every image below a folder, in the order of their names.

    A file called 00012_003 is sample 3 of prompt 12, one called 12 is prompt 12's only image (as the authors'
    release has it); with any other name it counts as a prompt of its own. Without `prompts` nobody knows its prompt.

    Raises:
        ValueError: no image, or one whose name points beyond `prompts`.
    """
    if not folder.is_dir():
        raise ValueError(f"--images {folder}: no such folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"--images {folder}: no image in it ({', '.join(SUFFIXES)})")
    keys = [_key(path) for path in paths]
    if None in keys or len(set(keys)) < len(keys):
        if prompts:
            raise ValueError(
                f"--images {folder}: which prompt is of which image? Name them 00012_003.png (prompt 12, sample 3) "
                "or 12.png, counting from 0"
            )
        keys = [(index, 0) for index in range(len(paths))]
    beyond = [path.name for path, key in zip(paths, keys, strict=True) if prompts and key[0] >= len(prompts)]
    if beyond:
        raise ValueError(
            f"--images {folder}: {beyond[0]} is of prompt {_key(Path(beyond[0]))[0]}, "
            f"but there are {len(prompts)} prompts, from 0"
        )
    return [ImageFile(key, prompts[key[0]] if prompts else "", path) for key, path in zip(keys, paths, strict=True)]


def _key(path: Path) -> tuple[int, int] | None:
    if match := _OUR_NAME.fullmatch(path.stem):
        return int(match[1]), int(match[2])
    match = _RELEASE_NAME.fullmatch(path.stem)
    return (int(match[1]), 0) if match else None
