"""Nothing in a step waits for the device, and metrics that are read a step later have the same effect.

The device is "meta" here, not a GPU: its tensors have no values, so that reading one raises an error, and copies from
the host to it are watched. Effects on values are tested with torch's fused AdamW on a CPU, whose kernel skips a
non-finite update as the GPU's does.
"""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dpdmd import config, train
from dpdmd.methods import losses, updates
from dpdmd.methods.context import DistillationContext, LossResult
from dpdmd.methods.networks import Networks
from dpdmd.models.base import TextEmbedding, TextEncoder
from dpdmd.training import preflight, trainer
from dpdmd.training.step import TrainedNetwork
from dpdmd.training.trainer import Trainer

DRIVERS = Path(__file__).parents[1] / "processes" / "drivers"
META = torch.device("meta")
NOT_READABLE = (RuntimeError, NotImplementedError)


class Uploads(TorchDispatchMode):
    """Refuses a copy to the device that would wait for it, and a host tensor that indexes one of the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        tensors = [value for value in args if isinstance(value, Tensor)]
        name = str(function)
        if name.startswith("aten._to_copy") and tensors[0].device != META and result.device == META:
            assert kwargs.get("non_blocking"), "a copy to the device that waits for it"
        if name.startswith("aten.index") and tensors[0].device == META:
            places = [place for part in args[1:] if isinstance(part, (list, tuple)) for place in part]
            assert all(place is None or place.device == META for place in places), "an index that lies on the host"
        return result


class Makings(TorchFunctionMode):
    """Refuses values that are written on the host and made a tensor of the device, which waits as a copy does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            assert torch.device(kwargs["device"]) != META, "a tensor of the device made from the host's values"
        return function(*args, **kwargs)


class SkippingOptimizer:
    """Says, as torch's fused AdamW on a GPU would, that it skips by itself; records how it was asked to step."""

    def __init__(self):
        self.param_groups = [{"fused": True, "lr": 0.0}]
        self.asked: list[Tensor] = []

    def step(self):
        self.asked.append(self.found_inf)

    def zero_grad(self):
        pass


class TextOnDevice(TextEncoder):
    """Embeddings of another stream's making: `text_stream` says why what encoding waits for is no matter here."""

    def __init__(self, example: TextEmbedding):
        self.example = example

    def encode(self, prompts: list[str]) -> TextEmbedding:
        return self.example.expand(len(prompts))


def on_meta(network: torch.nn.Module) -> torch.nn.Module:
    return network.to(META)


@pytest.fixture
def on_device(short_run, tmp_path, monkeypatch) -> Callable[..., Trainer]:
    """Return a function that makes a trainer, with more flags, whose networks, grids and text lie on the device."""

    def make(*more: str) -> Trainer:
        flags = ["--run_dir", str(tmp_path / "run"), "--grad_accum", "2", "--fake_rollout_reuse", "2"]
        return move(Trainer(preflight.check(config.parse([*short_run, *flags, "--anchor_steps", "1", *more]))))

    def move(trainer: Trainer) -> Trainer:
        monkeypatch.setattr(
            torch, "autocast", lambda *_, **__: nullcontext()
        )  # it knows no meta device; compute is fp32
        monkeypatch.setattr(trainer.accelerator.state, "device", META)
        run = trainer.run
        student, fake = on_meta(run.networks.student), on_meta(run.networks.fake)
        null = TextEmbedding(run.null.context.to(META), run.null.pooled.to(META))
        trainer.run = dataclasses.replace(
            run,
            networks=Networks(on_meta(run.networks.teacher), student, fake),
            student_forward=student,
            fake_forward=fake,
            null=null,
            **DistillationContext.grids(run.config, run.schedule, META),
        )
        trainer.text_encoder = TextOnDevice(null)
        trainer.trained["student"] = TrainedNetwork(student, SkippingOptimizer(), list(student.parameters()), 1e-3)
        trainer.trained["fake"] = TrainedNetwork(fake, SkippingOptimizer(), list(fake.parameters()), 1e-3)
        return trainer

    return make


@pytest.fixture
def device_trainer(on_device) -> Trainer:
    return on_device()


SDXL = ["--family", "sdxl", "--teacher_guidance_scale", "8", "--k_anchor"]


