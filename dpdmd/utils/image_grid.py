"""8-bit images, and labelled grids of them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dpdmd.utils.atomic_files import replacing
from dpdmd.utils.captions import fit_caption

GRID_PIXELS = 2**26  # 64 images of 1024 x 1024; a grid of thousands would not fit in memory or in a viewer
_GAP = 4
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert [N, 3, H, W] in [0, 1] to N 8-bit images. Values are rounded."""
    array = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image) for image in array]


def to_float(images: Sequence[Image.Image]) -> np.ndarray:
    """Convert N images to float32 [N, 3, H, W] in [0, 1], the inverse of `to_pil`."""
    return np.stack([np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255 for image in images])


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], title: str = "", columns: int = 0
) -> Image.Image:
    """Draw each row of images below its label. A row of more than `columns` images continues on the next line.

    All places are as wide as the widest image, and as high as the highest one.

    Raises:
        ValueError: a row has no image, or the numbers of rows and labels differ.
    """
    if not rows or not all(rows):
        raise ValueError("a grid needs at least one image in each row")
    width, height = (max(sides) for sides in zip(*(image.size for row in rows for image in row), strict=True))
    columns = columns or max(len(row) for row in rows)
    text_size = max(10, min(20, width // 6))
    band = text_size + 2 * _GAP
    lines = [-(-len(row) // columns) for row in rows]
    size = (
        columns * (width + _GAP) + _GAP,
        (band if title else 0) + sum(band + n * (height + _GAP) for n in lines) + _GAP,
    )
    sheet = Image.new("RGB", size, _PAPER)
    top = 0
    if title:
        fit_caption(title, text_size, size[0] - 2 * _GAP).draw(sheet, (_GAP, _GAP), _INK)
        top = band
    for row, label, count in zip(rows, labels, lines, strict=True):
        fit_caption(label, text_size, size[0] - 2 * _GAP).draw(sheet, (_GAP, top + _GAP), _INK)
        for index, image in enumerate(row):
            line, column = divmod(index, columns)
            sheet.paste(image, (_GAP + column * (width + _GAP), top + band + line * (height + _GAP)))
        top += band + count * (height + _GAP)
    return sheet


def that_fit(images: Iterable[Image.Image]) -> list[Image.Image]:
    """Return the first images, at least one, whose places in a grid have together at most GRID_PIXELS."""
    fitting: list[Image.Image] = []
    width = height = 0
    for image in images:
        width, height = max(width, image.width), max(height, image.height)
        if fitting and (len(fitting) + 1) * width * height > GRID_PIXELS:
            break
        fitting.append(image)
    return fitting


def save_image(image: Image.Image, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write a PNG file atomically; `about` are its text entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = PngInfo()
    for key, text in (about or {}).items():
        texts.add_text(key, text)
    with replacing(path) as file:
        image.save(file, format="PNG", pnginfo=texts)
