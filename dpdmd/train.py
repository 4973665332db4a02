"""`accelerate launch -m dpdmd.train`: parse, check, run.

Exit status: 0 done; 1 stopped by a failure that is told in one line (a loss that is not finite, a full disk, too
little memory, another process of the run that was killed); 2 wrong input; 128 + its number after SIGINT (130), SIGUSR1
(138) or SIGTERM (143), all saved.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.train")

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch

from dpdmd import config
from dpdmd.training import preflight
from dpdmd.training.checkpoint import SaveError
from dpdmd.training.memory_estimate import MemoryEstimate
from dpdmd.training.nonfinite import NonFiniteError
from dpdmd.utils import out_of_memory
from dpdmd.utils.signals import Interrupted
from dpdmd.utils.text_files import one_line


class End(NamedTuple):
    """How a run ended: exit status, the line to leave on the terminal, whether every rank ended so, none waiting."""

    status: int
    why: str = ""
    together: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status."""
    with ExitStack() as ending:
        end = _run(argv, ending)
        if end.why:
            print(f"dpdmd.train: {one_line(end.why)}", file=sys.stderr)
        if torch.distributed.is_initialized():
            from dpdmd.distributed import collectives

            if end.together:
                collectives.destroy_process_group()
            else:
                collectives.exit_without_peers(end.status)
    return end.status


def _run(argv: Sequence[str] | None, ending: ExitStack) -> End:
    try:
        setup = preflight.check(config.parse(argv))
    except (ValueError, OSError, MemoryError) as error:
        return End(2, f"error: {error}")
    try:
        # diffusers takes seconds to import: only now, so that wrong input is told at once.
        from dpdmd.training.trainer import Trainer

        trainer = Trainer(setup)
    except ValueError as error:
        return End(2, f"error: {error}")
    except RuntimeError as error:
        return End(1, _failure(setup.memory, error))
    except OSError as error:
        return End(1, f"stopped: {error}")
    # Until the end is told, too: of a peer that was killed a launcher's SIGTERM follows at once.
    ending.enter_context(trainer.signals)
    try:
        trainer.train()
    except Interrupted as interrupted:
        return End(interrupted.status, f"stopped: {interrupted}", together=True)
    except (NonFiniteError, SaveError) as error:
        return End(1, f"stopped: {error}", together=True)
    except RuntimeError as error:
        return End(1, _failure(setup.memory, error))
    except OSError as error:
        return End(1, f"stopped: {error}; the checkpoints written before are whole")
    return End(0, together=True)


def _failure(memory: MemoryEstimate, error: RuntimeError) -> str:
    """Of a peer that is gone, how to go on; of memory that is full, the plan's largest rows with the flags that lower
    them; with torch's own first line. Other errors go on."""
    from dpdmd.distributed import collectives

    if lost := collectives.lost_peer_message(error):
        return (
            f"stopped: another process of this run is gone ({lost}); the checkpoints written before are whole, and "
            "--resume_from_checkpoint latest goes on"
        )
    told = out_of_memory.first_line(error)
    return f"stopped: out of memory ({memory.summary()}); {memory.advice()}; or see --preset in --help ({told})"


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
