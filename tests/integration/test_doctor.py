"""`dpdmd.doctor`: every check passes on a sound trainer, and each fails when its fault is put in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_distillation import method_flags

from dpdmd import doctor
from dpdmd.distributed import sharding
from dpdmd.methods import losses, updates
from dpdmd.models import base
from dpdmd.models.sd35.family import SD35
from dpdmd.sampling import rollout
from dpdmd.training import doctor_checks, optimizer_state
from dpdmd.utils import rng


@pytest.fixture
def run_doctor(short_run, tmp_path, tiny_scorers):
    """Run the doctor; returns its status and the names of the checks that failed."""

    def run(*more: str) -> tuple[int, set[str]]:
        scorers = [part for name, path in tiny_scorers.items() for part in (f"--{name}", path)]
        status = doctor.main([*short_run, *scorers, "--out", str(tmp_path / "doctor"), *more])
        rows = [line.split(" | ") for line in (tmp_path / "doctor" / "table.md").read_text().splitlines()[2:]]
        return status, {row[0].removeprefix("| ") for row in rows if row[1] != "ok"}

    return run


@pytest.mark.parametrize("method", ["dmd_gan", "dmd_lpips"])
@pytest.mark.parametrize("more", [["--ema_decay", "0.9"], ["--rollout", "dmd2"], ["--grad_steps", "last"]], ids=str)
def test_a_compared_method_passes(run_doctor, tiny_scorers, method, more):
    assert run_doctor(*method_flags(method, tiny_scorers), *more) == (0, set())


@pytest.mark.parametrize("method", ["dpdmd", "dmd"])
@pytest.mark.parametrize("more", [[], ["--student_sigmas", "1.0,0.7"], ["--lora_rank", "4"]], ids=str)
def test_a_sound_trainer_passes(run_doctor, tmp_path, capsys, method, more):
    assert run_doctor("--method", method, *more) == (0, set())
    out = capsys.readouterr().out
    assert "| resume | ok |" in out and "1 process on cpu, " in out
    written = ["environment.json", "memory.txt", "pictures.png", "table.md"]
    assert sorted(path.name for path in (tmp_path / "doctor").iterdir()) == written
    assert json.loads((tmp_path / "doctor" / "environment.json").read_text())["processes"] == 1


def wrong_guidance(monkeypatch):
    monkeypatch.setattr(base, "guide", lambda unconditional, conditional, scale: conditional * scale)


def rows_that_mix(monkeypatch):
    healthy = SD35.predict

    def predict(self, network, z, sigma, text):
        found = healthy(self, network, z, sigma, text)
        return found + found.mean(dim=0)

    monkeypatch.setattr(SD35, "predict", predict)


def deaf_teacher(monkeypatch):
    healthy = SD35.predict

    def predict(self, network, z, sigma, text):
        empty = base.TextEmbedding(torch.zeros_like(text.context), torch.zeros_like(text.pooled))
        return healthy(self, network, z, sigma, empty)

    monkeypatch.setattr(SD35, "predict", predict)


def wrong_sign(monkeypatch):
    healthy = losses.dmd_loss
    monkeypatch.setattr(losses, "dmd_loss", lambda x, real, fake, z_t, norm: healthy(x, fake, real, z_t, norm))


def no_detach(monkeypatch):
    healthy = rollout.rollout
    monkeypatch.setattr(updates, "rollout", lambda *given, detach_first_step=False, **named: healthy(*given, **named))


def same_noise(monkeypatch):
    healthy = rng.normal_per_sample

    def draw(shape, seed, purpose, step, samples, device="cpu"):
        return healthy(shape, seed, purpose, step, [0] * len(samples), device)

    monkeypatch.setattr(rng, "normal_per_sample", draw)


def clipping_by_a_part(monkeypatch):
    healthy = sharding.gradient_norm
    monkeypatch.setattr(sharding, "gradient_norm", lambda parameters: healthy(parameters[: len(parameters) // 2]))


def forgotten_moments(monkeypatch):
    monkeypatch.setattr(optimizer_state, "restore_optimizer_state", lambda *_: None)


def a_flipped_step(monkeypatch):
    healthy = doctor_checks._restore

    def restore(trainer, snapshot):
        healthy(trainer, snapshot)
        trained = trainer.trained["student"]
        with torch.no_grad():
            trained.parameters[0].view(-1)[0] += 4 * trained.optimizer.param_groups[0]["lr"]

    monkeypatch.setattr(doctor_checks, "_restore", restore)


def another_grid(monkeypatch):
    healthy = SD35.library_sigmas
    monkeypatch.setattr(SD35, "library_sigmas", lambda *given: healthy(*given) ** 1.01)


def bf16_weights(monkeypatch):
    healthy = SD35.load_network
    monkeypatch.setattr(SD35, "load_network", lambda self, folder, dtype: healthy(self, folder, torch.bfloat16).float())
    monkeypatch.setattr(sharding, "prepare", lambda _, network, optimizer, whole: (network, frozen(optimizer)))


def frozen(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Rounds every update away, as bf16 weights would most of them."""
    optimizer.step = lambda: None
    return optimizer


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (wrong_guidance, "guidance"),
        (deaf_teacher, "guidance"),
        (wrong_sign, "sign of the DMD gradient"),
        (no_detach, "detach after step 1"),
        (same_noise, "noise of each rank"),
        (clipping_by_a_part, "clipping"),
        (forgotten_moments, "resume"),
        (another_grid, "sigma grids"),
        (bf16_weights, "master weights"),
    ],
)
def test_each_fault_fails_its_check(run_doctor, monkeypatch, fault, check):
    fault(monkeypatch)
    status, failed = run_doctor()
    assert status == 1 and check in failed


