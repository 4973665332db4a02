"""Diffusion with discrete times, as in Stable Diffusion XL: networks that predict the noise eps, or v."""

import numpy as np
import torch
from torch import Tensor

from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS, Predictor, Schedule, expand

SPACINGS = LEADING, TRAILING = "leading", "trailing"  # diffusers' names
SMALLEST_SIGNAL = 2.0**-12  # diffusers' sqrt(a) of the last time at zero terminal SNR, where it would be 0


class DiscreteSchedule(Schedule):
    """Diffusion with discrete times 0 to 999 and scaled-linear betas.

    a_t = prod_(i<=t) (1 - beta_i), sigma = sqrt((1 - a) / a), so sqrt(a) = 1 / c and sqrt(1 - a) = sigma / c with
    c = sqrt(1 + sigma^2), and the latent z = sqrt(a) x0 + sqrt(1 - a) eps is (x0 + sigma eps) / c. diffusers'
    EulerDiscreteScheduler uses c z as its sample; there the DDIM step is an Euler step.

    Args:
        spacing: diffusers' name of the default grid. With "leading" its pipeline starts from z = eps, with "trailing"
            from z = eps sigma / c, the noise part of z.
        zero_snr: rescale sqrt(a) so that the last time is noise alone (Lin et al., "Common Diffusion Noise Schedules
            and Sample Steps are Flawed", algorithm 1). sqrt(a) of the last time is then 2^-12, and sigma 4096.

    Attributes:
        table: sigma of each time 0 to 999, rising, float64 [1000].
        lowest: the first entry of the table.
        zero_snr: the argument.
    """

    def __init__(
        self, beta_start: float, beta_end: float, steps_offset: int, spacing: str = LEADING, *, zero_snr: bool = False
    ):
        self.beta_start, self.beta_end, self.steps_offset, self.spacing = beta_start, beta_end, steps_offset, spacing
        self.zero_snr = zero_snr
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - betas, dim=0)
        if zero_snr:
            root = kept.sqrt()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            root[-1] = SMALLEST_SIGNAL
            kept = root.square()
        # Made here and not on demand: a first call on tensors without data would keep such a tensor.
        self.table = ((1 - kept) / kept).sqrt()
        self._logs = self.table.log()
        self.lowest = self.table[0].item()

    def times(self, sigma: Tensor) -> Tensor:
        """Return the network's time at each sigma, fp32 of the same shape: linear in log sigma between table entries.

        As in diffusers, but rounded to a thousandth, so that the table's sigmas give whole times also after rounding to
        fp32. Sigmas beyond the table have the nearest time.
        """
        known = self._logs.to(sigma.device, non_blocking=True)
        wanted = sigma.double().clamp_min(self.lowest).log()
        upper = torch.searchsorted(known, wanted.contiguous()).clamp(1, len(known) - 1)
        share = (wanted - known[upper - 1]) / (known[upper] - known[upper - 1])
        return (upper - 1 + share).clamp(0, len(known) - 1).mul(1000).round().div(1000).float()

    def default_sigmas(self, num_steps: int) -> Tensor:
        """The grid of diffusers' EulerDiscreteScheduler with the model's spacing of the times.

        leading   whole times, 1000 // N apart. With few steps the first time is far from pure noise: with steps_offset
                  1 it is 751 for N = 4, 981 for N = 50.
        trailing  whole times from 999 on. For some N, such as 61, diffusers' grid has a step too many, at time -1.
        """
        if self.spacing == TRAILING:
            times = np.arange(NUM_TRAIN_TIMESTEPS, 0, -NUM_TRAIN_TIMESTEPS / num_steps).round()
            if num_steps > NUM_TRAIN_TIMESTEPS or len(times) != num_steps:
                raise ValueError(f"diffusers' grid with spacing {TRAILING!r} has other steps: take another number")
            return self._grid(torch.from_numpy(times).long() - 1)
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

    def score_sigmas(self, teacher_steps: int) -> Tensor:
        """The sigma of every training time, 999 to 0."""
        return self.table.flip(0).float()

    @property
    def rule(self) -> str:
        return f"fall strictly, from {self.table[-1]:.4f} (time 999) at most to {self.table[0]:.4f} (time 0) at least"

    def covers(self, first: float, last: float) -> bool:
        slack = 1e-4  # for numbers with as few digits as in `rule`; fp32 has fewer digits at 4096
        return first <= self.table[-1] * (1 + 1e-6) + slack and last >= self.table[0] - slack

    def start(self, eps: Tensor, sigma: Tensor) -> Tensor:
        """eps, or with the spacing "trailing" eps sigma / c."""
        return eps * (sigma / _c(sigma)) if self.spacing == TRAILING else eps

    def add_noise(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """z = (x0 + sigma eps) / c."""
        sigma = expand(sigma, x0)
        return (x0 + sigma * eps) / _c(sigma)

    def anchored(self, eps: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """The x0 that the student implies (paper, appendix C), whatever its network predicts."""
        return self.to_x0(self.start(eps, sigma), prediction, sigma)

    def anchored_x0(self, eps: Tensor, anchored: Tensor, sigma: Tensor) -> Tensor:
        """The same x0."""
        return anchored

    def anchor(
        self, teacher: Predictor, eps: Tensor, z_k: Tensor, sigma_s: Tensor, sigma_k: Tensor, *, at_end: bool
    ) -> Tensor:
        """The x0 that the teacher implies at z_k, (z_k - sqrt(1 - a_k) eps_k) / sqrt(a_k): one more guided call.

        At the end that is z_k, without a call (paper, appendix C).
        """
        if at_end:
            return z_k
        return self.to_x0(z_k, teacher(z_k, sigma_k.expand(len(z_k))), sigma_k)


class EpsilonSchedule(DiscreteSchedule):
    """Discrete times; the network predicts eps (paper, appendix C)."""

    predicts = "noise"

    def to_x0(self, z: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """x0 = c z - sigma eps = (z - sqrt(1 - a) eps) / sqrt(a)."""
        sigma = expand(sigma, z)
        return _c(sigma) * z - sigma * prediction

    def target(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """eps, at every sigma."""
        return eps

    def step(self, z: Tensor, prediction: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """DDIM without noise: c_t z_t = c_s z_s + (sigma_t - sigma_s) eps."""
        sigma_s, sigma_t = expand(sigma_s, z), expand(sigma_t, z)
        return (_c(sigma_s) * z + (sigma_t - sigma_s) * prediction) / _c(sigma_t)

    def solve_step(self, z_s: Tensor, z_t: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """(c_t z_t - c_s z_s) / (sigma_t - sigma_s)."""
        sigma_s, sigma_t = expand(sigma_s, z_s), expand(sigma_t, z_s)
        return (_c(sigma_t) * z_t - _c(sigma_s) * z_s) / (sigma_t - sigma_s)


class VPredictionSchedule(DiscreteSchedule):
    """Discrete times; the network predicts v = sqrt(a) eps - sqrt(1 - a) x0 (Salimans and Ho, 2022, section 4).

    No formula divides by sqrt(a), so all are exact at zero terminal SNR too. There x0 is -v up to 1 / 4096, where a
    network that predicts eps has no x0: eps is the latent itself.
    """

    def __init__(
        self, beta_start: float, beta_end: float, steps_offset: int, spacing: str = LEADING, *, zero_snr: bool = False
    ):
        super().__init__(beta_start, beta_end, steps_offset, spacing, zero_snr=zero_snr)
        self.predicts = "v at zero terminal SNR" if zero_snr else "v"

    def to_x0(self, z: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """x0 = (z - sigma v) / c = sqrt(a) z - sqrt(1 - a) v."""
        sigma = expand(sigma, z)
        return (z - sigma * prediction) / _c(sigma)

    def target(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """v = (eps - sigma x0) / c."""
        sigma = expand(sigma, x0)
        return (eps - sigma * x0) / _c(sigma)

    def step(self, z: Tensor, prediction: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """DDIM without noise, with eps = (sigma z + v) / c: c_s c_t z_t = (1 + sigma_s sigma_t) z_s - (s - t) v."""
        sigma_s, sigma_t = expand(sigma_s, z), expand(sigma_t, z)
        c = _c(sigma_s) * _c(sigma_t)
        return ((1 + sigma_s * sigma_t) / c) * z + ((sigma_t - sigma_s) / c) * prediction

    def solve_step(self, z_s: Tensor, z_t: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """(c_s c_t z_t - (1 + sigma_s sigma_t) z_s) / (sigma_t - sigma_s)."""
        sigma_s, sigma_t = expand(sigma_s, z_s), expand(sigma_t, z_s)
        return (_c(sigma_s) * _c(sigma_t) * z_t - (1 + sigma_s * sigma_t) * z_s) / (sigma_t - sigma_s)


def _c(sigma: Tensor) -> Tensor:
    return (1 + sigma.square()).sqrt()
