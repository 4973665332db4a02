"""The images of the report, each a data URI in the page."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpdmd.evaluation.seed_grids import TEACHER, SeedGrid
from dpdmd.report.shown_runs import ShownRun
from dpdmd.report.style import TEACHER_STYLE, Style
from dpdmd.sampling.image_folder import open_image

MAX_SIDE = 1280  # pixels of an image that is no sheet of seeds


@dataclass(frozen=True)
class ShownImage:
    """An image as a data URI, with its size in pixels; `style` is of its run, or None."""

    title: str
    style: Style | None
    size: tuple[int, int]
    uri: str


@dataclass(frozen=True)
class ModelSheets:
    """One model's sheets for one prompt: step -> data URI. The teacher has one sheet, at step None."""

    key: str
    label: str
    style: Style
    num_seeds: int
    size: tuple[int, int]
    sheets: dict[int | None, str]


@dataclass(frozen=True)
class PromptSheets:
    """The sheets of all models for one prompt."""

    image_set: str
    prompt: str
    models: list[ModelSheets]


def prompt_sheets(shown: Sequence[ShownRun]) -> list[PromptSheets]:
    """Return the sheets of every prompt: first those of different teachers, then those of each run."""
    # (image set, prompt) -> run number -> step or TEACHER -> sheet, with its data URI
    found: dict[tuple[str, str], dict[int, dict[int | str, tuple[SeedGrid, str]]]] = {}
    for number, item in enumerate(shown):
        for step, grids in item.run.grids.items():
            for grid in grids:
                with suppress(OSError):  # a run that goes on has deleted it, or it is damaged
                    sheet = grid, _as_uri(grid.file.read_bytes())
                    by_run = found.setdefault((grid.image_set, grid.prompt), {})
                    by_run.setdefault(number, {}).setdefault(step, sheet)
    prompts = []
    for index, ((image_set, prompt), by_run) in enumerate(found.items()):
        teachers: list[ModelSheets] = []
        students = []
        for number, grids in by_run.items():
            item = shown[number]
            if TEACHER in grids:
                teacher, uri = grids.pop(TEACHER)
                if all(other.sheets[None] != uri for other in teachers):
                    key = f"sheet{index}-teacher{len(teachers)}"
                    style = TEACHER_STYLE
                    teachers.append(ModelSheets(key, "teacher", style, teacher.num_seeds, teacher.size, {None: uri}))
            if grids:
                last, _ = grids[max(grids)]
                sheets = {step: uri for step, (_, uri) in grids.items()}
                key = f"sheet{index}-{item.key}"
                students.append(ModelSheets(key, item.run.name, item.style, last.num_seeds, last.size, sheets))
        prompts.append(PromptSheets(image_set, prompt, teachers + students))
    return prompts


def process_images(shown: Sequence[ShownRun]) -> list[ShownImage]:
    """Return the image of the last shown update of each run that has no images of an evaluation."""
    runs = [item for item in shown if not item.run.grids]
    found = [load_image(item.run.process_image, item.run.name, item.style) for item in runs]
    return [image for image in found if image]


def load_image(path: Path | None, title: str, style: Style | None = None) -> ShownImage | None:
    """Return an image file with sides of at most MAX_SIDE; None if there is none, or it is damaged."""
    try:
        image = None if path is None else open_image(path)
    except ValueError:
        image = None
    if image is None:
        return None
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    data = io.BytesIO()
    image.save(data, format="WEBP", quality=90)
    return ShownImage(title, style, image.size, _as_uri(data.getvalue()))


def _as_uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
