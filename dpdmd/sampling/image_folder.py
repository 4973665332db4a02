"""Folders of images: sampled by a program, with their settings in pictures.json, or given by the user."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dpdmd.utils.atomic_files import write_json
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.paths import is_system_file
from dpdmd.utils.text_files import read_json

SETTINGS_FILE = "pictures.json"
MODEL, CONTENT, LIBRARIES = "model", "content", "libraries"  # its entries about the model (`model_identity`)
SHEET = "grid.png"  # written by `dpdmd.generate` beside its images
GENERATED = {"Software": "dpdmd.generate"}  # text of these PNG files; "Software" is a keyword of the PNG standard
SAMPLES = "samples"  # folder of an entry's images in GenEval's layout
PICTURES, GRIDS = "pictures", "grids"  # folders of the root programs: images, and sheets of them
PER_IMAGE, SUMMARY, TABLE = "per_image.csv", "summary.json", "table.txt"  # the root programs' results
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
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


def grid_files(out: Path) -> list[Path]:
    """Return the grids that a root program wrote, or has the names of."""
    return sorted((out / GRIDS).glob("[0-9]" * 5 + ".png"))


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


def is_generated(path: Path) -> bool:
    """Return whether `dpdmd.generate` wrote a file, by its text GENERATED."""
    try:
        with Image.open(path) as image:
            return image.info.items() >= GENERATED.items()
    except Exception:  # Pillow raises many kinds of errors for broken files
        return False


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
    if folder.is_dir() and any(is_image(path) for path in folder.iterdir()):
        raise ValueError(f"{flag} {folder}: holds images that are not this program's; give another folder")
    return None


def recorded_prompts(folder: Path) -> str | None:
    """Return the fingerprint of the prompts that the images in a folder were made of; None if it is not known."""
    try:
        return read_json(folder / SETTINGS_FILE).get("prompts")
    except (ValueError, AttributeError):
        return None


def check_or_write_settings(folder: Path, settings: dict[str, Any], flag: str) -> None:
    """Write the settings of the images in a folder, or compare them with the settings there. Call on rank 0 only.

    Raises:
        ValueError: the folder holds images of other or unknown settings.
    """
    found = read_settings(folder, flag)
    if found is None:
        write_json(folder / SETTINGS_FILE, settings, ensure_ascii=False)
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


def is_image(path: Path, below: Path | None = None, suffixes: Sequence[str] = SUFFIXES) -> bool:
    """Return whether a path has the name of an image. Hidden files and folders below a folder hold none."""
    return path.suffix.lower() in suffixes and not is_hidden(path.relative_to(below or path.parent))


def is_hidden(place: Path) -> bool:
    """Return whether a part of a relative path is hidden, or made by the operating system or a file manager."""
    return any(part.startswith(".") for part in place.parts) or is_system_file(place)
