"""Exported schedulers and sampling defaults of a family whose grid depends on the image size, at every size."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dpdmd.config.image_sizes import ImageSize
from dpdmd.models.even_flow_schedule import EvenFlowSchedule
from dpdmd.models.layout import read_scheduler_config
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults
from dpdmd.models.zimage.family import ZImage
from dpdmd.sampling.find_model import Model
from dpdmd.sampling.load_model import sampler_settings

SIZES = [ImageSize(512, 768), ImageSize(1024, 1024)]  # the first is the trained one
STEPS = 4
NUMBERS = {
    "given to the pipeline": (1.0, 0.9, 0.3, 0.2, 0.0),
    "made by the scheduler": tuple(EvenFlowSchedule(5.0, 0.1).default_sigmas(STEPS).tolist()),
}


def mu_of(pixels: int, steps: int) -> float:
    return pixels / 2**21 + 1 / steps


class Sized(ZImage):
    """Z-Image with a shift that depends on image size and steps."""

    def __init__(self, terminal: float | None):
        super().__init__(torch.device("cpu"), torch.float32)
        self.terminal = terminal

    def load_schedule(self, folder: Path) -> EvenFlowSchedule:
        return EvenFlowSchedule(lambda pixels, steps: math.exp(mu_of(pixels, steps)), self.terminal)

    def pipeline_mu(self, scheduler: FlowMatchEulerDiscreteScheduler, steps: int, size: ImageSize) -> float:
        return mu_of(size.height * size.width, steps)


@pytest.fixture(params=[None, 0.02], ids=["", "stretched"])
def family(request: pytest.FixtureRequest) -> Sized:
    return Sized(request.param)


@pytest.fixture
def source(family: Sized, tmp_path: Path) -> Path:
    """Return the model's folder, as far as its scheduler needs it."""
    folder = tmp_path / "source"
    options = {"use_dynamic_shifting": True, "shift": 3.0, "shift_terminal": family.terminal}
    FlowMatchEulerDiscreteScheduler(**options).save_pretrained(folder / "scheduler")
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text("{}")
    return folder


def export(family: Sized, source: Path, grid: str, folder: Path) -> SamplingDefaults:
    """Write the scheduler and dpdmd.json of a student that was trained at the first size; return the latter."""
    schedule, named = family.load_schedule(source).at_size(*SIZES[0]), "default" if grid in NUMBERS else grid
    sigmas = NUMBERS[grid] if grid in NUMBERS else tuple(schedule.named_sigmas(grid, STEPS).tolist())
    size = {"height": SIZES[0].height, "width": SIZES[0].width, "sizes": tuple(map(str, SIZES))}
    family.export_scheduler(folder, source, SamplingDefaults(steps=STEPS, sigmas=sigmas, grid=named, **size)).write(
        folder
    )
    return read_sampling_defaults(folder, SamplingDefaults())


@pytest.mark.parametrize("grid", ["default", "trailing", *NUMBERS])
def test_an_export_has_the_grid_of_each_size(family, source, tmp_path, grid):
    """A named grid follows the size, in diffusers and in `dpdmd.generate`; numbers are the same at each."""
    defaults = export(family, source, grid, tmp_path / "student")
    assert (defaults.sigmas_argument is None) == (grid != "given to the pipeline")
    found = []
    for size in SIZES:
        schedule = family.load_schedule(source).at_size(*size)
        wanted = torch.tensor(NUMBERS[grid]) if grid in NUMBERS else schedule.named_sigmas(grid, STEPS)
        in_diffusers = family.library_sigmas(tmp_path / "student", None, size)
        torch.testing.assert_close(in_diffusers, wanted, rtol=1e-5, atol=1e-6)
        ours = sampler_settings(Model(source, defaults), schedule, *size)
        assert torch.equal(ours.sigmas, wanted) and (ours.height, ours.width) == size
        more = sampler_settings(Model(source, defaults), schedule, *size, steps=6)
        assert torch.equal(more.sigmas, schedule.named_sigmas(defaults.grid, 6))
        found.append(wanted)
    assert torch.equal(*found) == (grid in NUMBERS)
    at_trained = family.library_sigmas(tmp_path / "student")
    torch.testing.assert_close(at_trained, found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", ["default", "trailing", *NUMBERS])
def test_an_export_keeps_the_models_own_scheduler(family, source, tmp_path, grid):
    """So that an exported student can be a teacher: its own grids are the source's."""
    export(family, source, grid, tmp_path / "student")
    _, config = read_scheduler_config(tmp_path / "student", "FlowMatchEulerDiscreteScheduler")
    assert (config["use_dynamic_shifting"], config["shift_terminal"]) == (True, family.terminal)
    for size in SIZES:
        own, exported = (family.library_sigmas(place, 7, size) for place in (source, tmp_path / "student"))
        expected = family.load_schedule(source).at_size(*size).default_sigmas(7)
        assert torch.equal(own, exported)
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_the_scheduler_of_a_default_grid_is_the_models(family, source, tmp_path):
    export(family, source, "default", tmp_path / "student")
    ours, theirs = (
        json.loads((place / "scheduler" / "scheduler_config.json").read_text())
        for place in (tmp_path / "student", source)
    )
    assert ours == theirs


class Stretched(ZImage):
    """Z-Image with one shift, and a stretch to a last sigma."""

    def load_schedule(self, folder: Path) -> EvenFlowSchedule:
        return EvenFlowSchedule(3.0, 0.02)


@pytest.mark.parametrize("numbers", [(1.0, 0.0), *NUMBERS.values()], ids=["one step", *NUMBERS])
def test_a_scheduler_that_stretches_neither_fails_at_one_step_nor_stretches_given_numbers(tmp_path, numbers):
    source, student = tmp_path / "source", tmp_path / "student"
    FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.02).save_pretrained(source / "scheduler")
    defaults = SamplingDefaults(steps=len(numbers) - 1, sigmas=numbers, height=512, width=512)
    family = Stretched(torch.device("cpu"), torch.float32)
    family.export_scheduler(student, source, defaults).write(student)
    torch.testing.assert_close(family.library_sigmas(student), torch.tensor(numbers), rtol=1e-5, atol=1e-6)
    _, config = read_scheduler_config(student, "FlowMatchEulerDiscreteScheduler")
    assert (config["shift"], config["shift_terminal"]) == (3.0, 0.02)
