"""What the programs share: how they read flags, and how an error ends them. Imports nothing heavy."""

import argparse
import sys
from collections.abc import Callable

from dpdmd.utils.error_lines import one_line

FAILURES = (OSError, MemoryError)  # which no other flag would have prevented


def make_parser(
    prog: str, description: str | None, *, usage: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser that takes no abbreviated flags and keeps the line breaks of `description` and `epilog`."""
    return argparse.ArgumentParser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_program(prog: str, work: Callable[[], int | None], failures: tuple[type[Exception], ...] = FAILURES) -> int:
    """Call `work` and return the exit status: what it returns, 0 for None; 2 for wrong input, 1 for one of `failures`.

    Wrong input is a ValueError. Each error is printed as one line.
    """
    try:
        return work() or 0
    except ValueError as error:
        return print_error(prog, error)
    except failures as error:
        sys.stderr.write(f"{prog}: stopped: {one_line(error)}\n")
        return 1


def print_error(prog: str, error: object) -> int:
    """Print the line of wrong input, and return its exit status."""
    sys.stderr.write(f"{prog}: error: {one_line(error)}\n")
    return 2
