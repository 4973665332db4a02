"""The images of --images: those that a CSV file lists, and whether given images can be scored."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dpdmd.sampling.given_images import is_table, odd_names, read_table
from dpdmd.sampling.image_folder import PICTURES, SETTINGS_FILE, ImageFile, is_whole, recorded_prompts

# Flags of the images that a model generates: those with a variable or a default of the program, and those without.
FROM_PROGRAM = ("model", "base_model", "num_samples", "gen_batch_size")
FROM_MODEL = ("steps", "guidance_scale", "size", "height", "width", "revision", "variant")


def check_no_sampling(args: argparse.Namespace) -> None:
    """Check that no flag of a model's images is given with --images. The variables of the program's file do not count.

    Raises:
        ValueError: one line that names the first.
    """
    values = vars(args)
    given = (*(flag for flag in FROM_PROGRAM if flag in args.given), *FROM_MODEL)
    flag = next((flag for flag in given if values[flag] not in (None, "")), None)
    if args.images and flag:
        raise ValueError(
            f"--{flag} {values[flag]}: has no meaning with --images, since no model generates images; leave one out"
        )


def listed_images(args: argparse.Namespace) -> list[ImageFile]:
    """Return the images of a CSV file given as --images; [] for a folder or without --images.

    Raises:
        ValueError: the file cannot be used, or a flag is given that has no meaning with it.
    """
    table = bool(args.images) and is_table(Path(args.images))
    if args.images_per_prompt and (table or not args.images):
        reason = "the CSV file of --images says which image is of which prompt" if table else "--images is not given"
        raise ValueError(f"--images_per_prompt {args.images_per_prompt}: {reason}; leave it out")
    if not table:
        return []
    if args.prompts_txt and "prompts_txt" in args.given:
        raise ValueError(f"--prompts_txt {args.prompts_txt}: the CSV file of --images has the prompts; leave it out")
    return read_table(Path(args.images), args.prompt_column)


def check_prompts(args: argparse.Namespace, prompts: Sequence[str]) -> None:
    """Check that the images of a folder that this project's programs wrote are of these prompts."""
    folder = Path(args.images)
    made_of = recorded_prompts(folder) or recorded_prompts(folder / PICTURES)
    if not (prompts and made_of):
        return
    from dpdmd.data.prompts import fingerprint  # imports torch, which takes seconds

    if made_of != fingerprint(prompts):
        raise ValueError(
            f"--prompts_txt {args.prompts_txt}: the images in {args.images} are of other prompts "
            f"({SETTINGS_FILE}); give the file that they were made of"
        )


def check_readable(folder: Path, images: list[ImageFile]) -> None:
    """Check that at least one image can be read; the others are counted as missing."""
    if not any(is_whole(image.path) for image in images):
        raise ValueError(
            f"--images {folder}: none of its {len(images)} images can be read; {images[0].path} is the first"
        )


def check_pairs(args: argparse.Namespace, images: list[ImageFile]) -> None:
    """Check that a prompt has two images that can be read, without which there is no diversity."""
    if not args.images and args.num_samples < 2:
        raise ValueError(f"--num_samples {args.num_samples}: diversity compares images of a prompt; give at least 2")
    if args.images and len({image.key[0] for image in images}) == len(images):
        raise ValueError(
            f"--images {args.images}: no two images are of one prompt, and diversity compares such "
            f"({odd_names([image.path for image in images])}); name them 00012_000.png and 00012_001.png, or give "
            "--images_per_prompt"
        )
    if args.images and not _has_readable_pair(images):
        raise ValueError(
            f"--images {args.images}: of no prompt can two images be read, and diversity compares such; "
            f"{next(image.path for image in images if not is_whole(image.path))} is the first that cannot be read"
        )


def _has_readable_pair(images: list[ImageFile]) -> bool:
    read: set[int] = set()
    for image in sorted(images, key=lambda image: image.key):  # the first two are enough, as a rule
        if is_whole(image.path):
            if image.key[0] in read:
                return True
            read.add(image.key[0])
    return False
