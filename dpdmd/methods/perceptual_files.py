"""The files that a perceptual distance needs, checked without loading them."""

from pathlib import Path

from dpdmd.models.weight_files import (
    check_model_folder,
    check_pickle,
    require_folder,
    require_image_processor,
    where_to_get,
)

# What --perceptual_path must hold for lpips and dists, under the names of its publishers (torchvision, pyiqa).
IMAGENET_VGG = "vgg16-397923af.pth"


PERCEPTUAL_FILES = {"lpips": "LPIPS_v0.1_vgg-a78928a0.pth", "dists": "DISTS_weights-f5e65c96.pth"}


def check_perceptual(name: str, folder: Path) -> None:
    """Check the files of `--perceptual` `name`.

    Raises:
        ValueError: one line that names the flag, the file, and where to get it.
    """
    hint = where_to_get(folder, "facebook/dinov2-base")
    try:
        if name in PERCEPTUAL_FILES:
            require_folder(folder)
            hint = f"get it from https://download.pytorch.org/models/{IMAGENET_VGG}"
            check_pickle(folder / IMAGENET_VGG)
            hint = "get it from https://huggingface.co/chaofengc/IQA-PyTorch-Weights"
            check_pickle(folder / PERCEPTUAL_FILES[name])
        else:
            check_model_folder(folder)
            require_image_processor(folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"--perceptual_path {folder}: {error}; {hint}") from None
