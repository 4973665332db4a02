"""Signals, non-finite losses and too little memory end a run early; a failing tracker does not."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from dpdmd import train
from dpdmd.evaluation.in_loop import InLoopEvaluation
from dpdmd.methods import updates
from dpdmd.methods.context import LossResult
from dpdmd.run_folder import RunFolder
from dpdmd.training import trackers

STUDENT = "student/transformer/diffusion_pytorch_model.safetensors"
DRIVERS = Path(__file__).parent / "drivers"


@pytest.fixture
def flags(short_run: list[str], tmp_path: Path) -> list[str]:
    return [*short_run, "--run_dir", str(tmp_path / "run"), "--ckpt_every", "100", "--vis_every", "0"]


def replace_call(monkeypatch: pytest.MonkeyPatch, name: str, number: int, act) -> None:
    """Replace the `number`-th call of a loss function of `updates` by `act(loss function, run, batch)`."""
    healthy, calls = getattr(updates, name), []

    def loss(run, batch):
        calls.append(batch.step)
        return act(healthy, run, batch) if len(calls) == number else healthy(run, batch)

    monkeypatch.setattr(updates, name, loss)


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGUSR1, 138),
        (signal.SIGUSR2, 140),
        (signal.SIGXCPU, 152),
        (signal.SIGHUP, 129),
    ],
)
def test_a_signal_saves_and_the_run_can_be_resumed(flags, tmp_path, monkeypatch, capsys, number, status):
    """The step is finished, the status is 128 + the signal's number, and the resumed run ends with the same bytes."""
    whole, run, before = tmp_path / "whole", tmp_path / "run", signal.getsignal(number)
    assert train.main([*flags, "--run_dir", str(whole), "--max_steps", "7"]) == 0
    with monkeypatch.context() as patch:

        def killed(healthy, run_, batch):
            os.kill(os.getpid(), number)
            return healthy(run_, batch)

        replace_call(patch, "fake_score_loss", 3, killed)
        assert train.main([*flags, "--max_steps", "7"]) == status
    assert f"stopped: {number.name}: saved at step 3" in capsys.readouterr().err
    assert os.readlink(run / "ckpts" / "latest") == "step_000003" and len(records(run)) == 3
    assert signal.getsignal(number) == before
    assert train.main([*flags, "--max_steps", "7", "--resume_from_checkpoint", "latest"]) == 0
    ours, theirs = (folder / "ckpts" / "step_000007" / STUDENT for folder in (run, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_signal_in_the_last_step_leaves_the_evaluation_to_the_next_call(
    flags, tiny_scorers, tmp_path, monkeypatch, capsys
):
    """It may take hours, and a scheduler that sends a signal waits a minute."""
    flags = [*flags, "--max_steps", "4", "--dino_path", tiny_scorers["dino_path"], "--eval_every", "4"]
    with monkeypatch.context() as patch:

        def killed(healthy, run_, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            return healthy(run_, batch)

        replace_call(patch, "fake_score_loss", 4, killed)
        assert train.main(flags) == 143
    assert "stopped: SIGTERM: saved at step 4" in capsys.readouterr().err
    evaluated = [record["step"] for record in records(tmp_path / "run") if record["turn"] == "eval"]
    assert train.main([*flags, "--resume_from_checkpoint", "latest"]) == 0
    assert [record["step"] for record in records(tmp_path / "run") if record["turn"] == "eval"] == [*evaluated, 4]


@pytest.mark.parametrize(
    ("at", "says", "saved"),
    [
        (0, "SIGTERM: at step 0, as it began; continue with --resume_from_checkpoint latest", []),
        (2, "SIGTERM: saved at step 2; continue with --resume_from_checkpoint latest", ["step_000002"]),
    ],
)
def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    flags, tiny_scorers, tmp_path, monkeypatch, capsys, at, says, saved
):
    """The steps so far are saved, and the resumed run ends with the bytes and scores of one that was left alone."""
    scorer = ["--dino_path", tiny_scorers["dino_path"], "--eval_every", "2", "--num_div_seeds", "2"]
    flags, scored = [*flags, *scorer, "--eval_batch_size", "1", "--max_steps", "4"], []
    assert train.main([*flags, "--run_dir", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        healthy = InLoopEvaluation._score_set

        def killed(self, sampler, image_set, title, folder):
            if title == f"step {at}":
                after = self.after_batch
                self.after_batch = lambda: (scored.append(1), os.kill(os.getpid(), signal.SIGTERM), after())
            return healthy(self, sampler, image_set, title, folder)

        patch.setattr(InLoopEvaluation, "_score_set", killed)
        assert train.main(flags) == 143 and len(scored) == 1
    assert f"stopped: {says}" in capsys.readouterr().err
    run, whole = RunFolder.of(tmp_path / "run"), RunFolder.of(tmp_path / "whole")
    assert [path.name for path in run.checkpoints()] == saved
    assert train.main([*flags, "--resume_from_checkpoint", "latest"]) == 0
    assert (run.latest() / STUDENT).read_bytes() == (whole.latest() / STUDENT).read_bytes()
    ours, theirs = (
        [{**record, "seconds": 0} for record in records(each.root) if record["turn"] == "eval"] for each in (run, whole)
    )
    assert ours == theirs


def test_a_second_interrupt_does_not_wait(flags, monkeypatch):
    def impatient(healthy, run, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return healthy(run, batch)

    replace_call(monkeypatch, "fake_score_loss", 2, impatient)
    with pytest.raises(KeyboardInterrupt):
        train.main([*flags, "--max_steps", "4"])


def test_training_in_another_thread_leaves_signals_alone(flags):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train.main, [*flags, "--max_steps", "1"]).result() == 0


def test_a_signal_to_one_rank_stops_all(flags, tmp_path, run_processes):
    """Only rank 1 gets the signal; both ranks finish the step, and rank 0 saves."""
    command = [str(DRIVERS / "signal_one_rank.py"), *flags, "--max_steps", "7"]
    result = run_processes(command, check=False)
    assert result.returncode != 0
    assert result.stderr.count("dpdmd.train: stopped: SIGTERM: saved at step 3") == 2
    assert "threads left" not in result.stderr
    assert os.readlink(tmp_path / "run" / "ckpts" / "latest") == "step_000003"


def test_a_run_folder_that_machines_do_not_share_is_not_resumed(flags, run_processes):
    """Rank 0 would wait for the other, which finds nothing to continue."""
    command = [str(DRIVERS / "unshared_folder.py"), *flags, "--max_steps"]
    run_processes([*command, "2"])
    result = run_processes([*command, "4", "--resume_from_checkpoint", "latest"], check=False)
    assert result.returncode != 0
    assert result.stderr.count("error: --resume_from_checkpoint latest: not every process finds a checkpoint; put") == 2


def poison(healthy, run, batch):
    """Return a loss with a gradient that is not finite."""
    result = healthy(run, batch)
    return LossResult(result.loss * float("nan"), result.metrics, result.latents)


def test_a_nonfinite_gradient_leaves_a_diagnostic(flags, tmp_path, monkeypatch, capsys):
    """It holds the step, the kind of update, and each rank's prompts and statistics of the tensors in the loss."""
    replace_call(monkeypatch, "student_loss", 1, poison)
    assert train.main([*flags, "--max_steps", "7"]) == 1
    assert "step 6, student update: grad_norm is nan" in capsys.readouterr().err
    diagnostic = json.loads((tmp_path / "run" / "diagnostics" / "nonfinite_step_000006.json").read_text())
    assert diagnostic["step"] == 6 and diagnostic["turn"] == "student" and diagnostic["metrics"]["grad_norm"] == "nan"
    (rank,) = diagnostic["ranks"]
    assert len(rank["prompts"]) == 2
    assert rank["latents"].keys() == {"student", "x0_real", "x0_fake"}
    assert rank["latents"]["student"]["nonfinite_share"] == 0 and rank["latents"]["student"]["std"] > 0


@pytest.mark.parametrize(("loss", "step"), [("fake_score_loss", 1), ("student_loss", 6)])
def test_nonfinite_skip_goes_on_and_counts(flags, tmp_path, monkeypatch, loss, step):
    """The skipped update changes no weight and no optimizer; the records say so, and are valid JSON."""
    replace_call(monkeypatch, loss, 1, poison)
    assert train.main([*flags, "--max_steps", "7", "--nonfinite", "skip"]) == 0
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines if line.get("skipped")] == [step]
    assert lines[step - 1]["grad_norm"] is None and "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    manifest = json.loads((tmp_path / "run" / "ckpts" / "step_000007" / "manifest.json").read_text())
    updates = sum(manifest["progress"]["updates"].values())
    assert updates == 6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20.00 GiB.\nmore"),
    ],
)
def test_too_little_memory_names_the_flags(flags, tmp_path, monkeypatch, capsys, error):
    def starved(healthy, run, batch):
        raise error

    replace_call(monkeypatch, "fake_score_loss", 2, starved)
    assert train.main([*flags, "--max_steps", "4"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--batch_size" in line and "--gradient_checkpointing" in line and "20.00 GiB" in line
    assert "most in: student update" in line and "student, graphs 0.0 GB" in line
    table = (tmp_path / "run" / "log" / "log.txt").read_text()
    assert "device memory of a process" in table and "student, master weights" in table
    assert len(records(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    "owner, method", [(trackers, "start_tracker"), (SummaryWriter, "add_scalar"), (SummaryWriter, "close")]
)
def test_a_tracker_that_fails_does_not_stop_training(flags, tmp_path, monkeypatch, owner, method):
    def broken(*_, **__):
        raise ConnectionError("the tracker's server is gone")

    monkeypatch.setattr(owner, method, broken)
    assert train.main([*flags, "--max_steps", "2", "--report_to", "tensorboard"]) == 0
    log = (tmp_path / "run" / "log" / "log.txt").read_text()
    assert log.count("the tracker failed") == 1 and "server is gone" in log and len(records(tmp_path / "run")) == 2


def test_sigkill_at_any_moment_loses_only_the_steps_since_the_last_checkpoint(short_run, tmp_path):
    """After two kills, the weights equal those of a run without kills; benchmarks/chaos.py does twenty."""
    command = [sys.executable, "benchmarks/chaos.py", "--kills", "2", "--steps", "40", "--work", str(tmp_path)]
    flags = ["--flags", " ".join(short_run), "--out", str(tmp_path / "result")]
    root = Path(__file__).parents[2]
    done = subprocess.run([*command, *flags], cwd=root, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal to the last byte" in done.stdout
    assert RunFolder.of(tmp_path / "killed").latest().name == "step_000040"
