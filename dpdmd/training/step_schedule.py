"""What is due at which step: functions of the step alone, so that a resumed run needs no state."""

from dataclasses import dataclass

from dpdmd.config import Config
from dpdmd.methods.update_schedule import is_student_update, last_student_step, num_student_updates
from dpdmd.training.lr_schedules import learning_rate


@dataclass(frozen=True)
class StepSchedule:
    """The schedule of one run.

    Attributes:
        total_steps: the update after which the run ends.
        scored: whether the run has scorers.
    """

    config: Config
    total_steps: int
    scored: bool

    def saves(self, done: int) -> bool:
        """Return whether a checkpoint is due after `done` updates."""
        return done % self.config.run.ckpt_every == 0 or done == self.total_steps

    def evaluates(self, done: int) -> bool:
        """Return whether an evaluation is due after `done` updates: before the first, periodically, and at the end."""
        every = self.config.eval.eval_every or self.config.run.ckpt_every
        return self.scored and (done % every == 0 or done >= self.total_steps)

    def shows_images(self, step: int) -> bool:
        """Return whether update `step` (from 0) is the student's first after a multiple of `vis_every`."""
        every, method = self.config.run.vis_every, self.config.method
        if not every or not is_student_update(step, method):
            return False
        return (step + 1) // every > last_student_step(step, method) // every

    def learning_rate(self, full: float, step: int) -> float:
        """Return the learning rate of update `step` (from 0); skipped updates of its network count."""
        method = self.config.method
        update, total = num_student_updates(step, method), num_student_updates(self.total_steps, method)
        if not is_student_update(step, method):
            update, total = step - update, self.total_steps - total
        return learning_rate(full, self.config.optim, update, total)
