"""Labelled grids of images, for people to look at."""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dpdmd.utils.atomic_files import replacing

_GAP = 4
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def to_pil(images: Tensor) -> list[Image.Image]:
    """[N, 3, H, W] in [0, 1] to N 8-bit images, values rounded."""
    array = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image) for image in array]


def to_float(images: Sequence[Image.Image]) -> np.ndarray:
    """Inverse of `to_pil`: float32 [N, 3, H, W] in [0, 1]."""
    return np.stack([np.asarray(p.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255 for p in images])


def check_finite(images: Tensor, model: Path | str) -> None:
    """Refuse images that `to_pil` would make black, however few of their values it is.

    Raises:
        ValueError: some value is infinite or no number.
    """
    if not images.isfinite().all():
        raise ValueError(f"--model {model}: its images are not finite: are its weights whole, and those of this model?")


def _fit(text: str, font: ImageFont.ImageFont, width: int) -> str:
    """`text` on one line, shortened to `width` pixels."""
    shown = " ".join(text[:width].split())  # no letter takes less than a pixel, and a font refuses a million of them
    if len(text) <= width and font.getlength(shown) <= width:
        return shown
    fitting = bisect_right(range(len(shown) + 1), width, key=lambda count: font.getlength(shown[:count] + "..."))
    return shown[: max(0, fitting - 1)] + "..."


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], title: str = "", columns: int = 0
) -> Image.Image:
    """Each row of images under its label; a row of more than `columns` images goes on in the next line.

    Raises:
        ValueError: no image, or rows and labels do not pair up.
    """
    if not rows or not all(rows):
        raise ValueError("a grid needs at least one image in each row")
    width, height = rows[0][0].size
    columns = columns or max(len(row) for row in rows)
    font = ImageFont.load_default(size=max(10, min(20, width // 6)))
    band = font.size + 2 * _GAP
    lines = [-(-len(row) // columns) for row in rows]
    size = (
        columns * (width + _GAP) + _GAP,
        (band if title else 0) + sum(band + n * (height + _GAP) for n in lines) + _GAP,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = 0
    if title:
        draw.text((_GAP, _GAP), _fit(title, font, size[0] - 2 * _GAP), _INK, font=font)
        top = band
    for row, label, count in zip(rows, labels, lines, strict=True):
        draw.text((_GAP, top + _GAP), _fit(label, font, size[0] - 2 * _GAP), _INK, font=font)
        for index, image in enumerate(row):
            line, column = divmod(index, columns)
            sheet.paste(image, (_GAP + column * (width + _GAP), top + band + line * (height + _GAP)))
        top += band + count * (height + _GAP)
    return sheet


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG so that a reader never meets half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        image.save(file, format="PNG")
