"""Families of rectified flows that sample with diffusers' FlowMatchEulerDiscreteScheduler."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dpdmd.models.diffusers_family import DiffusersFamily
from dpdmd.models.sampling_defaults import SamplingDefaults


class FlowFamily(DiffusersFamily):
    """A rectified flow with one shift."""

    def library_sigmas(self, folder: Path, steps: int, sigmas: tuple[float, ...] | None = None) -> Tensor:
        if sigmas:
            scheduler, times = _load_scheduler(folder), list(sigmas[:-1])
        else:
            scheduler = _load_scheduler(folder, shift=self.load_schedule(folder).shift)
            times = self.pipeline_times(steps)
        scheduler.set_timesteps(**({"num_inference_steps": steps} if times is None else {"sigmas": times}))
        return scheduler.sigmas

    def pipeline_times(self, steps: int) -> list[float] | None:
        """Return the times that the pipeline gives its scheduler to shift; None if the scheduler spaces them itself."""
        return None

    def export_scheduler(self, folder: Path, source: Path, defaults: SamplingDefaults) -> SamplingDefaults:
        """Write the scheduler. Return `defaults` with the shift that its file no longer has.

        On the default grid a plain `pipe(num_inference_steps=N)` is right. Any other grid is given as `sigmas=`, which
        the scheduler would shift once more. So the file's shift is then 1, and the sigmas of `defaults` are final.
        """
        schedule, sigmas = self.load_schedule(source), defaults.sigmas
        final = sigmas and not torch.equal(torch.tensor(sigmas), schedule.default_sigmas(defaults.steps))
        _load_scheduler(source, shift=1.0 if final else schedule.shift).save_pretrained(folder / "scheduler")
        return replace(defaults, shift=schedule.shift if final else None)


def _load_scheduler(folder: Path, **values: float) -> FlowMatchEulerDiscreteScheduler:
    """Load the scheduler of a folder, with `values` in its configuration."""
    return FlowMatchEulerDiscreteScheduler.from_pretrained(
        folder, subfolder="scheduler", local_files_only=True, **values
    )
