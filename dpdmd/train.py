"""`accelerate launch -m dpdmd.train`: parse, check, run. Exit status 2 and one line where the input is wrong."""

import sys
from collections.abc import Sequence

from dpdmd import config, preflight


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status: 0 done, 1 stopped by a non-finite loss, 2 wrong input."""
    try:
        plan = preflight.check(config.parse(argv))
        # diffusers takes seconds to import: only now, so that wrong input is told at once.
        from dpdmd.trainer import NonFiniteError, Trainer

        trainer = Trainer(plan)
    except ValueError as error:
        print(f"dpdmd.train: error: {error}", file=sys.stderr)
        return 2
    try:
        trainer.train()
    except NonFiniteError as error:
        print(f"dpdmd.train: stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
