"""The loop: fake turns and student turns, each one update of one network. Call every method on every rank."""

import json
import math
import time
from collections import deque
from typing import IO, Any

import torch
from torch import Tensor

from dpdmd.config import write_yaml
from dpdmd.distributed import collectives, sharding
from dpdmd.evaluation import in_loop
from dpdmd.methods import registry, update_schedule, updates
from dpdmd.methods.context import MicroBatch
from dpdmd.report import writer
from dpdmd.training import accelerator
from dpdmd.training.batches import Batches
from dpdmd.training.build import build_training_state
from dpdmd.training.checkpointer import Checkpointer
from dpdmd.training.lr_schedules import learning_rate
from dpdmd.training.memory_items import MAX_IMAGES
from dpdmd.training.nonfinite import NonFiniteError, latent_statistics, write_diagnostic
from dpdmd.training.preflight import RunSetup, total_steps
from dpdmd.training.run_log import RunLog, environment, peak_memory_gb
from dpdmd.training.step import PendingStep, StepMetrics, TrainedNetwork, apply_update, skips_on_device
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.device_transfer import Stopwatch
from dpdmd.utils.image_grid import labelled_grid, save_image, to_pil
from dpdmd.utils.logging import logger, set_up_logging
from dpdmd.utils.signals import Interrupted, StopSignals

STOP = "stop"  # the figure that tells every rank of a signal to any of them, or of a checkpoint that failed


