"""Draw the image grid of a sweep: per prompt one row per model, with the same start noises in every row."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from dpdmd.compare.sweep import SampleGrid
from dpdmd.distributed.topology import local_device
from dpdmd.sampling.load_model import load_sampler
from dpdmd.sampling.sampler import batches_of, check_finite
from dpdmd.utils import out_of_memory, precision
from dpdmd.utils.image_grid import labelled_grid, save_image, to_pil

SEED = 0
GPU_BATCH = 4  # images of 1024 x 1024 that fit at a time beside SD3.5-Medium's text encoders
TILE = 256  # pixels; largest side of an image in the grid (nine of 1024 would be 9,000 pixels wide)


def draw_sample_grid(grid: SampleGrid, models: Mapping[str, Path], path: Path) -> None:
    """Sample every model (name -> value of `--model`) and write the grid as PNG; bf16 on a GPU, else fp32.

    Raises:
        ValueError: a model does not load, is too large for the device, or its images are not finite.
    """
    device = local_device()
    rows: list[dict[str, list[Image.Image]]] = [{} for _ in grid.prompts]
    for name, model in models.items():
        try:
            with out_of_memory.explained("is the device in use elsewhere?"):
                label, tiles = _sample(grid, name, model, device)
        except MemoryError as error:
            raise ValueError(f"{name}: {error}") from None
        for row, images in zip(rows, tiles, strict=True):
            row[label] = images
    labels = [f'{label}: "{text}"' for text, row in zip(grid.prompts, rows, strict=True) for label in row]
    save_image(labelled_grid([images for row in rows for images in row.values()], labels), path, _about(grid, models))


def shows(path: Path, grid: SampleGrid, models: Mapping[str, Path]) -> bool:
    """Return whether a file is the grid of these prompts and models, by its text."""
    try:
        with Image.open(path) as image:
            return image.info.items() >= _about(grid, models).items()
    except Exception:  # Pillow raises many kinds of errors for broken files
        return False


def _about(grid: SampleGrid, models: Mapping[str, Path]) -> dict[str, str]:
    """Return the text of the PNG file."""
    shown = [list(grid.prompts), grid.num_images, [[name, str(model)] for name, model in models.items()]]
    return {"Comment": json.dumps(shown)}  # a keyword of the PNG standard


def _sample(grid: SampleGrid, name: str, model: Path, device: torch.device) -> tuple[str, list[list[Image.Image]]]:
    """Return the label of one model's rows and its images per prompt. The model is freed on return."""
    on_gpu = device.type == "cuda"
    sampler, encoder = load_sampler(model, device, dtype=precision.set_up(bf16=on_gpu))
    batch_size = min(GPU_BATCH, grid.num_images) if on_gpu else grid.num_images
    batches = batches_of(len(grid.prompts), grid.num_images, batch_size)
    tiles: list[list[Image.Image]] = [[] for _ in grid.prompts]
    for keys, images in sampler.sweep(encoder, grid.prompts, batches, SEED, progress=f"sampling {name}"):
        check_finite(images, model)
        for (prompt, _), image in zip(keys, to_pil(images), strict=True):
            image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)  # never enlarges
            tiles[prompt].append(image)
    return f"{name}, {len(sampler.settings.sigmas) - 1} steps", tiles
