"""The picture of a sweep: for each prompt a row a model, the same start noises in every row."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from dpdmd.compare.sweep import SampleGrid
from dpdmd.sampling.load_model import load_sampler
from dpdmd.sampling.sampler import batches_of
from dpdmd.utils import out_of_memory, precision
from dpdmd.utils.image_grid import check_finite, labelled_grid, save_image, to_pil

SEED = 0
GPU_BATCH = 4  # pictures of 1024 x 1024 that are made at a time beside SD3.5-Medium's text encoders
TILE = 256  # pixels a side of a picture in the grid, at most: nine of 1024 would be a sheet of 9,000


def draw(picture: SampleGrid, models: Mapping[str, Path], path: Path) -> None:
    """Sample every model (name -> what `--model` would be) and write the grid; on a GPU in bf16.

    Raises:
        ValueError: a model does not load, is too large for the device, or makes no finite pictures.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, list[Image.Image]]] = [{} for _ in picture.prompts]
    for name, model in models.items():
        try:
            with out_of_memory.explained("is the device in use elsewhere?"):
                label, tiles = _sample(picture, name, model, device)
        except MemoryError as error:
            raise ValueError(f"{name}: {error}") from None
        for row, made in zip(rows, tiles, strict=True):
            row[label] = made
    labels = [f'{label}: "{text}"' for text, of in zip(picture.prompts, rows, strict=True) for label in of]
    save_image(labelled_grid([row for of in rows for row in of.values()], labels), path)


def _sample(picture: SampleGrid, name: str, model: Path, device: torch.device) -> tuple[str, list[list[Image.Image]]]:
    """Label of one model's rows, and its tiles of each prompt. The model is gone again when it returns."""
    on_gpu = device.type == "cuda"
    sampler, encoder = load_sampler(model, device, dtype=precision.set_up(bf16=on_gpu))
    at_a_time = min(GPU_BATCH, picture.num_images) if on_gpu else picture.num_images
    batches = batches_of(len(picture.prompts), picture.num_images, at_a_time)
    tiles: list[list[Image.Image]] = [[] for _ in picture.prompts]
    for keys, made in sampler.sweep(encoder, picture.prompts, batches, SEED, progress=f"picture: {name}"):
        check_finite(made, model)
        for (prompt, _), image in zip(keys, to_pil(made), strict=True):
            image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)  # never enlarges
            tiles[prompt].append(image)
    return f"{name}, {len(sampler.settings.sigmas) - 1} steps", tiles
