"""Learning rates: against diffusers' own schedules, in closed form, and over a run that is resumed."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.optimization import get_scheduler

from dpdmd import train
from dpdmd.config.options import LR_SCHEDULERS
from dpdmd.methods import updates
from dpdmd.methods.context import LossResult
from dpdmd.run_folder import LATEST, RunFolder
from dpdmd.training.lr_schedules import lr_factor

WEIGHTS = (
    "student/transformer/diffusion_pytorch_model",
    "state/fake",
    "state/optimizer_student",
    "state/optimizer_fake",
)


@pytest.mark.parametrize("name", LR_SCHEDULERS)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (10, 0), (10, 3), (1000, 100), (7, 6)])
def test_the_curves_are_those_of_diffusers_names(name, total, warmup):
    """`--lr_scheduler cosine` here is `--lr_scheduler cosine` in diffusers' training scripts."""
    given = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(given, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for update in range(total):
        assert lr_factor(name, update, total, warmup) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_known_places_of_the_curves():
    assert lr_factor("constant", 5, 10, 0) == 1.0
    assert [lr_factor("constant", update, 10, 4) for update in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert lr_factor("linear", 6, 10, 2) == 0.5 and lr_factor("linear", 10, 10, 2) == 0
    assert lr_factor("cosine", 6, 10, 2) == pytest.approx(0.5)
    assert lr_factor("cosine", 4, 10, 2) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert lr_factor("linear", 20, 10, 0) == lr_factor("cosine", 10, 10, 0) == 0
    with pytest.raises(ValueError, match="polynomial"):
        lr_factor("polynomial", 5, 10, 0)


def rates(run: Path, turn: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if line["turn"] == turn]


def test_each_network_goes_through_its_own_schedule_and_a_resume_changes_nothing(short_run, tmp_path, monkeypatch):
    """18 steps are 15 fake updates and 3 of the student; optimizers use what is recorded, also after a resume."""
    whole, parts, used = tmp_path / "whole", tmp_path / "parts", []
    healthy = torch.optim.AdamW.step

    def watched(self, *arguments):
        used.append(self.param_groups[0]["lr"])
        return healthy(self, *arguments)

    flags = [*short_run, "--vis_every", "0", "--max_steps", "18", "--ckpt_every", "8", "--lr_fake", "2e-3"]
    flags += ["--lr_scheduler", "cosine", "--lr_warmup_steps", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        assert train.main([*flags, "--run_dir", str(whole)]) == 0
    student = [1e-3 * lr_factor("cosine", update, 3, 2) for update in range(3)]
    fake = [2e-3 * lr_factor("cosine", update, 15, 2) for update in range(15)]
    assert rates(whole, "student") == student and rates(whole, "fake") == fake
    assert used == [*fake[:5], student[0], *fake[5:10], student[1], *fake[10:], student[2]]
    shutil.copytree(whole, parts, symlinks=True)
    folder = RunFolder.of(parts)
    for step in (16, 18):
        shutil.rmtree(folder.checkpoint(step))
    folder.point(LATEST, folder.checkpoint(8))
    assert train.main([*flags, "--run_dir", str(parts), "--resume_from_checkpoint", "latest"]) == 0
    assert rates(parts, "student") == student and rates(parts, "fake") == fake
    for name in WEIGHTS:
        ours, theirs = (run / "ckpts" / "step_000018" / f"{name}.safetensors" for run in (parts, whole))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_skipped_update_does_not_move_the_schedule(short_run, tmp_path, monkeypatch):
    """What is counted is turns, which the step alone tells: a run that was not poisoned has the same rates."""
    healthy = updates.fake_score_loss

    def poisoned(run, batch):
        result = healthy(run, batch)
        factor = float("nan") if batch.step == 1 else 1.0
        return LossResult(result.loss * factor, result.metrics, result.images)

    monkeypatch.setattr(updates, "fake_score_loss", poisoned)
    flags = ["--vis_every", "0", "--max_steps", "6", "--nonfinite", "skip", "--lr_scheduler", "linear"]
    assert train.main([*short_run, *flags, "--run_dir", str(tmp_path / "run")]) == 0
    assert rates(tmp_path / "run", "fake") == [1e-3 * (1 - update / 5) for update in range(5)]
