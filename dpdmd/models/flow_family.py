"""Families of rectified flows that sample with diffusers' FlowMatchEulerDiscreteScheduler."""

from collections.abc import Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dpdmd.models.diffusers_family import DiffusersFamily, SchedulerValues
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.scheduler_fit import fit_even_flow_scheduler, fit_flow_scheduler


class FlowFamily(DiffusersFamily):
    """A rectified flow with one shift, whose scheduler spaces the times."""

    scheduler_class = FlowMatchEulerDiscreteScheduler

    def own_values(self, schedule: FlowSchedule) -> SchedulerValues:
        return {"shift": schedule.shift, "shift_terminal": None}

    def fit_scheduler(self, schedule: FlowSchedule, sigmas: Sequence[float]) -> SchedulerValues:
        return fit_flow_scheduler(sigmas)

    def for_given_sigmas(
        self, schedule: FlowSchedule, sigmas: tuple[float, ...], defaults: SamplingDefaults
    ) -> tuple[SchedulerValues, SamplingDefaults]:
        """Return a shift of 1: the scheduler would shift the given sigmas, which are final, once more."""
        values = self.own_values(schedule) | {"shift": 1.0}
        return values, defaults.on_grid(shift=schedule.shift, sigmas_argument=sigmas[:-1])


class EvenFlowFamily(FlowFamily):
    """A rectified flow with one shift, whose pipeline gives its scheduler even times (`EvenFlowSchedule`)."""

    def pipeline_times(self, steps: int) -> list[float]:
        return torch.linspace(1.0, 1 / steps, steps).tolist()

    def fit_scheduler(self, schedule: FlowSchedule, sigmas: Sequence[float]) -> SchedulerValues:
        return fit_even_flow_scheduler(sigmas)
