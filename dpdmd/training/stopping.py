"""End a run on every rank when a signal, or a checkpoint that failed, on any rank asks for it."""

from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor

from dpdmd.distributed import collectives
from dpdmd.run_folder import LATEST
from dpdmd.training.checkpointer import Checkpointer
from dpdmd.utils.logging import logger
from dpdmd.utils.signals import Interrupted, StopSignals

ANNOUNCEMENT = "the run saves a checkpoint and ends; a second SIGINT ends it now"


class StopAskedError(Exception):
    """The run is asked to end between two batches of an evaluation."""


class Stopping:
    """Whether a run is asked to end, and how it ends. Call every method on every rank.

    Attributes:
        signals: entered by the caller of the trainer.
    """

    def __init__(self, accelerator: Accelerator, checkpointer: Checkpointer):
        self.accelerator, self.checkpointer = accelerator, checkpointer
        self.signals = StopSignals(ANNOUNCEMENT if accelerator.is_main_process else "")

    def asked(self) -> Tensor:
        """Return 1 if this rank asks the run to end, else 0; the mean over ranks reaches all of them."""
        asked = float(self.signals.received or self.checkpointer.writer.failure is not None)
        return torch.full((), asked, device=self.accelerator.device)

    def raise_if_asked(self) -> None:
        """Raise StopAskedError on every rank if any rank asks the run to end."""
        if collectives.mean_over_processes(self.accelerator, [self.asked()]).item() > 0:
            raise StopAskedError

    def interrupt(self, done: int) -> NoReturn:
        """Wait for the checkpoint, then end the run after `done` steps with the signal that any rank received.

        Raises:
            Interrupted: always, unless a checkpoint could not be written.
            SaveError: a checkpoint could not be written.
        """
        self.checkpointer.wait()
        number = max(collectives.gather(self.accelerator, [self.signals.received]))
        interrupted = Interrupted(number, self._what_next(done))
        logger.info("stopped: %s", interrupted)
        raise interrupted

    def _what_next(self, done: int) -> str:
        setup = self.checkpointer.setup
        if done > setup.resume.step:
            return f"saved at step {done}; continue with --resume_from_checkpoint {LATEST}"
        again = setup.config.run.resume_from_checkpoint or LATEST
        return f"at step {done}, as it began; continue with --resume_from_checkpoint {again}"
