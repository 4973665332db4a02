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
from pathlib import Path
from typing import TYPE_CHECKING

from dpdmd.config.hub_flags import HubOptions, add_hub_flags, add_model_flags
from dpdmd.distributed.launch_env import check_single_process
from dpdmd.sampling.export import DTYPES, export
from dpdmd.sampling.model_source import locate_model
from dpdmd.utils.hub_upload import check_upload, upload
from dpdmd.utils.library_settings import check_attention_variable
from dpdmd.utils.paths import check_writable, user_path
from dpdmd.utils.programs import make_parser, run_program

if TYPE_CHECKING:
    from dpdmd.sampling.find_model import Model  # its module imports torch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program. Return exit status 2 for wrong input, 1 for an error while writing."""
    parser = make_parser("dpdmd.export", __doc__)
    add_model_flags(parser)
    parser.add_argument("--out", type=user_path, required=True, help="folder to create; it must not exist")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="type of all weights; without it the network is fp32, the rest as it is"
    )
    parser.add_argument(
        "--single_file",
        action="store_true",
        help="write all weights to one file in the model's original layout, OUT/<name of OUT>.safetensors",
    )
    parser.add_argument("--push_to_hub", action="store_true", help="upload the folder to the Hugging Face Hub")
    parser.add_argument(
        "--hub_model_id", help="repository on the Hub, NAME or ORGANISATION/NAME; without it OUT's name"
    )
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    add_hub_flags(parser)
    args = parser.parse_args(argv)
    return run_program("dpdmd.export", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    check_single_process("it writes one folder")
    check_attention_variable()
    repository = _check(args)
    _export(args, repository)
    sys.stdout.write(f"{args.out}\n")
    if args.push_to_hub:
        sys.stdout.write(f"{_upload(args.out, repository, args.private)}\n")


def _check(args: argparse.Namespace) -> str:
    """Check the flags, and return the name of the repository on the Hub.

    Raises:
        ValueError: one line that names the flag.
    """
    if os.path.lexists(args.out):
        raise ValueError(f"--out {args.out}: exists already; give another")
    if args.out.suffix == ".safetensors":
        raise ValueError(f"--out {args.out}: give the name of a folder, such as {args.out.with_suffix('')}")
    check_writable("--out", args.out)
    return check_upload(args.push_to_hub, args.hub_model_id, args.private, ("--out", args.out))


def _export(args: argparse.Namespace, repository: str) -> None:
    """Write the folder with its model card."""

    def finish(model: "Model", folder: Path) -> None:
        from dpdmd.report.card_facts import PIPELINE, SINGLE_FILE, Card, training_of
        from dpdmd.report.model_card import write_card

        training = training_of(model.source)
        card = Card(
            name=repository if args.push_to_hub else args.out.name,
            kind=SINGLE_FILE if args.single_file else PIPELINE,
            layout=model.layout,
            defaults=model.defaults,
            from_base=training is not None or model.source != model.folder,
            base=Path(training.config["teacher_id"]) if training else model.folder,
            dtype=DTYPES[args.dtype or "fp32"],
            file=f"{args.out.name}.safetensors",
            training=training,
        )
        write_card(folder, card, images=True)

    base = args.base_model and str(args.base_model)
    model, base_model, _ = locate_model(str(args.model), base, HubOptions.of(args))
    export(model, base_model, args.out, dtype=args.dtype, single_file=args.single_file, finish=finish)


def _upload(folder: Path, repository: str, private: bool) -> str:
    from dpdmd.report.model_card import rename

    return upload(folder, repository, private=private, message="Export of a student", on_name=rename)


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
