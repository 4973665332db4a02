"""What a run leaves to go on from: snapshots of its state, checkpoints written beside the steps, the link `best`."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from dpdmd.data.prompts import fingerprint
from dpdmd.distributed import collectives, sharding
from dpdmd.evaluation import in_loop
from dpdmd.methods import registry
from dpdmd.models.noise_schedule import DEFAULT, GRIDS
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.run_folder import BEST
from dpdmd.training import checkpoint, optimizer_state
from dpdmd.training.build import TrainingState
from dpdmd.training.checkpoint import SaveError
from dpdmd.training.preflight import RunSetup
from dpdmd.training.run_log import RunLog
from dpdmd.utils.logging import logger


class Checkpointer:
    """Takes a run's state and keeps its checkpoints. Call every method on every rank.

    Args:
        loaded: whose state it is.
        global_batch_size: samples a step, of all ranks.
        stop: the run's last step, whose export is whole.
    """

    def __init__(self, setup: RunSetup, accelerator: Any, loaded: TrainingState, global_batch_size: int, stop: int):
        self.setup, self.config, self.folder = setup, setup.config, setup.folder
        self.accelerator, self.global_batch_size, self.stop = accelerator, global_batch_size, stop
        self.trained, self.average, self.run = loaded.trained, loaded.average, loaded.run
        self.writer = CheckpointWriter()

    def snapshot(self, step: int) -> checkpoint.Snapshot:
        """A copy of all state after `step` updates, whole, on the CPU of rank 0."""
        return checkpoint.Snapshot(
            checkpoint.Progress(
                step,
                {name: each.updates for name, each in self.trained.items()},
                self.global_batch_size,
                fingerprint(self.setup.prompts),
            ),
            {name: sharding.whole_network_state(each.network) for name, each in self.trained.items()},
            {
                name: optimizer_state.whole_optimizer_state(each.network, each.optimizer)
                for name, each in self.trained.items()
            },
            self._average_state(),
        )

    def _average_state(self) -> dict[str, Tensor] | None:
        if self.average is None:
            return None
        with self.average.in_place():
            return sharding.whole_network_state(self.trained[registry.STUDENT].network)

    def sampling_defaults(self) -> SamplingDefaults:
        """How the exported student wants to be sampled."""
        grid = self.config.method.student_sigmas
        return SamplingDefaults(
            steps=self.config.method.stu_inference_steps,
            guidance_scale=1.0,
            max_sequence_length=self.config.data.max_sequence_length,
            sigmas=tuple(self.run.student_sigmas.tolist()),
            grid=grid if grid in GRIDS else DEFAULT,
            no_t5=self.config.model.no_t5,
        )

    def save(self, step: int) -> None:
        """Take a snapshot, which rank 0 writes while training goes on; the one before is written first.

        Raises:
            SaveError: the one before could not be written.
        """
        self.wait()
        snapshot, last = self.snapshot(step), step == self.stop
        if self.accelerator.is_main_process:
            family, defaults = self.run.family, self.sampling_defaults()
            self.writer.start(partial(checkpoint.save, self.folder, snapshot, self.config, family, defaults, last=last))

    def wait(self) -> None:
        """Until every checkpoint that was begun is whole.

        Raises:
            SaveError: one could not be written.
        """
        if failure := collectives.broadcast_from_main(self.accelerator, self.writer.wait()):
            raise checkpoint.SaveError(failure)

    def point_best(self, log: RunLog) -> None:
        """Move `best` to the best of the checkpoints that are there, by what is recorded."""
        if not self.accelerator.is_main_process:
            return
        saved = {checkpoint.step_of(path): path for path in self.folder.checkpoints()}
        best = in_loop.best_step(log.evaluations, set(saved), self.setup.evaluation.sets, self.config.eval.best_by)
        if best is not None:
            self.folder.point(BEST, saved[best])

    def tidy(self, log: RunLog) -> None:
        """Bring up to date what a process that was killed had no time for: `best`, and what is too old to keep."""
        if self.accelerator.is_main_process and self.setup.checkpoint:
            if self.setup.evaluation.sets:
                self.point_best(log)
            checkpoint.thin(self.folder, self.config)


class CheckpointWriter:
    """Writes what it is given in the background; while entered, nothing but a second interrupt leaves it unwritten.

    Attributes:
        failure: why a checkpoint could not be written, or None; nothing more is to be started then.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def start(self, write: Callable[[], Path]) -> None:
        """Run `write`, which returns the path of a whole checkpoint; call it after `wait`."""
        # A daemon, so that a person who interrupts twice does not wait; what is half-written then is passed over.
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint writer", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], Path]) -> None:
        try:
            logger.info("saved %s", write())
        except Exception as error:  # raised where the main thread can tell of it
            self.failure = error

    def wait(self) -> str | None:
        """Wait until nothing is being written; returns why a checkpoint could not be, or None.

        Raises:
            Exception: what writing raised, where it was no SaveError.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if self.failure and not isinstance(self.failure, SaveError):
            raise self.failure
        return str(self.failure) if self.failure else None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread and kind is not KeyboardInterrupt:
            self._thread.join()
        if self.failure and error is not None and not isinstance(error, SaveError):
            logger.warning("%s", self.failure)  # something else ended the run
