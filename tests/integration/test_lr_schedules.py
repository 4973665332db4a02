"""Learning rates over a run, over a run that is resumed, and after a skipped update."""

import json
import shutil
from pathlib import Path

import torch

from dpdmd import train
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
    """Steps are counted, not updates that were made: a run without the bad step has the same rates."""
    healthy = updates.fake_score_loss

    def poisoned(run, batch):
        result = healthy(run, batch)
        factor = float("nan") if batch.step == 1 else 1.0
        return LossResult(result.loss * factor, result.metrics, result.latents)

    monkeypatch.setattr(updates, "fake_score_loss", poisoned)
    flags = ["--vis_every", "0", "--max_steps", "6", "--nonfinite", "skip", "--lr_scheduler", "linear"]
    assert train.main([*short_run, *flags, "--run_dir", str(tmp_path / "run")]) == 0
    assert rates(tmp_path / "run", "fake") == [1e-3 * (1 - update / 5) for update in range(5)]


def test_a_run_of_another_length_says_where_its_curves_jump(short_run, tmp_path, capfd):
    flags = [*short_run, "--run_dir", str(tmp_path / "run"), "--vis_every", "0", "--resume_from_checkpoint", "latest"]
    flags += ["--lr_scheduler", "linear", "--div_weight_schedule", "increasing", "--div_weight", "2"]
    assert train.main([*flags, "--max_steps", "12"]) == 0
    assert "jumps" not in capfd.readouterr().err
    assert train.main([*flags, "--max_steps", "24"]) == 0
    said = capfd.readouterr().err
    why = "at the resume, because the run ends at step 24 and not at 12"
    assert f"--lr_scheduler: the learning rate jumps from 0% to 50% {why}" in said
    assert f"--div_weight_schedule: lambda jumps from 2 to 1 {why}" in said
