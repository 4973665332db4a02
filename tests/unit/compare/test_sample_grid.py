"""The image grid of a sweep, with a model that makes grey images."""

import os

import pytest
import torch
from PIL import Image
from small_sweep import sweep_of

from dpdmd.compare import outputs, sample_grid
from dpdmd.compare.jobs import Job
from dpdmd.compare.sweep import SampleGrid


class GreySampler:
    """A sampler that makes grey images and records the batch sizes."""

    def __init__(self, size: int):
        self.settings = type("Settings", (), {"sigmas": torch.zeros(5)})
        self.size, self.batches = size, []

    def sweep(self, encoder, prompts, batches, seed, progress):
        for keys in batches:
            self.batches.append(len(keys))
            yield keys, torch.full((len(keys), 3, self.size, self.size), 0.5)


@pytest.mark.parametrize(("on_gpu", "sizes"), [(True, [4, 4, 1]), (False, [9])])
def test_the_grid_fits_a_gpu_and_a_screen(tmp_path, monkeypatch, on_gpu, sizes):
    """A GPU samples in bf16 and small batches, unless accelerate is told to use the CPU. Tiles have <= 256 pixels."""
    model, asked = GreySampler(600), []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(not on_gpu))
    monkeypatch.setattr(
        sample_grid, "load_sampler", lambda path, device, dtype: asked.append((device.type, dtype)) or (model, None)
    )
    sample_grid.draw_sample_grid(SampleGrid(("a red circle",), ("a",)), {"a": tmp_path}, tmp_path / "picture.png")
    assert asked == [("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)] and model.batches == sizes
    with Image.open(tmp_path / "picture.png") as made:
        assert 9 * 256 <= made.width < 9 * 264 and made.height < 2 * 256


def test_a_grid_of_other_rows_is_drawn_anew(tmp_path, monkeypatch):
    """A part of a sweep has its own rows, and is newer than the records of the whole sweep."""
    monkeypatch.setattr(sample_grid, "load_sampler", lambda *arguments, **more: (GreySampler(64), None))
    (tmp_path / "sweep.yaml").touch()
    jobs = [Job(name, None, tmp_path / name, tmp_path / name, ()) for name in "ab"]
    sweep = sweep_of({"a": "a", "b": "b"}, path=tmp_path / "sweep.yaml", sample_grid=SampleGrid(("x",), ("a", "b"), 1))
    picture = tmp_path / "picture.png"
    seen = []
    for part in (jobs[:1], jobs, jobs):
        assert outputs.write_sample_grid(sweep, part, tmp_path) == []
        seen.append(picture.stat().st_ino)
        os.utime(picture, (2**32, 2**32))
    assert seen[0] != seen[1] == seen[2]
    with Image.open(picture) as drawn:
        assert drawn.height > 2 * 64


def test_an_image_that_is_not_finite_is_an_error(tmp_path, monkeypatch):
    """It would be black, as if the model had drawn it."""

    class NotFinite(GreySampler):
        def sweep(self, *arguments, **more):
            yield from ((keys, made * float("nan")) for keys, made in super().sweep(*arguments, **more))

    monkeypatch.setattr(sample_grid, "load_sampler", lambda *arguments, **more: (NotFinite(64), None))
    with pytest.raises(ValueError, match=f"--model {tmp_path}: its images are not finite"):
        sample_grid.draw_sample_grid(SampleGrid(("a red circle",), ("a",)), {"a": tmp_path}, tmp_path / "picture.png")


def test_a_full_device_is_one_line(tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it")

    monkeypatch.setattr(sample_grid, "load_sampler", full)
    with pytest.raises(ValueError, match="out of memory") as error:
        sample_grid.draw_sample_grid(SampleGrid(("a red circle",), ("a",)), {"a": tmp_path}, tmp_path / "picture.png")
    assert "Tried to allocate 2 GiB" in str(error.value) and "\n" not in str(error.value)
