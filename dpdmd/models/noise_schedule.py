"""Noise algebra and time grids, on plain tensors: no scheduler object, no state.

In the whole package `sigma` is a schedule's name of a noise level, fp32, [] or [B], the number that the library's
scheduler calls sigma. Along a grid [N + 1] it falls strictly, and the last entry, 0, is clean data. Predictors, grids,
sampling defaults and exports use sigma. Only a schedule computes with it, and only a family converts it to the time of
its network:

FlowSchedule      the time t itself, from 1 (noise) to 0: z = (1 - sigma) x0 + sigma eps
DiscreteSchedule  noise over signal, sqrt((1 - a) / a), from 14.6 or 4096: z = (x0 + sigma eps) / sqrt(1 + sigma^2)

Latents z have the scale of the network's input: at the first sigma of a grid z is eps (`Schedule.start`), of unit
variance.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
GRIDS = DEFAULT, TRAILING = "default", "trailing"
SHIFTS = (0.001, 1000.0)  # least and largest; beyond, almost all of a grid is noise or data

# A network bound to its text: (z [B, C, H, W] fp32, sigma [B] fp32) -> prediction [B, C, H, W] fp32.
Predictor = Callable[[Tensor, Tensor], Tensor]


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape sigma, [] or [B], so that it broadcasts over `like` [B, C, H, W]."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1)) if sigma.ndim else sigma


class Schedule(ABC):
    """The meaning of a network's prediction at each sigma, and the grids of sigmas. Latents are [B, C, H, W]."""

    predicts: str  # the quantity that the network predicts, in words
    depends_on_size = False  # whether the grids of two image sizes differ

    @abstractmethod
    def default_sigmas(self, num_steps: int) -> Tensor:
        """Return the grid of the library's own scheduler with `num_steps`, fp32 [num_steps + 1].

        Raises:
            ValueError: more steps than the schedule has times.
        """

    @abstractmethod
    def trailing_sigmas(self, num_steps: int) -> Tensor:
        """Return even steps of time from pure noise, fp32 [num_steps + 1]."""

    @abstractmethod
    def score_sigmas(self, teacher_steps: int) -> Tensor:
        """Return the 1000 sigmas at which teacher and fake score are compared, fp32 [1000], falling, all above 0.

        Args:
            teacher_steps: steps of the teacher's grid, for a schedule whose shift depends on the number of steps.
        """

    def at_size(self, height: int, width: int) -> "Schedule":
        """Return the schedule of images of this size in pixels: itself, unless it `depends_on_size`."""
        return self

    @abstractmethod
    def covers(self, first: float, last: float) -> bool:
        """Return whether a grid may go from `first` to `last` and then to 0."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """Return the condition on a grid of given numbers, in words."""

    def start(self, eps: Tensor, sigma: Tensor) -> Tensor:
        """Return z at the first sigma of a grid for the start noise `eps`, as the library's pipeline begins."""
        return eps

    @abstractmethod
    def add_noise(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """Return z at `sigma` for the pair (x0, eps)."""

    @abstractmethod
    def to_x0(self, z: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """Return the x0 that a prediction at `z` implies."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """Return the prediction of a perfect network at `sigma` for one known pair."""

    @abstractmethod
    def step(self, z: Tensor, prediction: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """Take one step of the deterministic sampler (the ODE's Euler step) from sigma_s to sigma_t."""

    @abstractmethod
    def solve_step(self, z_s: Tensor, z_t: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """Return the prediction that carries z_s to z_t in a single step; inverse of `step`."""

    @abstractmethod
    def anchored(self, eps: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """Return the student's side of the diversity loss, from its prediction at `start` of its first sigma."""

    @abstractmethod
    def anchored_x0(self, eps: Tensor, anchored: Tensor, sigma: Tensor) -> Tensor:
        """Return the x0 that the student's first prediction implies, from its side of the diversity loss."""

    @abstractmethod
    def anchor(
        self, teacher: Predictor, eps: Tensor, z_k: Tensor, sigma_s: Tensor, sigma_k: Tensor, *, at_end: bool
    ) -> Tensor:
        """Return the teacher's side of that loss, when the teacher went from eps at sigma_s to z_k at sigma_k.

        `at_end` says that sigma_k is 0, since reading sigma_k would wait for the device.
        """

    def named_sigmas(self, name: str, num_steps: int) -> Tensor:
        """Return one of `GRIDS`, fp32 [num_steps + 1].

        Raises:
            ValueError: another name, or more steps than the schedule has times.
        """
        if name not in GRIDS:
            raise ValueError(f"{name!r} is not one of the grids {', '.join(GRIDS)}")
        return self.trailing_sigmas(num_steps) if name == TRAILING else self.default_sigmas(num_steps)

    def parse_sigmas(self, text: str, num_steps: int) -> Tensor:
        """Parse `--student_sigmas`: "default", "trailing", or N numbers such as "1.0,0.9,0.75,0.5" (a 0 may follow).

        Returns:
            fp32 [num_steps + 1].

        Raises:
            ValueError: neither a name nor `num_steps` numbers that fall strictly within the schedule's range.
        """
        if text in GRIDS:
            return self.named_sigmas(text, num_steps)
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            raise ValueError(
                f"{text!r} is neither 'default' nor 'trailing' nor a list such as 1.0,0.9,0.75,0.5"
            ) from None
        if len(numbers) == num_steps + 1 and numbers[-1] == 0:
            numbers.pop()
        if len(numbers) != num_steps:
            raise ValueError(f"{text!r} has {len(numbers)} sigmas, but the student takes {num_steps} steps")
        sigmas = torch.tensor([*numbers, 0.0], dtype=torch.float32)  # rounding can make two numbers equal
        if not (sigmas.diff() < 0).all() or not self.covers(numbers[0], numbers[-1]):
            raise ValueError(f"{text!r} must {self.rule}")
        return sigmas


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Apply SD3's resolution shift, s sigma / (1 + (s - 1) sigma), elementwise; 0 and 1 stay."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


class FlowSchedule(Schedule):
    """Rectified flow: t = sigma = 1 is noise, and the network predicts v = dz/dt = eps - x0 (paper, section 3).

    All grids are in sigma, the shift applied, from 1 to 0.
    """

    predicts = "velocity"

    def __init__(self, shift: float):
        self.shift = shift

    def default_sigmas(self, num_steps: int) -> Tensor:
        """The grid of diffusers' FlowMatchEulerDiscreteScheduler.

        The scheduler keeps the shifted sigma of its last training time as sigma_min, spaces times evenly down to
        sigma_min, and shifts them: sigma_min is shifted twice. At shift 3 four steps give 1, .8577, .6022, .0089, 0.
        """
        lowest = shift_sigmas(torch.tensor(1 / NUM_TRAIN_TIMESTEPS, dtype=torch.float64), self.shift).item()
        even = torch.linspace(1.0, lowest, num_steps, dtype=torch.float64)
        return torch.cat([shift_sigmas(even, self.shift), torch.zeros(1, dtype=torch.float64)]).float()

    def trailing_sigmas(self, num_steps: int) -> Tensor:
        """shift(1 - i / N); at shift 3, N = 4: 1, .9, .75, .5, 0."""
        even = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
        return shift_sigmas(even, self.shift).float()

    def score_sigmas(self, teacher_steps: int) -> Tensor:
        """The scheduler's own 1000 steps, without the final 0 (paper)."""
        return self.default_sigmas(NUM_TRAIN_TIMESTEPS)[:-1]

    rule = "start at 1 and fall strictly, staying above 0"

    def covers(self, first: float, last: float) -> bool:
        return first == 1 and last > 0

    def add_noise(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """z = (1 - sigma) x0 + sigma eps."""
        sigma = expand(sigma, x0)
        return (1 - sigma) * x0 + sigma * eps

    def to_x0(self, z: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """x0 = z - sigma v."""
        return z - expand(sigma, z) * prediction

    def target(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """v = eps - x0, at every sigma."""
        return eps - x0

    def step(self, z: Tensor, prediction: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """z + (sigma_t - sigma_s) v."""
        return z + expand(sigma_t - sigma_s, z) * prediction

    def solve_step(self, z_s: Tensor, z_t: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """(z_t - z_s) / (sigma_t - sigma_s)."""
        return (z_t - z_s) / expand(sigma_t - sigma_s, z_s)

    def anchored(self, eps: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """v."""
        return prediction

    def anchored_x0(self, eps: Tensor, anchored: Tensor, sigma: Tensor) -> Tensor:
        """x0 = eps - sigma v."""
        return self.to_x0(eps, anchored, sigma)

    def anchor(
        self, teacher: Predictor, eps: Tensor, z_k: Tensor, sigma_s: Tensor, sigma_k: Tensor, *, at_end: bool
    ) -> Tensor:
        """The velocity that carries eps to z_k in one step, (eps - z_k) / (1 - t_k) (paper, section 4.1)."""
        return self.solve_step(eps, z_k, sigma_s, sigma_k)
