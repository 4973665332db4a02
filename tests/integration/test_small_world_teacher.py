"""The training of the small world's teacher, in a few updates."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from dpdmd.shapes import teacher, world
from dpdmd.shapes.recipes import Cycle, Recipe
from dpdmd.shapes.teacher import train_teacher

ROOT = Path(__file__).resolve().parents[2]
CYCLES = (Cycle(2, 1.0, logit_normal=False), Cycle(1, 0.5, logit_normal=True))


class StoppedError(Exception):
    pass


def test_an_interrupted_training_continues_after_its_last_whole_cycle(tmp_path, monkeypatch):
    vae = AutoencoderKL.from_pretrained(ROOT / "weights" / "tiny" / "sd35" / "vae")
    steps, set_gradients = [], teacher.set_gradients

    def train(folder, seed=0):
        trained = train_teacher(vae, seed, Recipe(world, 0, 1, 8, CYCLES), batch_size=4, saved=folder)
        return trained.transformer.state_dict()

    def at_most_two(*given):
        if len(steps) == 2:
            raise StoppedError
        steps.append(set_gradients(*given))
        return steps[-1]

    whole = train(tmp_path / "whole")
    monkeypatch.setattr(teacher, "set_gradients", at_most_two)
    with pytest.raises(StoppedError):
        train(tmp_path / "parts")
    steps.clear()
    continued = train(tmp_path / "parts")
    assert len(steps) == 1 and all(torch.equal(continued[name], weight) for name, weight in whole.items())
    with pytest.raises(StoppedError):  # another seed does not continue, so it takes three steps
        steps.clear()
        train(tmp_path / "parts", seed=1)
