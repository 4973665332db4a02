"""Count the network calls of a training: the cost of its settings, whatever the machine.

A forward pass is one call, and a backward pass counts as two. A guided prediction is two calls. Only calls of the three
networks count: not text encoders, the decoder, perceptual networks and evaluation, and no teacher samples that were
stored before the run.
"""

from dataclasses import dataclass

from dpdmd.config.method_table import METHODS
from dpdmd.config.options import MethodConfig
from dpdmd.methods.update_schedule import is_student_update, rollout_step
from dpdmd.methods.updates import rollout_options
from dpdmd.models.layout_values import Guidance

FORWARD, BACKWARD = 1, 2


@dataclass(frozen=True)
class CallCounter:
    """Counts the calls of updates for each sample of the batch.

    Attributes:
        seed: of the run; it draws the steps of `--grad_steps random` and `--rollout dmd2`.
        anchor_steps: guided calls of one anchor (`decidedness.anchor_calls`).
        guidance: of the family.
    """

    config: MethodConfig
    seed: int
    anchor_steps: int
    guidance: Guidance

    def of_run(self, steps: int) -> int:
        """Return the calls of the first `steps` updates."""
        return sum(self.of_update(step) for step in range(steps))

    def of_update(self, step: int) -> int:
        """Return the calls of update `step`, 0 for the first."""
        config = self.config
        student, source = is_student_update(step, config), rollout_step(step, config)
        options = rollout_options(config, self.seed, source)
        forward = config.stu_inference_steps if options.jump_at is None else options.jump_at + 1
        if student:
            kept = sum(index < forward for index in options.gradient_steps)
            terms, calls = METHODS[config.method].student_terms, FORWARD * forward + BACKWARD * kept
        else:
            terms, calls = METHODS[config.method].fake_terms, FORWARD * forward if source == step else 0
        return calls + sum(self._of_term(name, shares=source != step) for name in terms)

    def _of_term(self, name: str, *, shares: bool) -> int:
        """Return the calls of a loss term (`dpdmd.methods.loss_terms`) beside the roll-out.

        Args:
            shares: whether the update has the samples of an earlier one.
        """
        config = self.config
        scales = (config.teacher_guidance_scale, config.real_guidance_scale)
        guided, real = (FORWARD * self.guidance.rows(scales[0] if scale is None else scale) for scale in scales)
        teacher_sample = 0 if config.teacher_cache or shares else config.teacher_infer_steps * guided
        return {
            "dmd": real + FORWARD,
            "diversity": self.anchor_steps * guided,
            "perceptual": teacher_sample,
            "adversarial": FORWARD + BACKWARD,
            "fake_score": FORWARD + BACKWARD,
            "discriminator": 2 * FORWARD + teacher_sample,  # features of the teacher's and of the student's sample
        }[name]
