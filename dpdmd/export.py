"""Export a model as one complete pipeline folder: `python -m dpdmd.export --model RUN --out FOLDER`.

diffusers loads the folder on any machine: a LoRA is merged into the weights, a network alone is put beside the other
parts, and links become files. With --single_file the folder has one file for ComfyUI and WebUIs instead.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.export")

import argparse
import os
import sys
from collections.abc import Sequence

from dpdmd.sampling.export import DTYPES, export
from dpdmd.utils.error_lines import one_line
from dpdmd.utils.paths import check_writable, user_path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program. Return exit status 2 for wrong input, 1 for an error while writing."""
    parser = argparse.ArgumentParser(
        prog="dpdmd.export",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=user_path,
        required=True,
        help="run folder, checkpoint, pipeline or LoRA folder, or a network's file",
    )
    parser.add_argument(
        "--base_model", type=user_path, help="pipeline folder that a LoRA or a network alone was trained from"
    )
    parser.add_argument("--out", type=user_path, required=True, help="folder to create; it must not exist")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="type of all weights; without it the network is fp32, the rest as it is"
    )
    parser.add_argument(
        "--single_file",
        action="store_true",
        help="write all weights to one file in the model's original layout, OUT/<name of OUT>.safetensors",
    )
    args = parser.parse_args(argv)
    try:
        if os.path.lexists(args.out):
            raise ValueError(f"--out {args.out}: exists already; give another")
        check_writable("--out", args.out)
        export(args.model, args.base_model, args.out, dtype=args.dtype, single_file=args.single_file)
    except ValueError as error:
        print(f"dpdmd.export: error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"dpdmd.export: stopped: {one_line(error)}", file=sys.stderr)
        return 1
    sys.stdout.write(f"{args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