@pytest.mark.parametrize("more", [[], [*SDXL, "1"], [*SDXL, "4"]], ids=["sd35", "sdxl", "sdxl, to the end"])
def test_nothing_in_a_step_waits_for_the_device(on_device, tiny_sdxl, more):
    """Six steps of both kinds read no value, and no copy waits; only finishing a step reads."""
    device_trainer = on_device(*more, *(["--teacher_id", str(tiny_sdxl)] if more else []))
    with Uploads(), Makings():
        taken = [device_trainer.start_step(step) for step in range(6)]
    assert (
        len(device_trainer.trained["fake"].optimizer.asked) == 5
        and len(device_trainer.trained["student"].optimizer.asked) == 1
    )
    for pending in taken:
        with pytest.raises(NOT_READABLE):
            device_trainer.finish_step(pending)


WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.detach().sum()),
    "tolist": lambda x: x.tolist(),
    "a condition": lambda x: 1 if x.isfinite().all() else 0,
    "cpu": lambda x: x.cpu(),
    "a blocking copy": lambda x: torch.ones(3).to(x.device),
    "a tensor of a number": lambda x: torch.tensor(1.0, device=x.device),
    "an index of the host": lambda x: x[torch.tensor([0])],
}


@pytest.mark.parametrize("wait", WAITS)
def test_each_way_to_wait_is_seen(device_trainer, monkeypatch, wait):
    healthy = losses.fake_score_loss

    def waiting(prediction, target):
        WAITS[wait](prediction)
        return healthy(prediction, target)

    monkeypatch.setattr(losses, "fake_score_loss", waiting)
    with Uploads(), Makings(), pytest.raises((AssertionError, *NOT_READABLE)):
        device_trainer.start_step(0)


def test_an_optimizer_that_cannot_skip_waits_for_the_metrics(device_trainer):
    """The guard of the test above: without a kernel that skips, the host has to know, and reads."""
    device_trainer.trained["fake"].optimizer.param_groups[0]["fused"] = None
    with pytest.raises(NOT_READABLE):
        device_trainer.start_step(0)


@pytest.fixture
def lagging(short_run, tmp_path, monkeypatch) -> list[str]:
    """Flags of runs on a CPU whose metrics are read a step late, as on a GPU."""
    healthy = torch.optim.AdamW

    def fused(*arguments, **options):
        return healthy(*arguments, **{**options, "fused": True})

    monkeypatch.setattr(torch.optim, "AdamW", fused)
    return [*short_run, "--run_dir", str(tmp_path / "run"), "--vis_every", "0", "--ckpt_every", "100"]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state(checkpoint: Path) -> dict[str, bytes]:
    names = ("student/transformer/diffusion_pytorch_model", "state/fake", "state/optimizer_student")
    return {name: (checkpoint / f"{name}.safetensors").read_bytes() for name in names}


def poison_step(monkeypatch, step: int) -> None:
    """The gradient of one step is nan."""
    for name in ("fake_score_loss", "student_loss"):
        healthy = getattr(updates, name)

        def poisoned(run, batch, healthy=healthy):
            result = healthy(run, batch)
            factor = float("nan") if batch.step == step else 1.0
            return LossResult(result.loss * factor, result.metrics, result.latents)

        monkeypatch.setattr(updates, name, poisoned)


def test_metrics_that_come_late_are_those_of_their_step(lagging, tmp_path, monkeypatch):
    """Every step is recorded in order, with the metrics of a run that reads at once; a checkpoint has all updates."""
    late, at_once = tmp_path / "run", tmp_path / "at_once"
    assert train.main([*lagging, "--max_steps", "8"]) == 0
    monkeypatch.setattr(Trainer, "lag", property(lambda self: 0, lambda self, value: None), raising=False)
    assert train.main([*lagging, "--max_steps", "8", "--run_dir", str(at_once)]) == 0
    names = ("step", "turn", "loss_fake", "loss_student", "loss_dmd", "grad_norm", "lr")
    ours, theirs = ([{name: line.get(name) for name in names} for line in records(run)] for run in (late, at_once))
    assert ours == theirs and [line["step"] for line in ours] == list(range(1, 9))
    last = "ckpts/step_000008"
    assert state(late / last) == state(at_once / last)
    progress = json.loads((late / last / "manifest.json").read_text())["progress"]
    assert progress["step"] == 8 and progress["updates"] == {"student": 1, "fake": 7}


