"""The loop: fake turns and student turns, each one update of one network. Call every method on every rank."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from dpdmd import checkpoint, distributed, methods
from dpdmd.assembly import Trained, assemble
from dpdmd.config import write_yaml
from dpdmd.diagnostics import NonFiniteError, latent_statistics, write_diagnostic
from dpdmd.evaluation import in_loop
from dpdmd.families.base import TextEmbedding
from dpdmd.families.layouts import Note
from dpdmd.grids import labelled_grid, save_picture, to_pil
from dpdmd.interruption import Interrupted, StopSignals
from dpdmd.preflight import Plan, total_steps
from dpdmd.prompts import global_samples, prompts_of_step
from dpdmd.run_folder import BEST
from dpdmd.run_log import RunLog, logger, peak_memory_gb, set_up_logging

MAX_PICTURES = 8  # in process_vis
STOP = "stop"  # the entry of a step's reduction that tells every rank of a signal to any of them


class Trainer:
    """One run, from loading to the last checkpoint.

    Raises:
        ValueError: topology and configuration do not fit each other.
    """

    def __init__(self, plan: Plan):
        self.plan, self.config, self.folder = plan, plan.config, plan.folder
        self.accelerator = distributed.make_accelerator(self.config, self.folder.log)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        self.global_batch_size = self.config.optim.batch_size * self.config.optim.grad_accum * processes
        if plan.progress and plan.progress.global_batch_size != self.global_batch_size:
            raise ValueError(
                f"--batch_size x --grad_accum x processes is {self.global_batch_size}, but the checkpoint's is "
                f"{plan.progress.global_batch_size}: give values with the same product"
            )
        self.signals = StopSignals()
        self.samples = global_samples(self.global_batch_size, processes, rank)
        self.start = plan.progress.step if plan.progress else 0
        self.stop = total_steps(self.config, len(plan.prompts), self.global_batch_size)
        self._open_folder()
        loaded = assemble(plan, self.accelerator)
        self.student, self.fake, self.run = loaded.student, loaded.fake, loaded.run
        self.text_encoder, self.decoder, self.evaluation = loaded.text_encoder, loaded.decoder, loaded.evaluation

    def _open_folder(self) -> None:
        self.accelerator.wait_for_everyone()  # no rank may still be checking that the folder is unused
        if self.accelerator.is_main_process:
            self.folder.create()
            write_yaml(self.config, self.folder.config)
        self.accelerator.wait_for_everyone()
        set_up_logging(self.folder.log_file if self.accelerator.is_main_process else None)
        if self.accelerator.is_main_process:
            logger.info("%s", self.plan.memory.table())
            for warning in self.plan.warnings:
                logger.warning("%s", warning)

    def train(self) -> None:
        """Run every remaining step, saving every `ckpt_every` and at the end.

        Raises:
            NonFiniteError: a loss or gradient norm is not finite; what was saved before stays.
            Interrupted: a signal ended the run; all is saved.
            SaveError: a checkpoint could not be written.
        """
        log = RunLog(self.folder, self.config, self.accelerator, self.start, self.stop)
        with self.signals, log:
            # Also where a run was stopped between a checkpoint and its evaluation.
            if self._evaluates(self.start) and not self._was_evaluated(log, self.start):
                self._evaluate(self.start, log)
            if self.start >= self.stop:
                logger.info("nothing left to train: step %d of %d", self.start, self.stop)
            for step in range(self.start, self.stop):
                record, asked_to_stop = self.take_step(step)
                log.step(record)
                if (step + 1) % self.config.run.ckpt_every == 0 or step + 1 == self.stop or asked_to_stop:
                    self._save(step + 1)
                if asked_to_stop and step + 1 < self.stop:
                    interrupted = Interrupted(self._signal_of_all(), step + 1)
                    logger.info("stopped: %s", interrupted)
                    raise interrupted
                if self._evaluates(step + 1):
                    self._evaluate(step + 1, log)

    def _signal_of_all(self) -> int:
        """The signal that any rank got, the same on every rank."""
        return max(distributed.gather(self.accelerator, [self.signals.received]))

    def take_step(self, step: int) -> tuple[dict[str, Any], bool]:
        """One update; returns its record, and whether a signal asks the run to end."""
        started = time.perf_counter()
        if student := methods.is_student_turn(step, self.config.method.per_train_fake_num):
            turn, trained, compute = "student", self.student, methods.student_turn
        else:
            turn, trained, compute = "fake", self.fake, methods.fake_turn
        totals: dict[str, Tensor] = {}
        batches = self.micro_batches(step)
        for index, batch in enumerate(batches):
            with distributed.synchronise_when(self.accelerator, trained.network, index == len(batches) - 1):
                result = compute(self.run, batch)
                self.accelerator.backward(result.loss / len(batches))
            for name, value in result.metrics.items():
                totals[name] = totals.get(name, 0) + value / len(batches)
        totals[STOP] = torch.tensor(float(self.signals.received), device=self.accelerator.device)
        metrics = distributed.mean_over_processes(self.accelerator, totals)
        asked_to_stop = metrics.pop(STOP) > 0
        norm = distributed.gradient_norm(trained.parameters)
        metrics["grad_norm"] = norm.item()
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            self._report_nonfinite(bad, metrics, result.pictures, step, turn)
            metrics |= {name: None for name in bad} | {"skipped": 1.0}
        else:
            self._update(trained, norm)
        trained.optimizer.zero_grad()
        if student and self._shows_pictures(step):
            self._show_pictures(result.pictures, batches[-1], step)
        seconds = time.perf_counter() - started
        record = {
            "step": step + 1,
            "turn": turn,
            **metrics,
            "seconds": seconds,
            "samples_per_second": self.global_batch_size / seconds,
            "memory_gb": peak_memory_gb(self.accelerator.device),
        }
        return record, asked_to_stop

    def micro_batches(self, step: int) -> list[methods.MicroBatch]:
        """This rank's share of the step's prompts, encoded in one go and cut into `grad_accum` pieces."""
        source = methods.rollout_step(step, self.config.method)
        prompts = prompts_of_step(self.plan.prompts, self.config.run.seed, source, self.global_batch_size, self.samples)
        text, size = self.text_encoder.encode(prompts), self.config.optim.batch_size
        return [
            methods.MicroBatch(
                TextEmbedding(text.context[start : start + size], text.pooled[start : start + size]),
                step,
                self.samples[start : start + size],
                source,
            )
            for start in range(0, len(prompts), size)
        ]

    def _update(self, trained: Trained, norm: Tensor) -> None:
        """Clip by the global norm, step."""
        distributed.clip_gradients(trained.parameters, self.config.optim.max_grad_norm, norm)
        trained.optimizer.step()
        trained.updates += 1

    def _report_nonfinite(
        self, bad: list[str], metrics: dict[str, float], latents: dict[str, Tensor], step: int, turn: str
    ) -> None:
        """Save what led here, of every rank; then stop, or with `--nonfinite skip` go on without the update.

        Raises:
            NonFiniteError: unless skipping.
        """
        source = methods.rollout_step(step, self.config.method)
        mine = {
            "rank": self.accelerator.process_index,
            "prompts": prompts_of_step(
                self.plan.prompts, self.config.run.seed, source, self.global_batch_size, self.samples
            ),
            "latents": {name: latent_statistics(value) for name, value in latents.items()},
        }
        ranks = distributed.gather(self.accelerator, [mine])
        path = self.folder.diagnostics / f"nonfinite_step_{step + 1:06d}.json"
        if self.accelerator.is_main_process:
            write_diagnostic(path, step + 1, turn, metrics, ranks)
        what = f"step {step + 1}, {turn} turn: {bad[0]} is {metrics[bad[0]]}; the optimizer did not step; see {path}"
        if self.config.run.nonfinite == "stop":
            raise NonFiniteError(what)
        if self.accelerator.is_main_process:
            logger.warning("%s", what)

    def _shows_pictures(self, step: int) -> bool:
        """Whether a multiple of `vis_every` lies in the cycle that this student turn closes."""
        every, cycle = self.config.run.vis_every, self.config.method.per_train_fake_num + 1
        return every > 0 and (step + 1) // every > (step + 1 - cycle) // every

    def _show_pictures(self, latents: dict[str, Tensor], batch: methods.MicroBatch, step: int) -> None:
        """Overwrite process_vis/latest.png: student, x0_real and x0_fake below each other, decoded in one batch."""
        if not self.accelerator.is_main_process:
            return
        count = min(MAX_PICTURES, len(batch.samples))
        decoded = to_pil(self.decoder.decode(torch.cat([value[:count] for value in latents.values()])))
        prompts = prompts_of_step(
            self.plan.prompts, self.config.run.seed, step, self.global_batch_size, batch.samples[:count]
        )
        rows = [decoded[start : start + count] for start in range(0, len(decoded), count)]
        title = f"step {step + 1}: {' | '.join(prompts)}"
        save_picture(labelled_grid(rows, list(latents), title), self.folder.process_vis / "latest.png")

    def _evaluates(self, step: int) -> bool:
        """Whether the student is evaluated after `step` updates: before the first, every so often, and at the end."""
        every = self.config.eval.eval_every or self.config.run.ckpt_every
        return self.evaluation is not None and (step % every == 0 or step >= self.stop)

    def _was_evaluated(self, log: RunLog, step: int) -> bool:
        """Whether rank 0's record has this step's evaluation."""
        return distributed.from_main(self.accelerator, any(record["step"] == step for record in log.evaluations))

    def _evaluate(self, step: int, log: RunLog) -> None:
        """Score the student as it is, record it, and move `best` where it belongs."""
        started = time.perf_counter()
        student, teacher = self.evaluation.evaluate(step), self.evaluation.teacher_scores
        log.evaluation(in_loop.record(step, student, teacher, started), in_loop.text_table(step, student, teacher))
        if self.accelerator.is_main_process:
            saved = {int(path.name.rpartition("_")[2]): path for path in self.folder.checkpoints()}
            best = in_loop.best_step(log.evaluations, set(saved), self.plan.evaluation.sets, self.config.eval.best_by)
            if best is not None:
                self.folder.point(BEST, saved[best])
        self.accelerator.wait_for_everyone()

    def snapshot(self, step: int) -> checkpoint.Snapshot:
        """All state after `step` updates, whole, on the CPU of rank 0. Collective."""
        return checkpoint.Snapshot(
            checkpoint.Progress(step, self.student.updates, self.fake.updates, self.global_batch_size),
            student=distributed.whole_network_state(self.student.network),
            fake=distributed.whole_network_state(self.fake.network),
            optimizer_student=distributed.whole_optimizer_state(self.student.network, self.student.optimizer),
            optimizer_fake=distributed.whole_optimizer_state(self.fake.network, self.fake.optimizer),
        )

    def note(self) -> Note:
        """How the exported student wants to be sampled."""
        return Note(
            steps=self.config.method.stu_inference_steps,
            guidance_scale=1.0,
            max_sequence_length=self.config.data.max_sequence_length,
            sigmas=tuple(self.run.student_sigmas.tolist()),
        )

    def _save(self, step: int) -> None:
        snapshot, failure = self.snapshot(step), None
        if self.accelerator.is_main_process:
            try:
                last = step == self.stop
                path = checkpoint.save(self.folder, snapshot, self.config, self.run.family, self.note(), last=last)
                logger.info("saved %s", path)
            except checkpoint.SaveError as error:
                failure = str(error)
        if failure := distributed.from_main(self.accelerator, failure):
            raise checkpoint.SaveError(failure)
