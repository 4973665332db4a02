"""Noise algebra and time grids of rectified-flow models, on plain fp32 tensors: no scheduler object, no state.

t = sigma = 1 is noise, 0 is data; z_t = (1 - t) x0 + t eps and v = dz/dt = eps - x0 (paper, section 3). All grids are
in sigma, shift applied, strictly falling, from 1 to a last entry 0.
"""

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """SD3's resolution shift, s sigma / (1 + (s - 1) sigma), elementwise; keeps 0 and 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def default_sigmas(num_steps: int, shift: float) -> Tensor:
    """The grid on which diffusers' FlowMatchEulerDiscreteScheduler samples with `num_steps`: fp32 [num_steps + 1].

    The scheduler keeps the shifted sigma of its last training time as sigma_min, spaces times evenly down to it,
    and shifts them: sigma_min is shifted twice. At shift 3 four steps give 1, .8577, .6022, .0089, 0.
    """
    lowest = shift_sigmas(torch.tensor(1 / NUM_TRAIN_TIMESTEPS, dtype=torch.float64), shift).item()
    even = torch.linspace(1.0, lowest, num_steps, dtype=torch.float64)
    return torch.cat([shift_sigmas(even, shift), torch.zeros(1, dtype=torch.float64)]).float()


def trailing_sigmas(num_steps: int, shift: float) -> Tensor:
    """Even steps of time, shifted: shift(1 - i / N), fp32 [num_steps + 1]; at shift 3, N = 4: 1, .9, .75, .5, 0."""
    even = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    return shift_sigmas(even, shift).float()


def parse_sigmas(text: str, num_steps: int, shift: float) -> Tensor:
    """Grid of `--student_sigmas`: "default", "trailing", or N numbers such as "1.0,0.9,0.75,0.5" (a last 0 may follow).

    Returns:
        fp32 [num_steps + 1].

    Raises:
        ValueError: not a name and not `num_steps` numbers that fall strictly from 1 to above 0.
    """
    if text == "default":
        return default_sigmas(num_steps, shift)
    if text == "trailing":
        return trailing_sigmas(num_steps, shift)
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is neither 'default' nor 'trailing' nor a list such as 1.0,0.9,0.75,0.5") from None
    if len(numbers) == num_steps + 1 and numbers[-1] == 0:
        numbers.pop()
    if len(numbers) != num_steps:
        raise ValueError(f"{text!r} has {len(numbers)} sigmas, but the student takes {num_steps} steps")
    falling = all(earlier > later for earlier, later in zip(numbers, [*numbers[1:], 0.0], strict=True))
    if numbers[0] != 1 or not falling:
        raise ValueError(f"{text!r} must start at 1 and fall strictly, staying above 0")
    return torch.tensor([*numbers, 0.0], dtype=torch.float32)


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """[] or [B] -> a shape that broadcasts over `like` [B, C, H, W]."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1)) if sigma.ndim else sigma


class FlowSchedule:
    """Rectified flow: what a velocity prediction means at each sigma. sigma is [] or [B]; latents are [B, C, H, W]."""

    def __init__(self, shift: float):
        self.shift = shift

    def add_noise(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """z = (1 - sigma) x0 + sigma eps."""
        sigma = expand(sigma, x0)
        return (1 - sigma) * x0 + sigma * eps

    def to_x0(self, z: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        """x0 = z - sigma v."""
        return z - expand(sigma, z) * v

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """What a perfect network predicts for one known pair: v = eps - x0."""
        return eps - x0

    def step(self, z: Tensor, v: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """One Euler step of the ODE from sigma_s to sigma_t: z + (sigma_t - sigma_s) v."""
        return z + expand(sigma_t - sigma_s, z) * v

    def solve_step(self, z_s: Tensor, z_t: Tensor, sigma_s: Tensor, sigma_t: Tensor) -> Tensor:
        """The prediction whose single step carries z_s to z_t: (z_t - z_s) / (sigma_t - sigma_s); inverse of `step`.

        From sigma_s = 1 it is the anchor target (eps - z_k) / (1 - t_k) (paper, section 4.1).
        """
        return (z_t - z_s) / expand(sigma_t - sigma_s, z_s)
