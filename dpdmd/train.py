"""`accelerate launch -m dpdmd.train`: check the flags and all that they point to, then train.

Exit status: 0 done; 1 stopped by a failure, which one line explains (a loss that is not finite, a full disk, too little
memory, another process of the run that was killed); 2 wrong input; 128 + the signal's number after a signal, with
everything saved: SIGHUP (129), SIGINT (130), SIGUSR1 (138), SIGUSR2 (140), SIGTERM (143) or SIGXCPU (152).
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
from dpdmd.training.nonfinite import NonFiniteError
from dpdmd.utils import out_of_memory
from dpdmd.utils.error_lines import one_line
from dpdmd.utils.logging import logger
from dpdmd.utils.signals import Interrupted, StopSignals


class End(NamedTuple):
    """How a run ended.

    Attributes:
        status: exit status.
        message: one line for the terminal, or "".
        together: whether every rank ends here, so that no rank waits for another.
        publish: run whose student rank 0 uploads to the Hub, or None.
        signals: with `publish`: a signal that came too late to end the training stops the upload.
    """

    status: int
    message: str = ""
    together: bool = False
    publish: preflight.RunSetup | None = None
    signals: StopSignals | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit status."""
    with ExitStack() as stack:
        end = _run(argv, stack)
        if end.message:
            print(f"dpdmd.train: {one_line(end.message)}", file=sys.stderr)
        if torch.distributed.is_initialized():
            from dpdmd.distributed import collectives

            if end.together:
                collectives.destroy_process_group()
            else:
                collectives.exit_without_peers(end.status)
        if end.publish:  # without the other ranks, which would wait for the network
            stack.close()  # from here on a signal ends the program at once
            end = _publish(end.publish, end.signals.received)
            if end.message:
                print(f"dpdmd.train: {one_line(end.message)}", file=sys.stderr)
    return end.status


def _publish(setup: preflight.RunSetup, signal_number: int) -> End:
    """Upload the student; after a signal (0 for none), return how to do it."""
    from dpdmd.training.publish import publish, upload_command

    try:
        if signal_number:
            return End(128 + signal_number, f"stopped before the upload: the run is complete; {upload_command(setup)}")
        logger.info("the student is on the Hub: %s", publish(setup))
    except OSError as error:
        return End(1, f"stopped: {error}")
    return End(0)


def _run(argv: Sequence[str] | None, stack: ExitStack) -> End:
    try:
        setup = preflight.check(config.parse(argv))
    except (ValueError, OSError, MemoryError) as error:
        return End(2, f"error: {error}")
    memory = setup.memory
    try:
        with out_of_memory.explained(f"{memory.summary()}; {memory.advice()}; or see --preset in --help"):
            return _train(setup, stack)
    except MemoryError as error:
        return End(1, f"stopped: {error}")
    except RuntimeError as error:
        return End(1, f"stopped: {_lost_peer(error)}")


def _train(setup: preflight.RunSetup, stack: ExitStack) -> End:
    try:
        # diffusers takes seconds to import: only now, so that wrong input is reported at once.
        from dpdmd.training.trainer import Trainer

        trainer = Trainer(setup)
    except ValueError as error:
        return End(2, f"error: {error}")
    except OSError as error:
        return End(1, f"stopped: {error}")
    # Signals stay caught until `main` has printed the message: after a killed rank the launcher sends SIGTERM at once.
    stack.enter_context(trainer.signals)
    try:
        trainer.train()
    except Interrupted as interrupted:
        return End(interrupted.status, f"stopped: {interrupted}", together=True)
    except (NonFiniteError, SaveError) as error:
        return End(1, f"stopped: {error}", together=True)
    except OSError as error:
        return End(1, f"stopped: {error}; the checkpoints written before are whole")
    if not (setup.config.run.push_to_hub and trainer.accelerator.is_main_process):
        return End(0, together=True)
    return End(0, together=True, publish=trainer.setup, signals=trainer.signals)


def _lost_peer(error: RuntimeError) -> str:
    """Return what to do if `error` is about another process of the run that is gone.

    Raises:
        RuntimeError: `error` is about something else.
    """
    from dpdmd.distributed import collectives

    lost = collectives.lost_peer_message(error)
    if lost is None:
        raise error
    return (
        f"another process of this run is gone ({lost}); the checkpoints written before are whole, and "
        "--resume_from_checkpoint latest goes on"
    )


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
