"""Small copies of each evaluation's images for the report; an evaluation overwrites the full images of the last one.

RUN/seed_grids/step_000600/{grids.json, 00000.webp, ...} and RUN/seed_grids/teacher/ have a sheet of seeds for each of a
few prompts: the first PROMPTS prompts and SEEDS seeds of each image set, with sides of at most SIDE pixels, for at most
EVALUATIONS evaluations. At 1024 x 1024 a sheet takes about 50 kB and a run at most about 10 MB.

Imports no torch, so that a report starts fast.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dpdmd.run_folder import RunFolder, step_folders
from dpdmd.sampling.image_folder import file_name, open_image
from dpdmd.utils.folders import creating_folder, delete_tree
from dpdmd.utils.text_files import read_json

if TYPE_CHECKING:
    from dpdmd.evaluation.in_loop_setup import ImageSet  # its module imports torch

PROMPTS, SEEDS, COLUMNS = 4, 9, 3
SIDE, GAP, QUALITY = 192, 2, 80
EVALUATIONS = 24
TEACHER = "teacher"
_INDEX = "grids.json"
_BACKGROUND = (255, 255, 255)


@dataclass(frozen=True)
class SeedGrid:
    """One prompt's images on one sheet.

    Attributes:
        image_set: name of the image set.
        num_seeds: number of images on the sheet; they are in the order of their sample indices.
        size: (width, height) of the sheet, pixels.
        file: path of the sheet, WebP.
    """

    image_set: str
    prompt: str
    num_seeds: int
    size: tuple[int, int]
    file: Path


def sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Lay out at least one image row by row, each scaled down to SIDE if it is larger."""
    width, height = images[0].size
    scale = min(1.0, SIDE / max(width, height))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    whole = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), _BACKGROUND)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        small = image.resize((width, height), Image.Resampling.LANCZOS) if scale < 1 else image
        whole.paste(small, (column * (width + GAP), row * (height + GAP)))
    return whole


def save(folder: RunFolder, step: int, sets: Sequence["ImageSet"]) -> None:
    """Save the sheets of the latest evaluation and of the teacher. Call on rank 0 only.

    Raises:
        OSError: a sheet cannot be written.
    """
    _write(folder.seed_grids / TEACHER, folder.eval_images / TEACHER, sets)
    _write(folder.seed_grids / f"step_{step:06d}", folder.eval_images, sets)
    _drop_crowded(folder.seed_grids)


def _write(target: Path, images: Path, sets: Sequence["ImageSet"]) -> None:
    """Replace the sheets of one evaluation, if there are images of it: the teacher's may be deleted after a while."""
    found = []
    for image_set in sets:
        for number, prompt in enumerate(image_set.prompts[:PROMPTS]):
            count = min(SEEDS, image_set.num_samples)
            files = [images / image_set.name / file_name((number, n)) for n in range(count)]
            # An image may be missing here if another node wrote it to its own disk.
            found.append((image_set.name, prompt, [file for file in files if file.is_file()]))
    if not any(files for *_, files in found):
        return
    index = []
    with creating_folder(target) as folder:
        folder.mkdir(parents=True)
        for set_name, prompt, files in found:
            if files:
                name, whole = f"{len(index):05d}.webp", sheet([open_image(file) for file in files])
                whole.save(folder / name, format="WEBP", quality=QUALITY)
                entry = {"set": set_name, "prompt": prompt, "seeds": len(files), "size": whole.size}
                index.append({**entry, "file": name})
        (folder / _INDEX).write_text(json.dumps({"grids": index}, ensure_ascii=False), encoding="utf-8")
        delete_tree(target)


def _drop_crowded(root: Path) -> None:
    """Drop the evaluation with the nearest neighbours until there are few enough; the first and the last stay."""
    while len(found := step_folders(root)) > EVALUATIONS:
        crowded = min(range(1, len(found) - 1), key=lambda i: found[i + 1][0] - found[i - 1][0])
        delete_tree(found[crowded][1])


def drop_later(root: Path, last_step: int) -> None:
    """Drop the evaluations after `last_step`; a resumed run repeats them."""
    for step, path in step_folders(root):
        if step > last_step:
            delete_tree(path)


def read(root: Path) -> dict[int | str, list[SeedGrid]]:
    """Return step or TEACHER -> sheets; skip folders that are not whole."""
    found: dict[int | str, list[SeedGrid]] = {}
    for key, path in [(TEACHER, root / TEACHER), *step_folders(root)]:
        try:
            grids = [
                SeedGrid(entry["set"], entry["prompt"], entry["seeds"], tuple(entry["size"]), path / entry["file"])
                for entry in read_json(path / _INDEX)["grids"]
            ]
        except (ValueError, KeyError, TypeError):
            continue
        found[key] = [grid for grid in grids if grid.file.is_file()]
    return found
