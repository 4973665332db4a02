"""Sample images from a run, a checkpoint or any pipeline folder: `python -m dpdmd.generate --model M --prompt "..."`.

With `--geneval evaluation_metadata.jsonl` the images are written in GenEval's layout (scripts/run_geneval.md). After an
interruption, the same command continues.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.generate")

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dpdmd.config.hub_flags import HubOptions, add_hub_flags, add_model_flags
from dpdmd.config.precisions import PRECISIONS, UNQUANTIZED, check_installed
from dpdmd.config.sampling_flags import FLAGS, add_sampling_flags, apply_size, check_ranges, check_total
from dpdmd.data.prompt_files import COLUMN_HELP, read_prompts
from dpdmd.distributed.launch_env import check_single_process
from dpdmd.sampling import geneval
from dpdmd.sampling.image_folder import SHEET, is_generated
from dpdmd.sampling.model_source import locate_model
from dpdmd.utils.paths import check_writable, user_path
from dpdmd.utils.programs import make_parser, run_program
from dpdmd.utils.text_files import check_prompt
from dpdmd.utils.wording import counted

NUM_IMAGES = 9


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `dpdmd.generate`."""
    parser = make_parser("dpdmd.generate", __doc__)
    add_model_flags(parser)
    parser.add_argument("--prompt", nargs="+", action="extend", help="one or more prompts")
    parser.add_argument("--prompt_txt", type=user_path, help="file of prompts: text, one per line, or columns")
    parser.add_argument("--prompt_column", help=COLUMN_HELP)
    parser.add_argument("--geneval", type=user_path, help="GenEval's evaluation_metadata.jsonl; OUT gets its layout")
    parser.add_argument(
        "--num_images", type=int, help=f"images per prompt (default: {NUM_IMAGES}, with --geneval {geneval.NUM_IMAGES})"
    )
    parser.add_argument("--out", type=user_path, required=True, help="folder for the images and grid.png")
    parser.add_argument("--batch_size", type=int, default=9, help="images sampled at a time (default: %(default)s)")
    add_sampling_flags(parser, *FLAGS)
    parser.add_argument(
        "--base_precision",
        choices=PRECISIONS,
        default=UNQUANTIZED,
        help="type in which the linear layers of the network are kept, as in training; a LoRA beside them is not "
        "quantised, and with bf16 nothing is (default: %(default)s)",
    )
    parser.add_argument(
        "--beside_bf16",
        action="store_true",
        help="with another --base_precision: sample once more from the same noises on the unquantised network",
    )
    add_hub_flags(parser)
    return parser


def check(args: argparse.Namespace) -> list[str]:
    """Check the arguments, and return the prompts.

    Raises:
        ValueError: several processes, a value out of range, not exactly one source of prompts, or a folder that cannot
            be written.
    """
    check_single_process("several would write the same images")
    check_ranges(vars(args))
    apply_size(args)
    if sum(given is not None for given in (args.prompt, args.prompt_txt, args.geneval)) != 1:
        raise ValueError("--prompt, --prompt_txt or --geneval: give one of them")
    check_installed("base_precision", args.base_precision)
    if args.beside_bf16 and args.base_precision == UNQUANTIZED:
        raise ValueError("--beside_bf16: nothing is quantised; give --base_precision fp8, int8 or nf4 with it")
    if args.beside_bf16 and args.geneval:
        raise ValueError("--beside_bf16: GenEval's layout has one set of images; leave it out")
    check_writable("--out", args.out)
    args.num_images = args.num_images or (geneval.NUM_IMAGES if args.geneval else NUM_IMAGES)
    if args.geneval:
        geneval.check_folder(args.out)
        prompts = [entry.prompt for entry in geneval.read_metadata(args.geneval)]
        check_total("num_images", len(prompts), args.num_images)
        return prompts
    for prompt in args.prompt or ():
        check_prompt(prompt, "--prompt")
    prompts = args.prompt or read_prompts(args.prompt_txt, column=args.prompt_column)
    check_total("num_images", len(prompts), args.num_images)
    _check_images(args.out, len(prompts), args.num_images, beside=args.beside_bf16)
    return prompts


def _check_images(out: Path, num_prompts: int, num_images: int, *, beside: bool) -> None:
    """Check the images in `out`: this call replaces those of an earlier call, and no others.

    Raises:
        ValueError: an image of an earlier call would stay and look like one of this call, or a file that is not this
            program's would be overwritten.
    """
    left, replaced = [], [SHEET] if os.path.lexists(out / SHEET) else []
    for name in sorted(path.name for path in out.glob("*.png")):
        if key := re.fullmatch(r"(\d{5,})_(\d{3,})(_bf16)?\.png", name):
            stays = int(key[1]) >= num_prompts or int(key[2]) >= num_images or (key[3] and not beside)
            (left if stays else replaced).append(name)
    if left:
        raise ValueError(
            f"--out {out}: {len(left)} images of an earlier call would stay between the new ones, such as "
            f"{left[0]}; give another folder, or delete them"
        )
    if others := [name for name in replaced if not is_generated(out / name)]:
        raise ValueError(
            f"--out {out}: {counted(len(others), 'file')} that dpdmd.generate did not write would be overwritten, such "
            f"as {others[0]}; give another folder, or move them"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program. Return exit status 2 for wrong input, 1 for an error while sampling."""
    args = build_parser().parse_args(argv)
    return run_program("dpdmd.generate", lambda: _generate(args))


def _generate(args: argparse.Namespace) -> None:
    prompts = check(args)
    base = args.base_model and str(args.base_model)
    args.model, args.base_model, _ = locate_model(str(args.model), base, HubOptions.of(args))
    # Imported late: it takes seconds, and wrong input is reported before.
    from dpdmd.sampling import generation

    sys.stdout.write(f"{generation.run(args, prompts)}\n")


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
