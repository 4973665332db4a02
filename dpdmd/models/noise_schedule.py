"""Noise algebra and time grids, on plain tensors: no scheduler object, no state.

In the whole package `sigma` is a schedule's name of a noise level, fp32, [] or [B], the number that the library's
scheduler calls sigma. Along a grid [N + 1] it falls strictly, and the last entry, 0, is clean data. Predictors, grids,
sampling defaults and exports use sigma. Only a schedule computes with it, and only a family converts it to the time of
its network:

FlowSchedule     the time t itself, from 1 (noise) to 0: z = (1 - sigma) x0 + sigma eps
EpsilonSchedule  noise over signal, sqrt((1 - a) / a), from about 14.6: z = (x0 + sigma eps) / sqrt(1 + sigma^2)

Latents z have the scale of the network's input: at the first sigma of any grid z is eps itself, of unit variance.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
GRIDS = DEFAULT, TRAILING = "default", "trailing"

# A network bound to its text: (z [B, C, H, W] fp32, sigma [B] fp32) -> prediction [B, C, H, W] fp32.
Predictor = Callable[[Tensor, Tensor], Tensor]


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape sigma, [] or [B], so that it broadcasts over `like` [B, C, H, W]."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1)) if sigma.ndim else sigma


class Schedule(ABC):
    """The meaning of a network's prediction at each sigma, and the grids of sigmas. Latents are [B, C, H, W]."""

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
    def score_sigmas(self) -> Tensor:
        """Return the 1000 sigmas at which teacher and fake score are compared, fp32 [1000], falling, all above 0."""

    @abstractmethod
    def covers(self, first: float, last: float) -> bool:
        """Return whether a grid may go from `first` to `last` and then to 0."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """Return the condition on a grid of given numbers, in words."""

    @abstractmethod
    def add_noise(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """Return z at `sigma` for the pair (x0, eps)."""

    @abstractmethod
    def to_x0(self, z: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """Return the x0 that a prediction at `z` implies."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return the prediction of a perfect network for one known pair."""

    @abstractmethod
    def step(self, z: Tensor, prediction: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """Take one step of the deterministic sampler (the ODE's Euler step) from sigma_s to sigma_t."""

    @abstractmethod
    def solve_step(self, z_s: Tensor, z_t: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """Return the prediction that carries z_s to z_t in a single step; inverse of `step`."""

    @abstractmethod
    def anchored(self, eps: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """Return the student's side of the diversity loss, from its prediction at z = eps and its first sigma."""

    @abstractmethod
    def anchored_x0(self, eps: Tensor, anchored: Tensor, sigma: Tensor) -> Tensor:
        """Return the x0 that the student's first prediction implies, from its side of the diversity loss."""

    @abstractmethod
    def anchor(self, teacher: Predictor, eps: Tensor, z_k: Tensor, sigma_s: Tensor, sigma_k: Tensor) -> Tensor:
        """Return the teacher's side of that loss, when the teacher went from eps at sigma_s to z_k at sigma_k."""

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

    def score_sigmas(self) -> Tensor:
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

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """v = eps - x0."""
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

    def anchor(self, teacher: Predictor, eps: Tensor, z_k: Tensor, sigma_s: Tensor, sigma_k: Tensor) -> Tensor:
        """The velocity that carries eps to z_k in one step, (eps - z_k) / (1 - t_k) (paper, section 4.1)."""
        return self.solve_step(eps, z_k, sigma_s, sigma_k)


class EpsilonSchedule(Schedule):
    """Diffusion with discrete times 0 to 999 and scaled-linear betas; the network predicts eps (paper, appendix C).

    a_t = prod_(i<=t) (1 - beta_i), sigma = sqrt((1 - a) / a), so sqrt(a) = 1 / c and sqrt(1 - a) = sigma / c with
    c = sqrt(1 + sigma^2), and the latent z = sqrt(a) x0 + sqrt(1 - a) eps is (x0 + sigma eps) / c. diffusers'
    EulerDiscreteScheduler uses c z as its sample; there the DDIM step is an Euler step.
    """

    def __init__(self, beta_start: float, beta_end: float, steps_offset: int):
        self.beta_start, self.beta_end, self.steps_offset = beta_start, beta_end, steps_offset

    @cached_property
    def table(self) -> Tensor:
        """sigma of each time 0 to 999, rising, float64 [1000]."""
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - betas, dim=0)
        return ((1 - kept) / kept).sqrt()

    def times(self, sigma: Tensor) -> Tensor:
        """Return the network's time at each sigma, fp32 of the same shape: linear in log sigma between table entries.

        As in diffusers, but rounded to a thousandth, so that the table's sigmas give whole times also after rounding to
        fp32. Sigmas beyond the table have the nearest time.
        """
        known = self.table.log().to(sigma.device)
        wanted = sigma.double().clamp_min(self.table[0].item()).log()
        upper = torch.searchsorted(known, wanted.contiguous()).clamp(1, len(known) - 1)
        share = (wanted - known[upper - 1]) / (known[upper] - known[upper - 1])
        return (upper - 1 + share).clamp(0, len(known) - 1).mul(1000).round().div(1000).float()

    def default_sigmas(self, num_steps: int) -> Tensor:
        """The grid of diffusers' EulerDiscreteScheduler with timestep_spacing "leading": whole times, 1000 // N apart.

        With few steps the first time is far from pure noise: with steps_offset 1 it is 751 for N = 4, 981 for N = 50.
        """
        if num_steps >= NUM_TRAIN_TIMESTEPS:
            raise ValueError(f"this model has {NUM_TRAIN_TIMESTEPS} times: take fewer steps")
        spacing = NUM_TRAIN_TIMESTEPS // num_steps
        return self._grid(torch.arange(num_steps).flip(0) * spacing + self.steps_offset)

    def trailing_sigmas(self, num_steps: int) -> Tensor:
        """The grid of diffusers' spacing "trailing": whole times from the last one on; N = 4 is 999, 749, 499, 249.

        If an exact time is midway between two whole ones, as four times are for N = 48, diffusers may round to the
        other one. For some N, such as 61, diffusers' own grid has a step too many; this grid never does.
        """
        if num_steps > NUM_TRAIN_TIMESTEPS:
            raise ValueError(f"this model has {NUM_TRAIN_TIMESTEPS} times: take no more steps")
        left = torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps
        return self._grid((left * NUM_TRAIN_TIMESTEPS).round().long() - 1)

    def _grid(self, times: Tensor) -> Tensor:
        return torch.cat([self.table[times], torch.zeros(1, dtype=torch.float64)]).float()

    def score_sigmas(self) -> Tensor:
        """The sigma of every training time, 999 to 0."""
        return self.table.flip(0).float()

    @property
    def rule(self) -> str:
        return f"fall strictly, from {self.table[-1]:.4f} (time 999) at most to {self.table[0]:.4f} (time 0) at least"

    def covers(self, first: float, last: float) -> bool:
        slack = 1e-4  # for numbers with as few digits as in `rule`
        return first <= self.table[-1] + slack and last >= self.table[0] - slack

    def add_noise(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """z = (x0 + sigma eps) / c."""
        sigma = expand(sigma, x0)
        return (x0 + sigma * eps) / _c(sigma)

    def to_x0(self, z: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """x0 = c z - sigma eps = (z - sqrt(1 - a) eps) / sqrt(a)."""
        sigma = expand(sigma, z)
        return _c(sigma) * z - sigma * prediction

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """eps."""
        return eps

    def step(self, z: Tensor, prediction: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """DDIM without noise: c_t z_t = c_s z_s + (sigma_t - sigma_s) eps."""
        sigma_s, sigma_t = expand(sigma_s, z), expand(sigma_t, z)
        return (_c(sigma_s) * z + (sigma_t - sigma_s) * prediction) / _c(sigma_t)

    def solve_step(self, z_s: Tensor, z_t: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """(c_t z_t - c_s z_s) / (sigma_t - sigma_s)."""
        sigma_s, sigma_t = expand(sigma_s, z_s), expand(sigma_t, z_s)
        return (_c(sigma_t) * z_t - _c(sigma_s) * z_s) / (sigma_t - sigma_s)

    def anchored(self, eps: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """The x0 that the student implies (paper, appendix C)."""
        return self.to_x0(eps, prediction, sigma)

    def anchored_x0(self, eps: Tensor, anchored: Tensor, sigma: Tensor) -> Tensor:
        """The same x0."""
        return anchored

    def anchor(self, teacher: Predictor, eps: Tensor, z_k: Tensor, sigma_s: Tensor, sigma_k: Tensor) -> Tensor:
        """The x0 that the teacher implies at z_k, (z_k - sqrt(1 - a_k) eps_k) / sqrt(a_k): one more guided call.

        At sigma_k = 0 that is z_k, without a call (paper, appendix C).
        """
        if sigma_k == 0:
            return z_k
        return self.to_x0(z_k, teacher(z_k, sigma_k.expand(len(z_k))), sigma_k)


def _c(sigma: Tensor) -> Tensor:
    return (1 + sigma.square()).sqrt()