class Trainer:
    """One run, from loading to the last checkpoint.

    Attributes:
        signals: entered by the caller around `train`, and until it has told how that ended.

    Raises:
        ValueError: topology and configuration do not fit each other.
    """

    def __init__(self, setup: RunSetup):
        self.setup, self.config, self.folder = setup, setup.config, setup.folder
        self.accelerator = accelerator.make_accelerator(self.config, self.folder.log)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        self.global_batch_size = self.config.optim.batch_size * self.config.optim.grad_accum * processes
        if setup.progress and setup.progress.global_batch_size != self.global_batch_size:
            raise ValueError(
                f"--batch_size x --grad_accum x processes is {self.global_batch_size}, but the checkpoint's is "
                f"{setup.progress.global_batch_size}: give values with the same product"
            )
        self.signals = StopSignals()
        self.batches = Batches(self.config, setup.prompts, self.global_batch_size, processes, rank)
        self.start = setup.progress.step if setup.progress else 0
        self.stop = total_steps(self.config, len(setup.prompts), self.global_batch_size)
        self._open_folder()
        if self.accelerator.is_main_process and setup.checkpoint:
            # What is recorded after it is dropped: had `latest` stayed ahead, a second resumption would leave a gap.
            self.folder.continue_from(setup.checkpoint)
        loaded = build_training_state(setup, self.accelerator)
        self.trained, self.average, self.run = loaded.trained, loaded.average, loaded.run
        self.text_encoder, self.decoder, self.evaluation = loaded.text_encoder, loaded.decoder, loaded.evaluation
        self.checkpointer = Checkpointer(setup, self.accelerator, loaded, self.global_batch_size, self.stop)
        # Steps whose figures may be on their way while the next one begins; none where the host must know them first.
        self.lag = int(all(skips_on_device(trained.optimizer) for trained in self.trained.values()))

    def _open_folder(self) -> None:
        self.accelerator.wait_for_everyone()  # no rank may still be checking that the folder is unused
        self.lock = self._lock_folder()
        if self.accelerator.is_main_process:
            write_yaml(self.config, self.folder.config)
            write_text(self.folder.environment, json.dumps(environment(self.accelerator), indent=2) + "\n")
        self.accelerator.wait_for_everyone()
        set_up_logging(self.folder.log_file if self.accelerator.is_main_process else None)
        if self.accelerator.is_main_process:
            logger.info("%s", self.setup.memory.table())
            for warning in self.setup.warnings:
                logger.warning("%s", warning)

    def _lock_folder(self) -> IO[str] | None:
        """Rank 0 holds the folder from here on.

        Raises:
            ValueError: another run does; on every rank.
        """
        lock, refused = None, ""
        if self.accelerator.is_main_process:
            self.folder.create()
            try:
                lock = self.folder.lock()
                self.folder.clear_leftovers()
            except ValueError as error:
                refused = str(error)
        if refused := collectives.broadcast_from_main(self.accelerator, refused):
            raise ValueError(refused)
        return lock

    def train(self) -> None:
        """Run every remaining step, saving every `ckpt_every` and at the end.

        Raises:
            NonFiniteError: a loss or gradient norm is not finite; what was saved before stays.
            Interrupted: a signal ended the run; all is saved.
            SaveError: a checkpoint could not be written.
        """
        log = RunLog(self.folder, self.config, self.accelerator, self.start, self.stop)
        pending: deque[PendingStep] = deque()
        reported = writer.written_at_the_end(self.folder, active=self.accelerator.is_main_process)
        with reported, log, self.checkpointer.writer:
            self.checkpointer.tidy(log)
            # Also where a run was stopped between a checkpoint and its evaluation.
            if self._evaluates(self.start) and not self._was_evaluated(log, self.start):
                self._evaluate(self.start, log)
            if self.start >= self.stop:
                logger.info("nothing left to train: step %d of %d", self.start, self.stop)
            for done in range(self.start + 1, self.stop + 1):
                pending.append(self.start_step(done - 1))
                saves, evaluates = self._saves(done), self._evaluates(done)
                asked_to_stop = self._finish_steps(pending, log, 0 if saves or evaluates else self.lag)
                if saves or asked_to_stop:
                    self.checkpointer.save(done)
                if asked_to_stop and done < self.stop:
                    self.checkpointer.wait()
                    interrupted = Interrupted(self._signal_of_all(), done)
                    logger.info("stopped: %s", interrupted)
                    raise interrupted
                if evaluates:
                    self._evaluate(done, log)
            self.checkpointer.wait()

    def _signal_of_all(self) -> int:
        """The signal that any rank got, the same on every rank."""
        return max(collectives.gather(self.accelerator, [self.signals.received]))

    def take_step(self, step: int) -> dict[str, Any]:
        """One update from beginning to end; returns its record."""
        return self.finish_step(self.start_step(step))[0]

    def start_step(self, step: int) -> PendingStep:
        """Hand one update to the device, without waiting for it where the optimizer skips by itself."""
        watch = Stopwatch(self.accelerator.device)
        names = registry.networks_of_update(step, self.config.method)
        trained = {name: self.trained[name] for name in names}
        student = names[0] == registry.STUDENT
        compute = updates.student_loss if student else updates.fake_score_loss
        wrapped = [each.network for each in trained.values()]
        totals: dict[str, Tensor] = {}
        batches = self.micro_batches(step)
        for index, batch in enumerate(batches):
            with sharding.synchronise_when(self.accelerator, wrapped, index == len(batches) - 1):
                result = compute(self.run, batch)
                self.accelerator.backward(result.loss / len(batches))
            for name, value in result.metrics.items():
                totals[name] = totals.get(name, 0) + value / len(batches)
        asked = float(self.signals.received or self.checkpointer.writer.failure is not None)
        totals[STOP] = torch.full((), asked, device=self.accelerator.device)
        means = collectives.mean_over_processes(self.accelerator, list(totals.values()))
        norms = {name: sharding.gradient_norm(each.parameters) for name, each in trained.items()}
        norm_names = ["grad_norm" if name == names[0] else f"grad_norm_{name}" for name in names]
        found = [norm.float().reshape(1) for norm in norms.values()]
        figures = StepMetrics([*totals, *norm_names], torch.cat([means, *found]))
        rates = {name: self._learning_rate(each, step, student) for name, each in trained.items()}
        for name, each in trained.items():
            apply_update(each, figures, norms[name], rates[name], self.config.optim.max_grad_norm)
            each.optimizer.zero_grad()
        if student and self.average:
            self.average.update(1 - figures.nonfinite)
        watch.stop()
        return PendingStep(step, trained, figures, result.images, batches[-1].samples, rates[names[0]], watch)

    def finish_step(self, taken: PendingStep) -> tuple[dict[str, Any], bool]:
        """Read what became of a step; returns its record, and whether a signal or a failure asks the run to end.

        Raises:
            NonFiniteError: a figure is not finite, unless skipping.
        """
        metrics: dict[str, Any] = taken.metrics.read()
        asked_to_stop = metrics.pop(STOP) > 0
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            self._report_nonfinite(bad, metrics, taken)
            metrics |= {name: None for name in bad} | {"skipped": 1.0}
        else:
            for trained in taken.trained.values():
                trained.updates += 1
        if self._turn(taken) == registry.STUDENT and self._shows_images(taken.step):
            self._show_images(taken)
        seconds = taken.watch.seconds()
        record = {
            "step": taken.step + 1,
            "turn": self._turn(taken),
            **metrics,
            "lr": taken.learning_rate,
            "seconds": seconds,
            "samples_per_second": self.global_batch_size / seconds,
            "memory_gb": peak_memory_gb(self.accelerator.device),
        }
        return record, asked_to_stop

    def _finish_steps(self, pending: deque[PendingStep], log: RunLog, keep: int) -> bool:
        """Finish and record all but the last `keep` steps; all of them where one asks the run to end.

        Returns:
            Whether one did.
        """
        asked_to_stop = False
        while len(pending) > (0 if asked_to_stop else keep):
            record, asked = self.finish_step(pending.popleft())
            log.step(record)
            asked_to_stop |= asked
        return asked_to_stop

    def _turn(self, taken: PendingStep) -> str:
        return next(iter(taken.trained))

    def _learning_rate(self, trained: TrainedNetwork, step: int, student: bool) -> float:
        """Of the update that `step` is, counted in turns of its network: one that is skipped counts."""
        before, all_steps = (
            update_schedule.num_student_updates(count, self.config.method) for count in (step, self.stop)
        )
        update, total = (before, all_steps) if student else (step - before, self.stop - all_steps)
        return learning_rate(trained.learning_rate, self.config.optim, update, total)

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's share of a step, in `grad_accum` pieces."""
        return self.batches.of_step(step, self.text_encoder)

    def _report_nonfinite(self, bad: list[str], metrics: dict[str, float], taken: PendingStep) -> None:
        """Save what led here, of every rank; then stop, or with `--nonfinite skip` go on without the update.

        Raises:
            NonFiniteError: unless skipping.
        """
        step, turn = taken.step + 1, self._turn(taken)
        mine = {
            "rank": self.accelerator.process_index,
            "prompts": self.batches.prompts(taken.step),
            "latents": {name: latent_statistics(value) for name, value in taken.latents.items()},
        }
        ranks = collectives.gather(self.accelerator, [mine])
        path = self.folder.diagnostics / f"nonfinite_step_{step:06d}.json"
        if self.accelerator.is_main_process:
            write_diagnostic(path, step, turn, metrics, ranks)
        what = f"step {step}, {turn} turn: {bad[0]} is {metrics[bad[0]]}; the optimizer did not step; see {path}"
        if self.config.run.nonfinite == "stop":
            raise NonFiniteError(what)
        if self.accelerator.is_main_process:
            logger.warning("%s", what)

    def _shows_images(self, step: int) -> bool:
        """Whether a multiple of `vis_every` has come since the student's last turn."""
        every = self.config.run.vis_every
        return every > 0 and (step + 1) // every > update_schedule.last_student_step(step, self.config.method) // every

    def _show_images(self, taken: PendingStep) -> None:
        """Overwrite process_vis/latest.png: the turn's images (student, x0_real, x0_fake, of dmd_lpips the teacher's
        sample) below each other, decoded in one batch."""
        if not self.accelerator.is_main_process:
            return
        count = min(MAX_IMAGES, len(taken.samples))
        decoded = to_pil(self.decoder.decode(torch.cat([value[:count] for value in taken.latents.values()])))
        rows = [decoded[start : start + count] for start in range(0, len(decoded), count)]
        title = f"step {taken.step + 1}: {' | '.join(self.batches.prompts(taken.step, taken.samples[:count]))}"
        save_image(labelled_grid(rows, list(taken.latents), title), self.folder.process_vis / "latest.png")

    def _saves(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates."""
        return step % self.config.run.ckpt_every == 0 or step == self.stop

    def _evaluates(self, step: int) -> bool:
        """Whether the student is evaluated after `step` updates: before the first, every so often, and at the end."""
        every = self.config.eval.eval_every or self.config.run.ckpt_every
        return self.evaluation is not None and (step % every == 0 or step >= self.stop)

    def _was_evaluated(self, log: RunLog, step: int) -> bool:
        """Whether rank 0's record has this step's evaluation."""
        return collectives.broadcast_from_main(
            self.accelerator, any(record["step"] == step for record in log.evaluations)
        )

    def _evaluate(self, step: int, log: RunLog) -> None:
        """Score the student as it is, record it, and move `best` where it belongs."""
        started = time.perf_counter()
        student, teacher = self.evaluation.evaluate(step), self.evaluation.teacher_scores
        if self.average:
            with self.average.in_place():
                student |= self.evaluation.evaluate_average(step)
        log.evaluation(in_loop.record(step, student, teacher, started), in_loop.text_table(step, student, teacher))
        self.checkpointer.wait()
        self.checkpointer.point_best(log)
        if self.accelerator.is_main_process and step < self.stop:
            writer.refresh(self.folder)
        self.accelerator.wait_for_everyone()