@pytest.mark.parametrize(("step", "turn"), [(2, "fake"), (5, "student"), (7, "fake")])
def test_a_late_stop_names_the_right_step(lagging, tmp_path, monkeypatch, capsys, step, turn):
    """The next step has begun, but message, prompts and statistics are those of the step that failed."""
    poison_step(monkeypatch, step)
    assert train.main([*lagging, "--max_steps", "8"]) == 1
    assert f"step {step + 1}, {turn} update: grad_norm is nan" in capsys.readouterr().err
    diagnostic = json.loads((tmp_path / "run" / "diagnostics" / f"nonfinite_step_{step + 1:06d}.json").read_text())
    assert diagnostic["step"] == step + 1 and diagnostic["turn"] == turn
    (rank,) = diagnostic["ranks"]
    expected = {"student", "x0_real", "x0_fake"} if turn == "student" else {"student"}
    assert rank["latents"].keys() == expected and rank["latents"]["student"]["std"] > 0
    reference = Trainer(preflight.check(config.parse([*lagging, "--run_dir", str(tmp_path / "other")])))
    assert rank["prompts"] == reference.batches.prompts(step)
    assert [line["step"] for line in records(tmp_path / "run")] == list(range(1, step + 1))


@pytest.mark.parametrize("step", [2, 5])
def test_a_late_skip_is_counted_and_moves_nothing(lagging, tmp_path, monkeypatch, step):
    """Weights, moments and their counts are those of a run in which the step was withheld by the host."""
    run, by_host = tmp_path / "run", tmp_path / "by_host"
    flags = [*lagging, "--max_steps", "8", "--nonfinite", "skip"]
    poison_step(monkeypatch, step)
    assert train.main(flags) == 0
    lines = records(run)
    assert [line["step"] for line in lines if line.get("skipped")] == [step + 1]
    assert lines[step]["grad_norm"] is None
    progress = json.loads((run / "ckpts/step_000008/manifest.json").read_text())["progress"]
    assert progress["updates"]["student"] == (0 if step == 5 else 1)
    assert progress["updates"]["student"] + progress["updates"]["fake"] == 7

    def withheld(trained, metrics, norm, learning_rate, max_norm):
        if metrics.are_finite():
            healthy(trained, metrics, norm, learning_rate, max_norm)

    healthy = trainer.apply_update
    monkeypatch.setattr(trainer, "apply_update", withheld)
    assert train.main([*flags, "--run_dir", str(by_host)]) == 0
    ours, theirs = (state(folder / "ckpts/step_000008") for folder in (run, by_host))
    if step == 5:  # the student's moments exist, all 0, once its one update was withheld by the kernel
        ours.pop("state/optimizer_student"), theirs.pop("state/optimizer_student")
    assert ours == theirs


def test_a_signal_that_is_read_late_saves_what_was_done(lagging, tmp_path, monkeypatch, capsys):
    """It comes in step 3 and is read when step 4 has begun: both are finished and saved, and nothing is lost."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train.main([*lagging, "--max_steps", "8", "--run_dir", str(whole)]) == 0
    healthy = updates.fake_score_loss

    def killed(run_, batch):
        if batch.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return healthy(run_, batch)

    with monkeypatch.context() as patch:
        patch.setattr(updates, "fake_score_loss", killed)
        assert train.main([*lagging, "--max_steps", "8"]) == 143
    assert "stopped: SIGTERM: saved at step 4" in capsys.readouterr().err
    assert [line["step"] for line in records(run)] == [1, 2, 3, 4]
    assert train.main([*lagging, "--max_steps", "8", "--resume_from_checkpoint", "latest"]) == 0
    assert state(run / "ckpts/step_000008") == state(whole / "ckpts/step_000008")


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_rank_that_is_not_finite_is_known_to_all(short_run, tmp_path, run_processes, nonfinite):
    """Sharded over two processes, with metrics read late: both skip the update, and both stop or both continue."""
    run = tmp_path / "run"
    flags = [*short_run, "--run_dir", str(run), "--vis_every", "0", "--max_steps", "6", "--nonfinite", nonfinite]
    result = run_processes([str(DRIVERS / "lagging_ranks.py"), *flags], check=False)
    diagnostic = json.loads((run / "diagnostics" / "nonfinite_step_000003.json").read_text())
    assert [rank["rank"] for rank in diagnostic["ranks"]] == [0, 1] and len(diagnostic["ranks"][1]["prompts"]) == 2
    if nonfinite == "stop":
        assert result.stderr.count("stopped: step 3, fake update: grad_norm is nan") == 2
        return
    assert result.returncode == 0, result.stderr[-3000:]
    assert [line["step"] for line in records(run) if line.get("skipped")] == [3]
    progress = json.loads((run / "ckpts/step_000006/manifest.json").read_text())["progress"]
    assert (progress["updates"]["student"], progress["updates"]["fake"]) == (1, 4)
    moments = load_file(run / "ckpts/step_000006/state/optimizer_fake.safetensors")
    counts = {value.item() for name, value in moments.items() if name.endswith("|step")}
    assert counts == {4.0} and all(value.isfinite().all() for value in moments.values())
