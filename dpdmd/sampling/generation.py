"""The work of `dpdmd.generate`: sample images of checked arguments, and write them with grids."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dpdmd.config.precisions import UNQUANTIZED, Precisions
from dpdmd.data.prompts import fingerprint
from dpdmd.distributed.launch_env import single_process_warning
from dpdmd.distributed.topology import describe, local_device
from dpdmd.models.quantization import original_weights
from dpdmd.models.tensor_files import open_weights
from dpdmd.models.weight_files import DIFFUSERS_STEM
from dpdmd.sampling import geneval
from dpdmd.sampling.find_model import find_model, warn_of_unused_base
from dpdmd.sampling.image_folder import GENERATED, SAMPLES, SHEET, check_or_write_settings, is_whole, open_image
from dpdmd.sampling.load_model import SamplerPlan, plan_sampler, uses_bf16
from dpdmd.sampling.memory_estimate import report_memory
from dpdmd.sampling.model_identity import model_settings
from dpdmd.sampling.sampler import Batch, batches_of, check_finite
from dpdmd.utils import out_of_memory, precision
from dpdmd.utils.atomic_files import clear_leftovers, write_text
from dpdmd.utils.image_grid import GRID_PIXELS, labelled_grid, save_image, to_pil
from dpdmd.utils.logging import logger
from dpdmd.utils.wording import counted

COLUMNS = 9
BESIDE = "_bf16"  # ending of the names of images on a network that is not quantised


def run(args: argparse.Namespace, prompts: Sequence[str]) -> Path:
    """Sample and write the images. Return the path of the grid, or of the folder in GenEval's layout.

    Raises:
        ValueError: the model does not load or its images are not finite, or OUT holds images of other settings.
        OSError: images cannot be written.
        MemoryError: the device has too little memory.
    """
    with out_of_memory.explained("lower --batch_size, --height or --width, or give --bf16"):
        return _run(args, prompts)


def _run(args: argparse.Namespace, prompts: Sequence[str]) -> Path:
    model = find_model(args.model, args.base_model)
    warn_of_unused_base(model, args.base_model)
    args.bf16 = uses_bf16(model, args.bf16)
    device = local_device()
    plan = plan_sampler(
        model,
        device,
        dtype=precision.set_up(args.bf16),
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        height=args.height,
        width=args.width,
        max_sequence_length=args.max_sequence_length,
        precisions=Precisions(args.base_precision),
    )
    report_memory(plan, min(args.batch_size, len(prompts) * args.num_images), "--batch_size")
    clear_leftovers([args.out])
    if warning := single_process_warning():
        logger.warning("%s", warning)
    work = f"{counted(len(prompts) * args.num_images, 'image')} of {counted(len(prompts), 'prompt')}"
    tqdm.write(f"{describe(1, device)}: {work}", file=sys.stderr)
    return _write_geneval(args, plan) if args.geneval else _write_flat(args, prompts, plan)


def _sample(
    args: argparse.Namespace, plan: SamplerPlan, prompts: Sequence[str], batches: Sequence[Batch]
) -> Iterator[tuple[str, Batch, list[Image.Image]]]:
    """Yield (ending, keys, images) of each batch, after a check that the images are finite. Loads nothing for no batch.

    The ending of the images' names is empty, or with `--beside_bf16` in a second pass over all batches "_bf16".
    """
    if not batches:
        return
    wanted = {prompt for batch in batches for prompt, _ in batch}
    sampler, encoder = plan.load([prompts[prompt] for prompt in sorted(wanted)], progress="encoding prompts")
    passes = {"": nullcontext()}
    if args.beside_bf16:
        folder = plan.model.folder / plan.family.layout.network
        passes[BESIDE] = original_weights(sampler.network, open_weights(folder, DIFFUSERS_STEM))
    for ending, base in passes.items():
        with base:
            for keys, images in sampler.sweep(encoder, prompts, batches, args.seed, progress="generating"):
                check_finite(images, args.model)
                yield ending, keys, to_pil(images)


def _write_flat(args: argparse.Namespace, prompts: Sequence[str], plan: SamplerPlan) -> Path:
    """Write OUT/00000_000.png ... and grid.png, with one row per prompt and at most GRID_PIXELS. Return its path.

    With `--beside_bf16` a prompt has two rows.
    """
    bases = {"": f" (base in {args.base_precision})", BESIDE: " (base not quantised)"} if args.beside_bf16 else {"": ""}
    rows: dict[tuple[int, str], list[Image.Image]] = {(n, base): [] for n in range(len(prompts)) for base in bases}
    total = len(prompts) * args.num_images
    shown = min(total, max(1, GRID_PIXELS // (plan.settings.height * plan.settings.width)))
    batches = batches_of(len(prompts), args.num_images, args.batch_size)
    for base, keys, images in _sample(args, plan, prompts, batches):
        for (prompt, sample), image in zip(keys, images, strict=True):
            if prompt * args.num_images + sample < shown:
                rows[prompt, base].append(image)
            save_image(image, args.out / f"{prompt:05d}_{sample:03d}{base}.png", GENERATED)
    columns = COLUMNS if len(rows) > 1 else max(3, round(shown**0.5))
    filled = {key: row for key, row in rows.items() if row}
    labels = [prompts[prompt] + bases[base] for prompt, base in filled]
    grid = labelled_grid(list(filled.values()), labels, columns=min(columns, args.num_images))
    save_image(grid, args.out / SHEET, GENERATED)
    if shown < total:
        logger.warning("%s shows the first %d of %d images", args.out / SHEET, shown, total)
    return args.out / SHEET


def _write_geneval(args: argparse.Namespace, plan: SamplerPlan) -> Path:
    """Write the missing images of each entry in GenEval's layout, and return OUT.

    If one image of a batch is missing, the whole batch is sampled, because an image's last bits may depend on its
    batch.

    Raises:
        ValueError: OUT holds images of other settings.
    """
    entries = geneval.read_metadata(args.geneval)
    prompts, out = [entry.prompt for entry in entries], args.out
    settings = {
        **model_settings(plan.model),
        "bf16": args.bf16,
        "max_sequence_length": plan.max_sequence_length,
        **plan.settings.as_dict(),
        "seed": args.seed,
        "num_images": args.num_images,
        "batch_size": args.batch_size,
        "prompts": fingerprint(prompts),
        **({} if args.base_precision == UNQUANTIZED else {"base_precision": args.base_precision}),
    }
    check_or_write_settings(out, settings, "--out")
    for index, entry in enumerate(entries):
        folder = geneval.folder_of(out, index)
        clear_leftovers([folder, folder / SAMPLES])
        write_text(folder / "metadata.jsonl", entry.line + "\n")
    batches = batches_of(len(prompts), args.num_images, args.batch_size)
    todo = [batch for batch in batches if not all(is_whole(geneval.sample_of(out, *key)) for key in batch)]
    for _, keys, images in _sample(args, plan, prompts, todo):
        for key, image in zip(keys, images, strict=True):
            save_image(image, geneval.sample_of(out, *key), GENERATED)
    columns = max(1, round(args.num_images**0.5))
    for index, prompt in enumerate(prompts):
        row = [open_image(geneval.sample_of(out, index, sample)) for sample in range(args.num_images)]
        save_image(labelled_grid([row], [prompt], columns=columns), geneval.folder_of(out, index) / SHEET, GENERATED)
    return out
