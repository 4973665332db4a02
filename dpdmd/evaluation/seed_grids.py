"""Small copies of each evaluation's images, which the next one overwrites: the past that a report leafs through.

RUN/seed_grids/step_000600/{grids.json, 00000.webp, ...} and RUN/seed_grids/teacher/: a sheet of seeds for each of a
few prompts. Bounded: of each image set the first PROMPTS prompts and SEEDS seeds, no image longer than SIDE pixels,
no more than EVALUATIONS evaluations. At 1024 x 1024 a sheet takes about 50 kB, a run about 10 MB at most.

Imports no torch, so that a report reads fast.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dpdmd.run_folder import RunFolder
from dpdmd.sampling.image_folder import file_name, open_image
from dpdmd.utils.text_files import read_json

PROMPTS, SEEDS, COLUMNS = 4, 9, 3
SIDE, GAP, QUALITY = 192, 2, 80
EVALUATIONS = 24
TEACHER = "teacher"
Imaged = tuple[str, Sequence[str], int]  # an image set's name, its prompts, images of each
_INDEX = "grids.json"
_PAPER = (255, 255, 255)


@dataclass(frozen=True)
class SeedGrid:
    """One prompt's images on one sheet.

    Attributes:
        pictured: the image set's name.
        num_seeds: images on the sheet, in the order of their sample indices.
        size: of the sheet, pixels.
        file: WebP.
    """

    image_set: str
    prompt: str
    num_seeds: int
    size: tuple[int, int]
    file: Path


def sheet(images: Sequence[Image.Image]) -> Image.Image:
    """At least one image, scaled down to SIDE where larger, row by row."""
    width, height = images[0].size
    scale = min(1.0, SIDE / max(width, height))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    whole = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), _PAPER)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        small = image.resize((width, height), Image.Resampling.LANCZOS) if scale < 1 else image
        whole.paste(small, (column * (width + GAP), row * (height + GAP)))
    return whole


def keep(folder: RunFolder, step: int, sets: Sequence[Imaged]) -> None:
    """Keep the sheets of the evaluation that has just been made, and the teacher's; rank 0 only.

    Raises:
        OSError: they cannot be written.
    """
    _write(folder.seed_grids / TEACHER, folder.eval_images / TEACHER, sets)
    _write(folder.seed_grids / f"step_{step:06d}", folder.eval_images, sets)
    _thin(folder.seed_grids)


def _write(target: Path, images: Path, sets: Sequence[Imaged]) -> None:
    """Under a temporary name first: a reader finds a whole folder or none."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    index = []
    for set_name, prompts, num_samples in sets:
        for number, prompt in enumerate(prompts[:PROMPTS]):
            files = [images / set_name / file_name((number, n)) for n in range(min(SEEDS, num_samples))]
            # An image that another node wrote to a disk of its own is not here to be shown.
            found = [open_image(file) for file in files if file.is_file()]
            if found:
                name, whole = f"{len(index):05d}.webp", sheet(found)
                whole.save(temporary / name, format="WEBP", quality=QUALITY)
                index.append({"set": set_name, "prompt": prompt, "seeds": len(found), "size": whole.size, "file": name})
    (temporary / _INDEX).write_text(json.dumps({"grids": index}, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)


def _steps(root: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.name[5:]), path) for path in root.glob("step_*") if path.name[5:].isdigit())


def _thin(root: Path) -> None:
    """While there are too many evaluations, drop the one whose neighbours are nearest; the first and the last stay."""
    while len(found := _steps(root)) > EVALUATIONS:
        crowded = min(range(1, len(found) - 1), key=lambda i: found[i + 1][0] - found[i - 1][0])
        shutil.rmtree(found[crowded][1])


def drop_later(root: Path, last_step: int) -> None:
    """Drop the evaluations of steps beyond `last_step`: a resumed run makes them again."""
    for step, path in _steps(root):
        if step > last_step:
            shutil.rmtree(path)


def read(root: Path) -> dict[int | str, list[SeedGrid]]:
    """Step, or TEACHER, -> its sheets; a folder that is not whole is passed over."""
    found: dict[int | str, list[SeedGrid]] = {}
    for key, path in [(TEACHER, root / TEACHER), *_steps(root)]:
        try:
            grids = [
                SeedGrid(entry["set"], entry["prompt"], entry["seeds"], tuple(entry["size"]), path / entry["file"])
                for entry in read_json(path / _INDEX)["grids"]
            ]
        except (ValueError, KeyError, TypeError):
            continue
        found[key] = [grid for grid in grids if grid.file.is_file()]
    return found
