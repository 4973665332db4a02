"""Rectified flows whose pipeline, and not its scheduler, spaces the times: all but Stable Diffusion 3.

The pipeline gives FlowMatchEulerDiscreteScheduler the even times u = 1, (N - 1) / N, ..., 1 / N, and the scheduler
shifts them. The scheduler's own times for N steps, which Stable Diffusion 3 uses, are others (`FlowSchedule`): a
network of these families never sees them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS, FlowSchedule, shift_sigmas

ShiftRule = Callable[[int, int], float]  # (pixels of the image, steps) -> shift


class EvenFlowSchedule(FlowSchedule):
    """A rectified flow on the shifted even times, s u / (1 + (s - 1) u) with the shift s.

    diffusers' exponential dynamic shift e^mu / (e^mu + 1 / u - 1) is this formula with s = e^mu.

    Args:
        shift: one number, or a rule that gives it for an image size and a number of steps.
        terminal: the last sigma above 0 of a default grid: sigma becomes 1 - (1 - sigma) (1 - T) / (1 - sigma_N). None
            if the shifted times stay as they are.
        pixels: height times width of the images, for a rule.
    """

    def __init__(self, shift: float | ShiftRule, terminal: float | None = None, pixels: int | None = None):
        self._shift, self.terminal, self.pixels = shift, terminal, pixels

    @property
    def depends_on_size(self) -> bool:
        return callable(self._shift)

    def at_size(self, height: int, width: int) -> "EvenFlowSchedule":
        return EvenFlowSchedule(self._shift, self.terminal, height * width) if self.depends_on_size else self

    def shift_of(self, num_steps: int) -> float:
        """Return the shift of a grid of `num_steps`.

        Raises:
            ValueError: the shift depends on the image size, and the schedule is not of a size.
        """
        if not self.depends_on_size:
            return self._shift
        if self.pixels is None:
            raise ValueError("this grid depends on the image size: take the schedule `at_size`")
        return self._shift(self.pixels, num_steps)

    @property
    def shift(self) -> float:
        """The one shift of every grid."""
        return self.shift_of(NUM_TRAIN_TIMESTEPS)

    def default_sigmas(self, num_steps: int) -> Tensor:
        """The grid that the pipeline steps through: the shifted even times, stretched to `terminal`.

        One step has nothing to stretch: it goes from 1 to 0.
        """
        sigmas = self.trailing_sigmas(num_steps)
        if self.terminal and num_steps > 1:
            sigmas[:-1] = 1 - (1 - sigmas[:-1]) / ((1 - sigmas[-2]) / (1 - self.terminal))
        return sigmas

    def trailing_sigmas(self, num_steps: int) -> Tensor:
        """The shifted even times, without a stretch: the default grid, if there is no `terminal`."""
        return self._shifted(num_steps, self.shift_of(num_steps))

    def score_sigmas(self, teacher_steps: int) -> Tensor:
        """1000 even times with the shift of the teacher's grid, without a stretch.

        So scores look where the teacher samples, and below its last sigma. A rule for the number of steps is made for
        tens of steps: FLUX.2's would give 1000 steps a shift of 0.03, which leaves almost no noise.
        """
        return self._shifted(NUM_TRAIN_TIMESTEPS, self.shift_of(teacher_steps))[:-1]

    def _shifted(self, num_steps: int, shift: float) -> Tensor:
        """Return the shifted even times and a final 0, in the arithmetic of diffusers: its grids to the bit."""
        if self.depends_on_size:
            even = torch.linspace(1.0, 1 / num_steps, num_steps, dtype=torch.float64).float()
            shifted = torch.tensor(shift) / (shift + (1 / even - 1))  # torch divides a number by way of a reciprocal
        else:
            shifted = shift_sigmas(torch.linspace(1.0, 1 / num_steps, num_steps), shift)
        return torch.cat([shifted, torch.zeros(1)])
