"""Compare students with their teacher on a web page: `python -m dpdmd.demo --model RUN [--model RUN2 ...]`.

Type a prompt, and see the images of every model from the same start noises, with steps, seconds and diversity. The
page is at http://127.0.0.1:7860 until the program is stopped (Ctrl-C). It needs `pip install -e ".[demo]"`.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.demo")

import argparse
import errno
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from dpdmd.config.hub_flags import HubOptions, add_hub_flags, add_model_flags
from dpdmd.config.sampling_flags import add_sampling_flags, apply_size, check_ranges
from dpdmd.config.scorer_table import DIVERSITY_SCORERS, SCORERS
from dpdmd.demo.sources import find_sources
from dpdmd.distributed.launch_env import check_single_process
from dpdmd.evaluation.scorer_files import check_scorer_paths, scorer_sources
from dpdmd.models.hub_models import locate_all
from dpdmd.utils.library_settings import check_attention_variable
from dpdmd.utils.paths import user_path
from dpdmd.utils.programs import make_parser, run_program

MAX_PORT = 65535
SCORER_FILES = [file for name in sorted(DIVERSITY_SCORERS) for file in SCORERS[name].files]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `dpdmd.demo`."""
    parser = make_parser("dpdmd.demo", __doc__)
    add_model_flags(parser, several=True)
    parser.add_argument(
        "--teacher",
        type=user_path,
        help="the teacher's pipeline folder, or org/name (default: the one in the run's config.yaml)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at; 0 for any (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="images sampled at a time (default: %(default)s)")
    for file in SCORER_FILES:
        parser.add_argument(f"--{file.flag}", type=user_path, help=f"{file.help}: show this diversity, too")
    add_sampling_flags(parser, "height", "width", "size", "bf16")
    add_hub_flags(parser, "--teacher")
    return parser


def check(args: argparse.Namespace) -> None:
    """Check what needs no model.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio: pip install -e '.[demo]' first")
    check_ranges(vars(args))
    apply_size(args)
    if not 0 <= args.port <= MAX_PORT:
        raise ValueError(f"--port {args.port}: must be 0 to {MAX_PORT}")
    places = [os.path.realpath(path) for path in args.model]
    for number, path in enumerate(args.model):
        if places[number] in places[:number]:
            raise ValueError(f"--model {path}: is given twice")


def find_scorers(args: argparse.Namespace) -> dict[str, dict[str, Path]]:
    """Return the files of the diversity scorers, on disk or from the Hub: scorer -> flag -> path.

    Raises:
        ValueError, OSError: as `locate_all`, or a path does not hold what its flag needs.
    """
    names = sorted(DIVERSITY_SCORERS)
    given = {file.flag: str(value) for file in SCORER_FILES if (value := getattr(args, file.flag))}
    sources = scorer_sources(given, names)
    found = locate_all(list(sources.values()), HubOptions.of(args))
    return check_scorer_paths({flag: str(one.path) for flag, one in zip(sources, found, strict=True)}, names)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at the address, before any model loads.

    Raises:
        ValueError: the port is in use or not allowed, or this machine does not have the address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just in use
        bound.bind(address)
        bound.listen()  # until then another program could have the port too; the first requests wait for the models
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
            raise ValueError(f"--port {port}: {os.strerror(error.errno)}; give another, or 0 for any") from None
        raise ValueError(f"--host {host}: is no address of this machine ({error})") from None
    return bound


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program until it is stopped. Return exit status 2 for wrong input, 1 for an error while loading."""
    args = build_parser().parse_args(argv)
    return run_program("dpdmd.demo", lambda: _serve(args))


def _serve(args: argparse.Namespace) -> None:
    check_single_process("it serves one page")
    check_attention_variable()
    check(args)
    with bind(args.host, args.port) as bound:
        sources, scorer_paths = find_sources(args), find_scorers(args)
        # Imported late: it takes seconds, and wrong input is reported before.
        from dpdmd.demo.server import run

        run(args, sources, scorer_paths, bound)


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
