"""Take snapshots of a run's state, write them in the background as checkpoints, and keep the link `best`."""

import os
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
from dpdmd.models.registry import adapters
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.run_folder import BEST, step_of
from dpdmd.training import checkpoint, optimizer_state
from dpdmd.training.build import TrainingState
from dpdmd.training.checkpoint import SaveError
from dpdmd.training.preflight import RunSetup
from dpdmd.training.run_log import RunLog
from dpdmd.utils.background import in_background
from dpdmd.utils.hub import parse_id
from dpdmd.utils.logging import logger


class Checkpointer:
    """Saves a run's state and keeps its checkpoints. Call every method on every rank."""

    def __init__(self, setup: RunSetup, accelerator: Any, state: TrainingState):
        self.setup, self.config, self.folder, self.accelerator = setup, setup.config, setup.folder, accelerator
        self.trained, self.average, self.run = state.trained, state.average, state.run
        self.writer = CheckpointWriter()
        # Steps of checkpoints on a way that the run has left, when it went back to an earlier one.
        point = setup.resume
        self._left_behind = set(point.progress.left_behind if point.progress else ())
        self._left_behind |= {step for step in map(step_of, self.folder.checkpoints()) if step > point.step}
        # In the background: the first run of a teacher reads its files once more, from the page cache if they fit.
        if accelerator.is_main_process:
            self._models = in_background(partial(checkpoint.identify_models, self.config))

    def _total_steps(self, step: int) -> int | None:
        """Return the length of the run whose learning-rate curve led to `step`."""
        point = self.setup.resume
        return point.progress.total_steps if point.progress and step == point.step else self.setup.total_steps

    def snapshot(self, step: int) -> checkpoint.Snapshot:
        """Copy all state after `step` updates: unsharded, on the CPU of rank 0.

        Raises:
            SaveError: a file of the teacher cannot be read any more.
        """
        try:
            models = collectives.call_on_main(self.accelerator, lambda: self._models.result())
        except ValueError as error:
            raise SaveError(str(error)) from None
        return checkpoint.Snapshot(
            checkpoint.Progress(
                step,
                {name: each.updates for name, each in self.trained.items()},
                self.setup.global_batch_size,
                fingerprint(self.setup.prompts, self.setup.weights),
                models,
                self._total_steps(step),
                sorted(self._left_behind),
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
        """Return how the exported student is sampled."""
        grid, sizes = self.config.method.student_sigmas, list(self.config.data.image_sizes)
        return SamplingDefaults(
            steps=self.config.method.stu_inference_steps,
            guidance_scale=self.run.family.layout.guidance.off,
            max_sequence_length=self.config.data.max_sequence_length,
            sigmas=tuple(self.run.student_sigmas.tolist()),
            grid=grid if grid in GRIDS else DEFAULT,
            no_t5=self.config.model.no_t5,
            bf16=self.config.optim.bf16,
            height=sizes[0].height,
            width=sizes[0].width,
            sizes=tuple(map(str, sizes)) if len(sizes) > 1 else None,
            **self._base(),
        )

    def _base(self) -> dict[str, str | None]:
        """Return what a LoRA's sampling defaults say about a teacher that is not simply a folder; else nothing."""
        teacher = self.config.recorded.get("teacher_id")
        if teacher is None or adapters(self.config.model) is None:
            return {}
        base = {"base": os.path.abspath(teacher), "base_variant": self.config.hub.variant}
        if model := parse_id(teacher):
            base |= {"base": model.repository, "base_revision": model.revision}
        return base

    def save(self, step: int) -> None:
        """Wait for the checkpoint before, then take a snapshot, which rank 0 writes while training continues.

        Raises:
            SaveError: the checkpoint before could not be written.
        """
        self.wait()
        self._left_behind.discard(step)
        snapshot, last = self.snapshot(step), step >= self.setup.total_steps
        if self.accelerator.is_main_process:
            known = {"last": last, "num_prompts": len(self.setup.prompts)}
            arguments = (self.folder, snapshot, self.config, self.run.family, self.sampling_defaults())
            self.writer.start(partial(checkpoint.save, *arguments, **known))

    def wait(self) -> None:
        """Wait until every checkpoint that was begun is whole.

        Raises:
            SaveError: a checkpoint could not be written.
        """
        if failure := collectives.broadcast_from_main(self.accelerator, self.writer.wait()):
            raise SaveError(failure)

    def point_best(self, log: RunLog) -> None:
        """Move the link `best` to the checkpoint with the best recorded scores."""
        if not self.accelerator.is_main_process:
            return
        saved = {step_of(path): path for path in self.folder.checkpoints()}
        saved = {step: path for step, path in saved.items() if step not in self._left_behind}
        best = in_loop.best_step(log.evaluations, set(saved), self.setup.evaluation.sets, self.config.eval.best_by)
        if best is not None:
            self.folder.point(BEST, saved[best])
        elif (known := self.folder.best()) and step_of(known) in self._left_behind:
            self.folder.unpoint(BEST)

    def finish(self, step: int) -> None:
        """Save a run that ends where it began once more, if its last checkpoint has links in place of copies."""
        if collectives.call_on_main(
            self.accelerator, lambda: checkpoint.has_links(self.folder.checkpoint(step), self.config)
        ):
            self.save(step)

    def tidy(self, log: RunLog) -> None:
        """Do what a killed process had no time for: move `best`, and delete checkpoints beyond the limit."""
        if self.accelerator.is_main_process and self.setup.resume.path:
            if self.setup.evaluation.sets:
                self.point_best(log)
            checkpoint.delete_oldest(self.folder, self.config)


class CheckpointWriter:
    """Writes checkpoints in a background thread. On leaving the context it finishes, except after a second interrupt.

    Attributes:
        failure: why a checkpoint could not be written, or None; start no other after a failure.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def start(self, write: Callable[[], Path]) -> None:
        """Start `write`, which returns the path of a whole checkpoint. Call `wait` before."""
        # A daemon: a second interrupt does not wait for it. A resumed run passes over the half-written checkpoint.
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint writer", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], Path]) -> None:
        try:
            logger.info("saved %s", write())
        except Exception as error:  # the main thread raises it in `wait`
            self.failure = error

    def wait(self) -> str | None:
        """Wait until nothing is being written, and return why a checkpoint could not be written, or None.

        Raises:
            Exception: writing raised something other than SaveError.
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
            logger.warning("%s", self.failure)  # another error ended the run, and is reported instead
