"""Pictures of a run, a checkpoint or any pipeline folder: `python -m dpdmd.generate --model M --prompt "..."`.

With `--geneval evaluation_metadata.jsonl` they are laid out for GenEval (scripts/run_geneval.md), and the same command
goes on after an interruption.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dpdmd import distributed, geneval
from dpdmd.families.base import TextEncoder
from dpdmd.grids import labelled_grid, save_picture, to_pil
from dpdmd.prompts import read_prompts
from dpdmd.sampling import Sampler, batches_of, find_model, load_sampler

NUM_IMAGES = 9


def build_parser() -> argparse.ArgumentParser:
    """The flags of `dpdmd.generate`."""
    parser = argparse.ArgumentParser(prog="dpdmd.generate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="run folder, checkpoint, pipeline folder, or .pt")
    parser.add_argument("--base_model", type=Path, help="pipeline folder that a .pt network belongs to")
    parser.add_argument("--prompt", nargs="+", help="one or more prompts")
    parser.add_argument("--prompt_txt", type=Path, help="or a file of prompts, one a line")
    parser.add_argument("--geneval", type=Path, help="or GenEval's evaluation_metadata.jsonl; OUT gets its layout")
    parser.add_argument(
        "--num_images", type=int, help=f"pictures a prompt (default: {NUM_IMAGES}, with --geneval {geneval.NUM_IMAGES})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the start noises (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and grid.png")
    parser.add_argument("--steps", type=int, help="sampling steps (default: what the model's folder says)")
    parser.add_argument("--guidance_scale", type=float, help="guidance (default: what the model's folder says)")
    parser.add_argument("--height", type=int, help="pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's)")
    parser.add_argument("--max_sequence_length", type=int, help="T5 tokens (default: what the model's folder says)")
    parser.add_argument("--batch_size", type=int, default=9, help="pictures made at a time (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="networks compute in bf16")
    return parser


def check(args: argparse.Namespace) -> list[str]:
    """The prompts of a command line.

    Raises:
        ValueError: a value out of range, no prompt or two kinds of them.
    """
    for name in ("num_images", "batch_size", "steps", "max_sequence_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: must be at least 1")
    if sum(given is not None for given in (args.prompt, args.prompt_txt, args.geneval)) != 1:
        raise ValueError("--prompt, --prompt_txt or --geneval: give one of them")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: is a file; give a folder")
    args.num_images = args.num_images or (geneval.NUM_IMAGES if args.geneval else NUM_IMAGES)
    if args.geneval:
        geneval.check_folder(args.out)
        return [entry.prompt for entry in geneval.read_metadata(args.geneval)]
    prompts = args.prompt or read_prompts(args.prompt_txt)
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("--prompt: is empty")
    return prompts


def _flat(args: argparse.Namespace, prompts: Sequence[str], sampler: Sampler, encoder: TextEncoder) -> Path:
    """OUT/00000_000.png ... and grid.png, a row a prompt; returns the grid."""
    rows: list[list] = [[] for _ in prompts]
    batches = batches_of(len(prompts), args.num_images, args.batch_size)
    for keys, pictures in sampler.sweep(encoder, prompts, batches, args.seed, progress="generating"):
        for (prompt, sample), picture in zip(keys, to_pil(pictures), strict=True):
            rows[prompt].append(picture)
            save_picture(picture, args.out / f"{prompt:05d}_{sample:03d}.png")
    columns = NUM_IMAGES if len(prompts) > 1 else max(3, round(args.num_images**0.5))
    save_picture(labelled_grid(rows, prompts, columns=min(columns, args.num_images)), args.out / "grid.png")
    return args.out / "grid.png"


def _for_geneval(args: argparse.Namespace, sampler: Sampler, encoder: TextEncoder) -> Path:
    """GenEval's folders; returns the one that holds them."""
    settings = {
        "model": str(find_model(args.model, args.base_model).source.resolve()),
        "bf16": args.bf16,
        "max_sequence_length": args.max_sequence_length,
    }
    counts = {"num_images": args.num_images, "batch_size": args.batch_size, "seed": args.seed}
    geneval.fill(sampler, encoder, geneval.read_metadata(args.geneval), args.out, settings, **counts)
    return args.out


def main(argv: Sequence[str] | None = None) -> int:
    """Generate; exit status 2 on wrong input."""
    args = build_parser().parse_args(argv)
    try:
        prompts = check(args)
        distributed.set_cuda_arithmetic(args.bf16)
        sampler, encoder = load_sampler(
            args.model,
            torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            base_model=args.base_model,
            dtype=torch.bfloat16 if args.bf16 else torch.float32,
            steps=args.steps,
            guidance_scale=args.guidance_scale,
            height=args.height,
            width=args.width,
            max_sequence_length=args.max_sequence_length,
        )
        made = _for_geneval(args, sampler, encoder) if args.geneval else _flat(args, prompts, sampler, encoder)
    except ValueError as error:
        print(f"dpdmd.generate: error: {error}", file=sys.stderr)
        return 2
    sys.stdout.write(f"{made}\n")
    return 0
