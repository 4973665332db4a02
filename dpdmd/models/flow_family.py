"""Families of rectified flows that sample with diffusers' FlowMatchEulerDiscreteScheduler."""

from collections.abc import Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dpdmd.models.diffusers_family import DiffusersFamily, SchedulerValues
from dpdmd.models.even_flow_schedule import EvenFlowSchedule
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.scheduler_fit import fit_even_flow_scheduler, fit_flow_scheduler

_STATIC: SchedulerValues = {"use_dynamic_shifting": False}


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
    """A rectified flow whose pipeline gives its scheduler even times (`EvenFlowSchedule`).

    If the shift depends on the image size, the scheduler's is dynamic, and the pipeline computes it (`pipeline_mu`).
    """

    def own_values(self, schedule: EvenFlowSchedule) -> SchedulerValues:
        shift = {"use_dynamic_shifting": True} if schedule.depends_on_size else {"shift": schedule.shift}
        return shift | {"shift_terminal": schedule.terminal}

    def pipeline_times(self, steps: int) -> list[float]:
        return torch.linspace(1.0, 1 / steps, steps).tolist()

    def fit_scheduler(self, schedule: EvenFlowSchedule, sigmas: Sequence[float]) -> SchedulerValues:
        if torch.allclose(torch.tensor(sigmas), schedule.trailing_sigmas(len(sigmas) - 1), rtol=0, atol=1e-6):
            return self.own_values(schedule) | {"shift_terminal": None}
        return _STATIC | fit_even_flow_scheduler(sigmas)

    def for_given_sigmas(
        self, schedule: EvenFlowSchedule, sigmas: tuple[float, ...], defaults: SamplingDefaults
    ) -> tuple[SchedulerValues, SamplingDefaults]:
        if not (schedule.depends_on_size or schedule.terminal):
            return super().for_given_sigmas(schedule, sigmas, defaults)
        values = _STATIC | {"shift": 1.0, "shift_terminal": None}
        return values, defaults.on_grid(own_scheduler=self.own_values(schedule), sigmas_argument=sigmas[:-1])