@pytest.mark.parametrize(("fault", "passes"), [(None, True), (a_flipped_step, True), (forgotten_moments, False)])
@pytest.mark.parametrize("more", [[], ["--lora_rank", "4"]], ids=str)
def test_the_limit_of_a_gpu_allows_rounding_and_no_lost_moments(run_doctor, monkeypatch, fault, passes, more):
    """Its sums have no fixed order, which may turn an element's first steps around."""
    monkeypatch.setattr(doctor_checks, "_resume_limit", lambda device: doctor_checks.RESUME_LIMIT)
    if fault:
        fault(monkeypatch)
    _, failed = run_doctor(*more)
    assert ("resume" in failed) != passes


def test_two_doctors_do_not_share_a_folder(tmp_path):
    """What a killed one left is cleared."""
    (tmp_path / ".scratch" / "student").mkdir(parents=True)
    with doctor.scratch_folder(tmp_path) as folder:
        assert [path for path in folder.iterdir() if path.is_dir()] == []
        other = f"from pathlib import Path; from dpdmd import doctor; doctor.scratch_folder(Path({str(tmp_path)!r}))"
        done = subprocess.run([sys.executable, "-c", f"{other}.__enter__()"], capture_output=True, text=True)
        assert "another doctor is at work there" in done.stderr and folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_fails_a_check_and_keeps_its_diagnostic(run_doctor, tmp_path):
    """Also if the run itself would skip such updates."""
    status, failed = run_doctor("--lr_fake", "100", "--max_grad_norm", "1e30", "--nonfinite", "skip")
    (diagnostic,) = (tmp_path / "doctor" / "diagnostics").iterdir()
    assert status == 1 and "training" in failed
    assert f"see {diagnostic}" in (tmp_path / "doctor" / "table.md").read_text()


def test_a_run_on_several_devices_with_large_checkpoints(run_doctor, monkeypatch):
    """On one process nothing is sharded, and the doctor writes no checkpoint."""
    monkeypatch.setattr("dpdmd.utils.paths.free_bytes", lambda path: 0)
    assert run_doctor("--shard_teacher", "--lora_rank", "4") == (0, set())


@pytest.mark.parametrize("fault", [wrong_guidance, rows_that_mix])
def test_bf16_hides_no_fault_of_the_guidance(run_doctor, monkeypatch, fault):
    """bf16 has a limit of its own, which follows how far a prompt alone and in a batch are apart."""
    fault(monkeypatch)
    status, failed = run_doctor("--bf16")
    assert status == 1 and "guidance" in failed


def test_wrong_input_has_the_trainers_message(tmp_path, capsys):
    assert doctor.main(["--teacher_id", "nowhere", "--out", str(tmp_path)]) == 2
    assert "dpdmd.doctor: error: --teacher_id nowhere: no such folder" in capsys.readouterr().err
    assert list(Path(tmp_path).iterdir()) == []
    for name in ("metrics.jsonl", ".lock"):
        (tmp_path / name).touch()
        assert doctor.main(["--out", str(tmp_path)]) == 2
        assert "is the folder of a run, whose files it would replace; give another" in capsys.readouterr().err
        (tmp_path / name).unlink()
    for name in ("table.md", "memory.txt", "environment.json", "pictures.png"):
        (tmp_path / name).write_text("{}")
        assert doctor.main(["--out", str(tmp_path)]) == 2
        assert f"{tmp_path / name} would be replaced, and nothing shows" in capsys.readouterr().err
        (tmp_path / name).unlink()
    (tmp_path / "environment.json").write_text('{"versions": {}}')  # of a doctor that was ended
    (tmp_path / "pictures.png").touch()
    assert doctor.main(["--teacher_id", "nowhere", "--out", str(tmp_path)]) == 2
    assert "--teacher_id nowhere: no such folder" in capsys.readouterr().err
    assert doctor.main(["--out", __file__]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
