"""The files of each perceptual distance, and a check that loads none of them."""

from pathlib import Path

from dpdmd.models.weight_files import (
    check_model_folder,
    check_pickle,
    require_folder,
    require_image_processor,
    where_to_get,
)

# The files in --perceptual_path for lpips and dists, named as torchvision and pyiqa publish them.
IMAGENET_VGG = "vgg16-397923af.pth"
PERCEPTUAL_FILES = {"lpips": "LPIPS_v0.1_vgg-a78928a0.pth", "dists": "DISTS_weights-f5e65c96.pth"}


def where_to_get_perceptual(name: str, folder: Path) -> str:
    """Return advice on missing or broken files of `--perceptual` `name`."""
    if name not in PERCEPTUAL_FILES:
        return where_to_get(folder, "facebook/dinov2-base")
    return (
        f"it holds {IMAGENET_VGG} from https://download.pytorch.org/models and {PERCEPTUAL_FILES[name]} from "
        "https://huggingface.co/chaofengc/IQA-PyTorch-Weights"
    )


def check_perceptual(name: str, folder: Path) -> None:
    """Check that the files of `--perceptual` `name` exist and have the right format.

    Raises:
        ValueError: a file is missing or broken; one line that names the flag, the file, and where to get it.
    """
    try:
        if name in PERCEPTUAL_FILES:
            require_folder(folder)
            check_pickle(folder / IMAGENET_VGG)
            check_pickle(folder / PERCEPTUAL_FILES[name])
        else:
            check_model_folder(folder)
            require_image_processor(folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"--perceptual_path {folder}: {error}; {where_to_get_perceptual(name, folder)}") from None
