"""Folders of images: sampled by a program, with their settings in pictures.json, or given by the user."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.paths import is_system_file
from dpdmd.utils.text_files import read_json

SETTINGS_FILE = "pictures.json"
MODEL, CONTENT, LIBRARIES = "model", "content", "libraries"  # its entries about the model (`model_identity`)
SHEET = "grid.png"  # written by `dpdmd.generate` beside its images
SAMPLES = "samples"  # folder of an entry's images in GenEval's layout
PICTURES, GRIDS = "pictures", "grids"  # folders of the root programs: images, and sheets of them
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff", ".gif")
_OUR_NAME = re.compile(r"(\d+)_(\d+)")
_RELEASE_NAME = re.compile(r"(\d+)")
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class ImageFile:
    """An image of a folder; key = (prompt index, sample index)."""

    key: tuple[int, int]
    prompt: str
    path: Path


def file_name(key: tuple[int, int]) -> str:
    """Return the file name of a sampled image."""
    return f"{key[0]:05d}_{key[1]:03d}.png"


def open_image(path: Path) -> Image.Image:
    """Read an image file as RGB, as viewers show it: turned as its EXIF orientation says, on white if transparent.

    Raises:
        ValueError: missing, truncated, not an image, or pixels in a mode without a defined white.
    """
    try:
        with Image.open(path) as image:
            image.load()  # so that errors of the pixels are raised here
            with suppress(Exception):  # viewers ignore a broken EXIF block
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except Exception as error:  # Pillow raises many kinds of errors for broken files
        raise ValueError(f"{path} cannot be read as an image ({shorten_error(error)})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB. Pillow's own conversion clips values of more than 8 bits, and shows hidden colours."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # a PNG has at most 16 bits
        grey = np.asarray(image, dtype=np.float64) / 65535
        return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no defined white; save it with 8 bits")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, _WHITE), pixels).convert("RGB")
    return image.convert("RGB")


def is_whole(path: Path) -> bool:
    """Return whether an image file exists and can be read to its end."""
    try:
        open_image(path)
    except ValueError:
        return False
    return True


def read_settings(folder: Path, flag: str) -> dict[str, Any] | None:
    """Read the settings of the images in a folder. Return None if it holds no images.

    Raises:
        ValueError: the settings cannot be read, or the folder holds images without settings.
    """
    path = folder / SETTINGS_FILE
    if path.is_file():
        try:
            return read_json(path)
        except ValueError as error:
            raise ValueError(
                f"{flag}: {error}, so the settings of the images beside it are unknown; give another folder"
            ) from None
    if folder.is_dir() and any(_is_image(path) for path in folder.iterdir()):
        raise ValueError(f"{flag} {folder}: holds images that are not this program's; give another folder")
    return None


def check_or_write_settings(folder: Path, settings: dict[str, Any], flag: str) -> None:
    """Write the settings of the images in a folder, or compare them with the settings there. Call on rank 0 only.

    Raises:
        ValueError: the folder holds images of other or unknown settings.
    """
    found = read_settings(folder, flag)
    if found is None:
        write_text(folder / SETTINGS_FILE, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        return
    if changes := _changes(found, settings):
        raise ValueError(
            f"{flag} {folder}: holds images of other settings ({'; '.join(changes)}); give another folder, or delete "
            "this one to generate its images anew"
        )


def _changes(found: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Describe the differences between two images' settings. The same model may have another path."""
    names = _differing(found, settings)
    if names == [MODEL] and CONTENT in settings:
        return []
    return [_change(name, found.get(name), settings.get(name)) for name in names]


def _change(name: str, found: Any, now: Any) -> str:
    if name == CONTENT and found is None:
        return "an older version made them, which did not record the content of the model"
    if name == CONTENT and isinstance(found, dict):
        return f"the model has other content in {', '.join(_differing(found, now))}"
    return f"{name}: {found!r} there, {now!r} now"


