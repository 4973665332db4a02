"""The picture of a sweep: for each prompt a row a model, the same start noises in every row."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from dpdmd.comparison.sweep import Picture
from dpdmd.grids import labelled_grid, save_picture, to_pil
from dpdmd.sampling import batches_of, load_sampler

SEED = 0


def draw(picture: Picture, models: Mapping[str, Path], path: Path) -> None:
    """Sample every model (name -> what `--model` would be) and write the grid.

    Raises:
        ValueError: a model does not load.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, list[Image.Image]]] = [{} for _ in picture.prompts]
    batches = batches_of(len(picture.prompts), picture.num_images, picture.num_images)
    for name, model in models.items():
        sampler, encoder = load_sampler(model, device)
        label = f"{name}, {len(sampler.settings.sigmas) - 1} steps"
        for keys, made in sampler.sweep(encoder, picture.prompts, batches, SEED, progress=f"picture: {name}"):
            for (prompt, _), image in zip(keys, to_pil(made), strict=True):
                rows[prompt].setdefault(label, []).append(image)
    labels = [f'{label}: "{text}"' for text, of in zip(picture.prompts, rows, strict=True) for label in of]
    save_picture(labelled_grid([row for of in rows for row in of.values()], labels), path)
