"""The training loop: fake-score updates and student updates. Call every method on every rank."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import IO, Any

import torch
from torch import Tensor

from dpdmd.config import write_yaml
from dpdmd.config.options import ADAPTIVE
from dpdmd.config.precisions import UNQUANTIZED
from dpdmd.distributed import collectives, sharding
from dpdmd.evaluation import in_loop
from dpdmd.methods import registry, updates
from dpdmd.methods.context import DistillationContext, LossResult, MicroBatch
from dpdmd.models.hub_models import check_equal_pins
from dpdmd.report import writer
from dpdmd.run_folder import CONDITIONS, LATEST_IMAGE
from dpdmd.training import introduction, preflight, resume
from dpdmd.training.accelerator import make_accelerator
from dpdmd.training.adaptive_weight import weight_factor
from dpdmd.training.base_error import report_base_error
from dpdmd.training.batches import Batches
from dpdmd.training.build import build_training_state
from dpdmd.training.checkpointer import Checkpointer
from dpdmd.training.memory_items import MAX_IMAGES
from dpdmd.training.nonfinite import NonFiniteError, latent_statistics, write_diagnostic
from dpdmd.training.preflight import RunSetup
from dpdmd.training.run_log import RunLog, environment, peak_memory_gb
from dpdmd.training.step import PendingStep, StepMetrics, TrainedNetwork, apply_update, skips_on_device
from dpdmd.training.step_schedule import StepSchedule
from dpdmd.training.stopping import StopAskedError, Stopping
from dpdmd.utils.atomic_files import write_json
from dpdmd.utils.device_transfer import Stopwatch
from dpdmd.utils.image_grid import labelled_grid, save_image, to_pil
from dpdmd.utils.logging import logger, set_up_logging

STOP = "stop"  # the metric by which a signal, or a checkpoint that failed, on one rank reaches all ranks


class Trainer:
    """One run, from loading to the last checkpoint.

    Attributes:
        signals: entered by the caller around `train`, and left after the caller has printed how the run ended.
        base_error: relative error of a quantised base, measured on rank 0; None without one.
        lag: steps whose metrics may still be on their way to the host when the next step begins; 0 if the host must
            know them first.

    Raises:
        ValueError: launch and configuration contradict each other, or the checkpoint is damaged.
    """

    def __init__(self, setup: RunSetup):
        self.accelerator = make_accelerator(setup.config)
        check_equal_pins(collectives.gather(self.accelerator, [dict(setup.config.recorded)]))
        self.config, self.folder = setup.config, setup.folder
        self._lock_folder()
        self.setup = _confirm_resume_point(setup, self.accelerator)
        self.start, self.stop = self.setup.resume.step, setup.total_steps
        self.schedule = StepSchedule(self.config, self.stop, scored=bool(setup.evaluation.sets))
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        self.batches = Batches(self.config, setup.prompts, setup.global_batch_size, processes, rank, setup.weights)
        self._open_folder()
        state = build_training_state(self.setup, self.accelerator)
        if self.accelerator.is_main_process:
            write_yaml(self.config, self.folder.config)  # once more: loading may have found numbers, such as K
        self.trained, self.average, self.run = state.trained, state.average, state.run
        self.text_encoder, self.decoder, self.evaluation = state.text_encoder, state.decoder, state.evaluation
        self.checkpointer = Checkpointer(self.setup, self.accelerator, state)
        self.stopping = Stopping(self.accelerator, self.checkpointer)
        self.signals = self.stopping.signals
        if self.evaluation:
            self.evaluation.after_batch = self.stopping.raise_if_asked
        quantized = self.config.model.base_precision != UNQUANTIZED and self.accelerator.is_main_process
        first = self.micro_batches(0)[0] if quantized else None
        self.base_error = report_base_error(self.config, self.run, first) if first else None
        self.lag = int(all(skips_on_device(trained.optimizer) for trained in self.trained.values()))

    def _lock_folder(self) -> None:
        """Lock the run folder, before its checkpoints are read: until then another run may add some.

        Raises:
            ValueError: another process trains there.
        """
        self.accelerator.wait_for_everyone()  # no rank may still be checking that the folder is unused
        self.lock: IO[str] | None = None  # rank 0 holds it as long as the trainer lives

        def lock() -> None:
            self.folder.create()
            self.lock = self.folder.lock()

        collectives.call_on_main(self.accelerator, lock)

    def _open_folder(self) -> None:
        """Write what the run starts with, and start the log."""
        collectives.call_on_main(self.accelerator, self._write_start)
        set_up_logging(self.folder.log_file if self.accelerator.is_main_process else None)
        if self.accelerator.is_main_process:
            logger.info("%s", introduction.opening(self.setup, self.accelerator.num_processes, self.accelerator.device))
            logger.info("%s", self.setup.memory.table())
            for warning in (*self.setup.resume.passed_over, *self.setup.warnings):
                logger.warning("%s", warning)

    def _write_start(self) -> None:
        self.folder.clear_leftovers()
        write_yaml(self.config, self.folder.config)
        write_json(self.folder.environment, environment(self.accelerator))
        checkpoint = self.setup.resume.path
        if checkpoint and self.folder.owns(checkpoint):
            # Later records are dropped: if `latest` stayed ahead of them, a second resumption would leave a gap.
            self.folder.continue_from(checkpoint)
        else:
            self.folder.start_anew()

    def train(self) -> None:
        """Run every remaining step; save every `ckpt_every` steps and at the end.

        Raises:
            NonFiniteError: a loss or gradient norm is not finite; earlier checkpoints remain.
            Interrupted: a signal ended the run; everything is saved.
            SaveError: a checkpoint could not be written.
        """
        log = RunLog(self.folder, self.config, self.accelerator, self.start, self.stop)
        reported = writer.written_at_the_end(self.folder, active=self.accelerator.is_main_process)
        pending: deque[PendingStep] = deque()
        with reported, log, self.checkpointer.writer:
            self.checkpointer.tidy(log)
            self._adapt_weight(log)
            # A run may have been stopped between a checkpoint and its evaluation.
            if self.schedule.evaluates(self.start) and not self._was_evaluated(log, self.start):
                self._evaluate(self.start, log)
            if self.start >= self.stop:
                logger.info("nothing left to train: step %d of %d", self.start, self.stop)
                self.checkpointer.finish(self.start)
            for done in range(self.start + 1, self.stop + 1):
                pending.append(self.start_step(done - 1))
                saves, evaluates = self.schedule.saves(done), self.schedule.evaluates(done)
                asked_to_stop = self._finish_steps(pending, log, keep=0 if saves or evaluates else self.lag)
                if saves or asked_to_stop:
                    self.checkpointer.save(done)
                if asked_to_stop and (done < self.stop or evaluates):
                    self.stopping.interrupt(done)
                if evaluates:
                    self._evaluate(done, log)
            self.checkpointer.wait()
        if self.accelerator.is_main_process:
            logger.info("%s", introduction.closing(self.setup))

    def take_step(self, step: int) -> dict[str, Any]:
        """Run one update from beginning to end, and return its record."""
        return self.finish_step(self.start_step(step))[0]

    def start_step(self, step: int) -> PendingStep:
        """Run one update on the device; the host does not wait for it if the optimizer skips on the device."""
        watch = Stopwatch(self.accelerator.device)
        names = registry.networks_of_update(step, self.config.method)
        trained = {name: self.trained[name] for name in names}
        student = names[0] == registry.STUDENT
        loss = updates.student_loss if student else updates.fake_score_loss
        batches = self.micro_batches(step)
        means, latents = self._accumulate_gradients(loss, batches, trained)
        means[STOP] = self.stopping.asked()
        norms = {name: sharding.gradient_norm(each.parameters) for name, each in trained.items()}
        metrics = self._step_metrics(means, norms)
        rates = {name: self.schedule.learning_rate(each.learning_rate, step) for name, each in trained.items()}
        for name, each in trained.items():
            apply_update(each, metrics, norms[name], rates[name], self.config.optim.max_grad_norm)
            each.optimizer.zero_grad()
        if student and self.average:
            self.average.update(1 - metrics.nonfinite)
        watch.stop()
        return PendingStep(step, trained, metrics, latents, batches[-1].samples, rates[names[0]], watch)

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Return this rank's share of a step, in `grad_accum` micro-batches."""
        return self.batches.of_step(step, self.text_encoder)

    def _accumulate_gradients(
        self,
        compute: Callable[[DistillationContext, MicroBatch], LossResult],
        batches: Sequence[MicroBatch],
        trained: dict[str, TrainedNetwork],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run forward and backward passes of all micro-batches.

        Returns:
            Metrics, as means over the micro-batches, and the latents of the last micro-batch.
        """
        networks, means = [each.network for each in trained.values()], {}
        for index, batch in enumerate(batches):
            with sharding.synchronise_when(networks, index == len(batches) - 1):
                result = compute(self.run, batch)
                self.accelerator.backward(result.loss / len(batches))
            for name, value in result.metrics.items():
                means[name] = means.get(name, 0) + value / len(batches)
        return means, result.latents

    def _step_metrics(self, metrics: dict[str, Tensor], norms: dict[str, Tensor]) -> StepMetrics:
        """Average metrics over processes, and add the gradient norms, which are the same on every rank."""
        means = collectives.mean_over_processes(self.accelerator, list(metrics.values()))
        first = next(iter(norms))
        norm_names = ["grad_norm" if name == first else f"grad_norm_{name}" for name in norms]
        return StepMetrics(
            [*metrics, *norm_names], torch.cat([means, *(norm.float().reshape(1) for norm in norms.values())])
        )

    def finish_step(self, pending: PendingStep) -> tuple[dict[str, Any], bool]:
        """Read the metrics of a step; return its record, and whether a signal or a failure asks the run to end.

        Raises:
            NonFiniteError: a metric is not finite, unless `--nonfinite skip` is set.
        """
        metrics: dict[str, Any] = pending.metrics.read()
        asked_to_stop = metrics.pop(STOP) > 0
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            self._report_nonfinite(bad[0], metrics, pending)
            metrics |= {name: None for name in bad} | {"skipped": 1.0}
        else:
            for trained in pending.trained.values():
                trained.updates += 1
        if self.schedule.shows_images(pending.step):
            self._show_images(pending)
        seconds = pending.watch.seconds()
        record = {
            "step": pending.step + 1,
            "turn": pending.update,
            **({"size": str(self.batches.image_size(pending.step))} if self.config.data.sizes else {}),
            **metrics,
            "lr": pending.learning_rate,
            "seconds": seconds,
            "samples_per_second": self.setup.global_batch_size / seconds,
            "memory_gb": peak_memory_gb(self.accelerator.device),
        }
        return record, asked_to_stop

    def _finish_steps(self, pending: deque[PendingStep], log: RunLog, keep: int) -> bool:
        """Finish and record all pending steps but the last `keep`, or all if one of them asks the run to end.

        Returns:
            Whether one of them does.
        """
        asked_to_stop = False
        while len(pending) > (0 if asked_to_stop else keep):
            step = pending[0].step
            record, asked = self.finish_step(pending.popleft())
            log.step(record)
            if self.schedule.shows_images(step):
                log.process_image(record["step"])
            asked_to_stop |= asked
        return asked_to_stop

    def _report_nonfinite(self, name: str, metrics: dict[str, float], pending: PendingStep) -> None:
        """Write prompts and statistics of every rank's latents; then stop, or with `--nonfinite skip` continue.

        Raises:
            NonFiniteError: `--nonfinite stop` is set.
        """
        step = pending.step + 1
        mine = {
            "rank": self.accelerator.process_index,
            "prompts": self.batches.prompts(pending.step),
            "latents": {name: latent_statistics(value) for name, value in pending.latents.items()},
        }
        ranks = collectives.gather(self.accelerator, [mine])
        path = self.folder.diagnostics / f"nonfinite_step_{step:06d}.json"
        if self.accelerator.is_main_process:
            write_diagnostic(path, step, pending.update, metrics, ranks)
        message = (
            f"step {step}, {pending.update} update: {name} is {metrics[name]}; the optimizer did not step; see {path}"
        )
        if self.config.run.nonfinite == "stop":
            raise NonFiniteError(message)
        if self.accelerator.is_main_process:
            logger.warning("%s", message)

    def _show_images(self, pending: PendingStep) -> None:
        """Overwrite process_vis/latest.png: a row for each kind of latent of the update, decoded in one batch."""
        if not self.accelerator.is_main_process:
            return
        count = min(MAX_IMAGES, len(pending.samples))
        decoded = to_pil(self.decoder.decode(torch.cat([value[:count] for value in pending.latents.values()])))
        rows = [decoded[start : start + count] for start in range(0, len(decoded), count)]
        title = f"step {pending.step + 1}: {' | '.join(self.batches.prompts(pending.step, pending.samples[:count]))}"
        save_image(labelled_grid(rows, list(pending.latents), title), self.folder.process_vis / LATEST_IMAGE)

    def _was_evaluated(self, log: RunLog, step: int) -> bool:
        """Return whether rank 0's record has an evaluation of this step."""
        return collectives.broadcast_from_main(
            self.accelerator, any(record["step"] == step for record in log.evaluations)
        )

    def _evaluate(self, step: int, log: RunLog) -> None:
        """Evaluate; a signal stops this, since a scheduler does not wait. A resumed run evaluates this step anew."""
        with suppress(StopAskedError):
            self._record_evaluation(step, log)
            if step < self.stop:
                self.stopping.raise_if_asked()
            return
        # Not while the error holds the evaluation's images.
        if step > self.start and not self.schedule.saves(step):
            self.checkpointer.save(step)
        self.stopping.interrupt(step)

    def _record_evaluation(self, step: int, log: RunLog) -> None:
        """Score the student, and its moving average if there is one; record the scores and move the link `best`."""
        started = time.perf_counter()
        student, teacher = self.evaluation.evaluate(step), self.evaluation.teacher_scores
        if self.average:
            with self.average.in_place():
                student |= self.evaluation.evaluate_average(step)
        record = in_loop.record(step, student, teacher, started)
        if self.accelerator.is_main_process:  # which has the scorers' digests, and writes the record
            record[CONDITIONS] = self.evaluation.conditions
        log.evaluation(record, in_loop.text_table(step, student, teacher))
        self._adapt_weight(log)
        self.checkpointer.wait()
        self.checkpointer.point_best(log)
        if self.accelerator.is_main_process and step < self.stop:
            writer.refresh(self.folder)
        self.accelerator.wait_for_everyone()

    def _adapt_weight(self, log: RunLog) -> None:
        """Set the factor of lambda from all evaluations so far, if `--div_weight_schedule adaptive` is set."""
        if self.config.method.div_weight_schedule == ADAPTIVE:
            factor = collectives.broadcast_from_main(
                self.accelerator, weight_factor(log.evaluations, self.config.method)
            )
            self.run = replace(self.run, div_weight_factor=factor)


def _confirm_resume_point(setup: RunSetup, accelerator: Any) -> RunSetup:
    """Return `setup` with the newest checkpoint whose files are whole. Rank 0 reads the files, and the others wait.

    Raises:
        ValueError: no checkpoint is whole, the one that is whole does not fit the run, or not every process sees it.
    """
    wanted = setup.config.run.resume_from_checkpoint
    found = collectives.gather(accelerator, [setup.resume.path is not None])
    if not any(found):
        return setup
    if not all(found):
        raise ValueError(
            f"--resume_from_checkpoint {wanted}: not every process finds a checkpoint; put --run_dir "
            f"{setup.folder.root} on a disk that all machines share"
        )
    find = partial(resume.find, setup.folder, wanted, setup.config)
    return preflight.resume_from(setup, collectives.call_on_main(accelerator, find))
