"""`accelerate launch -m dpdmd.train`: parse, check, run.

Exit status: 0 done; 1 stopped by a failure that is told in one line (a loss that is not finite, a full disk, too
little memory); 2 wrong input; 128 + its number after SIGINT (130), SIGUSR1 (138) or SIGTERM (143), all saved.
"""

from dpdmd import interruption

if __name__ == "__main__":  # before the imports below, which take seconds
    interruption.answer("dpdmd.train")

import sys
from collections.abc import Sequence
from typing import NamedTuple

from dpdmd import config, out_of_memory, preflight
from dpdmd.checkpoint import SaveError
from dpdmd.diagnostics import NonFiniteError
from dpdmd.interruption import Interrupted
from dpdmd.memory_plan import MemoryPlan
from dpdmd.text_files import one_line


class End(NamedTuple):
    """How a run ended: exit status, the line to leave on the terminal, whether every rank ended so, none waiting."""

    status: int
    why: str = ""
    together: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status."""
    end = _run(argv)
    if end.why:
        print(f"dpdmd.train: {one_line(end.why)}", file=sys.stderr)
    if end.together:
        from dpdmd import distributed

        distributed.leave()
    return end.status


def _run(argv: Sequence[str] | None) -> End:
    try:
        plan = preflight.check(config.parse(argv))
    except (ValueError, OSError, MemoryError) as error:
        return End(2, f"error: {error}")
    try:
        # diffusers takes seconds to import: only now, so that wrong input is told at once.
        from dpdmd.trainer import Trainer

        trainer = Trainer(plan)
    except ValueError as error:
        return End(2, f"error: {error}")
    except RuntimeError as error:
        return End(1, _out_of_memory(plan.memory, error))
    except OSError as error:
        return End(1, f"stopped: {error}")
    try:
        trainer.train()
    except Interrupted as interrupted:
        return End(interrupted.status, f"stopped: {interrupted}", together=True)
    except (NonFiniteError, SaveError) as error:
        return End(1, f"stopped: {error}", together=True)
    except RuntimeError as error:
        return End(1, _out_of_memory(plan.memory, error))
    except OSError as error:
        return End(1, f"stopped: {error}; the checkpoints written before are whole")
    return End(0, together=True)


def _out_of_memory(memory: MemoryPlan, error: RuntimeError) -> str:
    """The plan's largest rows with the flags that lower them, and torch's own first line; other errors go on."""
    told = out_of_memory.first_line(error)
    return f"stopped: out of memory ({memory.summary()}); {memory.advice()}; or see --preset in --help ({told})"


if __name__ == "__main__":
    sys.exit(interruption.done(main()))