def _differing(found: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(name for name in found.keys() | now.keys() if found.get(name) != now.get(name))


def find_images(folder: Path, prompts: Sequence[str]) -> list[ImageFile]:
    """Find all images below a folder, in the order of their names.

    The file 00012_003 is sample 3 of prompt 12, and the file 12 is the only image of prompt 12, as in the authors'
    release. GenEval's 00012/samples/0003 is sample 3 of prompt 12. If any name has another form, or two images have the
    same key, each image counts as a prompt of its own; with `prompts`, this is an error. Hidden files, files of file
    managers and this program's own sheets do not count.

    Raises:
        ValueError: no image, a name without a prompt number, or a number beyond `prompts`.
    """
    if not folder.is_dir():
        raise ValueError(f"--images {folder}: no such folder")
    paths = _without_sheets(sorted(path for path in folder.rglob("*") if _is_image(path, folder) and path.is_file()))
    if not paths:
        raise ValueError(f"--images {folder}: no image in it ({', '.join(SUFFIXES)})")
    keys = [_key(path) for path in paths]
    if None in keys or len(set(keys)) < len(keys):
        if prompts:
            raise ValueError(
                f"--images {folder}: which prompt is of which image? {odd_names(paths)}. Name images 00012_003.png "
                "(prompt 12, sample 3) or 12.png, counting from 0"
            )
        keys = [(index, 0) for index in range(len(paths))]
    beyond = [path.name for path, key in zip(paths, keys, strict=True) if prompts and key[0] >= len(prompts)]
    if beyond:
        raise ValueError(
            f"--images {folder}: {beyond[0]} is of prompt {_key(Path(beyond[0]))[0]}, "
            f"but there are {len(prompts)} prompts, from 0"
        )
    return [ImageFile(key, prompts[key[0]] if prompts else "", path) for key, path in zip(keys, paths, strict=True)]


def odd_names(paths: Sequence[Path]) -> str:
    """Return a sentence on the first name that has no number, or else on two images with the same number."""
    first: dict[tuple[int, int] | None, Path] = {}
    for path in paths:
        if _key(path) is None:
            return f"{path.name} has no number"
        if (other := first.setdefault(_key(path), path)) != path:
            return f"{other} and {path} have the same number"
    return "each number is there once"


def _is_image(path: Path, below: Path | None = None) -> bool:
    """Return whether a path has the name of an image. Hidden files and folders below a folder hold none."""
    place = path.relative_to(below or path.parent)
    hidden = any(part.startswith(".") for part in place.parts)
    return path.suffix.lower() in SUFFIXES and not hidden and not is_system_file(place)


def _without_sheets(paths: Sequence[Path]) -> list[Path]:
    """Return the images without the sheets that `generate` and the root programs write beside numbered images.

    A sheet is grid.png in a folder of numbered images or above GenEval's samples/, or any image in grids/ beside
    pictures/. If an image beside grid.png has no number, grid.png may be an image like the others, and counts.
    """
    images = [path for path in paths if not (path.parent.name == GRIDS and (path.parent.parent / PICTURES).is_dir())]
    folders: dict[Path, list[Path]] = {}
    for path in images:
        if path.name != SHEET:
            folders.setdefault(path.parent, []).append(path)
    numbered = {folder for folder, members in folders.items() if all(map(_key, members))}
    above = {folder.parent for folder in numbered if folder.name == SAMPLES}
    return [path for path in images if path.name != SHEET or path.parent not in numbered | above]


def _key(path: Path) -> tuple[int, int] | None:
    """Return (prompt index, sample index): 00012_003.png, 12.png, or GenEval's 00012/samples/0003.png."""
    if match := _OUR_NAME.fullmatch(path.stem):
        return int(match[1]), int(match[2])
    match, entry = _RELEASE_NAME.fullmatch(path.stem), _RELEASE_NAME.fullmatch(path.parent.parent.name)
    if match and entry and path.parent.name == SAMPLES:
        return int(entry[1]), int(match[1])
    return (int(match[1]), 0) if match else None
