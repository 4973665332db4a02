"""`dpdmd.train` with dmd_lpips, dmd_gan and a moving average: resumed, on two processes, from the teacher's cache."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpdmd import generate, train
from dpdmd.training import trainer

CPU = torch.device("cpu")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
GAN = ["--method", "dmd_gan", "--gan_weight", "0.1", "--lr_discriminator", "1e-3", "--per_train_fake_num", "2"]


@pytest.fixture
def flags(short_run: list[str]) -> list[str]:
    return [*short_run, "--vis_every", "0"]


def state(run: Path, step: int) -> dict[str, bytes]:
    """Every weight file of a checkpoint that is not the teacher's."""
    folder = run / "ckpts" / f"step_{step:06d}"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.safetensors")
        if not {"text_encoder", "text_encoder_2", "text_encoder_3", "vae"} & set(path.parts)
    }


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Resuming


@pytest.mark.parametrize("more", [[], ["--lora_rank", "2"]])
def test_discriminator_and_average_resume_bit_for_bit(flags, tmp_path, more):
    """Both are saved by name, the discriminator's moments as well; the resumed run ends in the whole run's bytes."""
    common = [*flags, *GAN, *more, "--ema_decay", "0.7", "--ckpt_every", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([*common, "--run_dir", str(whole), "--max_steps", "9"]) == 0
    assert train.main([*common, "--run_dir", str(parts), "--max_steps", "4"]) == 0
    assert train.main([*common, "--run_dir", str(parts), "--max_steps", "9", "--resume_from_checkpoint", "latest"]) == 0
    ours, theirs = state(parts, 9), state(whole, 9)
    names = {"state/discriminator.safetensors", "state/optimizer_discriminator.safetensors"}
    assert names <= ours.keys() and any("_ema/" in name for name in ours)
    if more:  # its metadata lists the layers in an order of the process's own
        tensors = [
            {name: load_file(run / "ckpts" / "step_000009" / name) for name in ours if name.startswith("lora")}
            for run in (parts, whole)
        ]
        assert all(torch.equal(a[key], b[key]) for a, b in zip(*map(dict.values, tensors), strict=True) for key in a)
        ours, theirs = ({n: v for n, v in files.items() if not n.startswith("lora")} for files in (ours, theirs))
    assert ours == theirs
    progress = json.loads((whole / "ckpts" / "step_000009" / "manifest.json").read_text())["progress"]
    assert progress["updates"] == {"student": 3, "fake": 6, "discriminator": 6}
    kept = ("step", "turn", "loss_fake", "loss_discriminator", "loss_gan", "grad_norm", "grad_norm_discriminator")
    assert [[r.get(k) for k in kept] for r in records(whole)] == [[r.get(k) for k in kept] for r in records(parts)]
    assert {"loss_discriminator", "grad_norm_discriminator"} <= records(whole)[0].keys()
    assert "loss_gan" in records(whole)[2] and "grad_norm_discriminator" not in records(whole)[2]


def test_only_the_right_weights_move(flags, tmp_path, monkeypatch):
    """Fake-score updates move the discriminator and the fake score, each at its own rate; a student update neither."""
    run, rates, apply = tmp_path / "run", [], trainer.apply_update

    def watched(trained, metrics, norm, learning_rate, *more):
        rates.append(learning_rate)
        return apply(trained, metrics, norm, learning_rate, *more)

    monkeypatch.setattr(trainer, "apply_update", watched)
    own = ["--lr_student", "1e-3", "--lr_fake", "2e-3", "--lr_discriminator", "3e-3"]
    assert train.main([*flags, *GAN, *own, "--run_dir", str(run), "--max_steps", "3", "--ckpt_every", "1"]) == 0
    assert rates == [2e-3, 3e-3, 2e-3, 3e-3, 1e-3]
    last = records(run)[-1]
    assert last["loss_student"] == pytest.approx(last["loss_dmd"] + 0.1 * last["loss_gan"], rel=1e-5)
    saved = [state(run, step) for step in (1, 2, 3)]
    for name in ("state/discriminator.safetensors", "state/fake.safetensors"):
        assert saved[0][name] != saved[1][name] == saved[2][name]
    assert saved[0][f"student/{WEIGHTS}"] == saved[1][f"student/{WEIGHTS}"] != saved[2][f"student/{WEIGHTS}"]


def test_two_processes_train_what_one_does(flags, tmp_path, run_processes):
    """Batch 1 on each of two is batch 2 on one, discriminator included; accumulation as well."""
    common = [*flags, *GAN, "--max_steps", "6", "--teacher_cache_size", "5"]
    assert train.main([*common, "--run_dir", str(tmp_path / "one")]) == 0
    more = ["--batch_size", "1"]
    assert train.main([*common, *more, "--grad_accum", "2", "--run_dir", str(tmp_path / "parts")]) == 0
    cache = ["--teacher_cache", str(tmp_path / "cache")]
    run_processes(["-m", "dpdmd.train", *common, *more, *cache, "--run_dir", str(tmp_path / "two")])
    one = records(tmp_path / "one")
    for name in ("parts", "two"):
        for ours, theirs in zip(records(tmp_path / name), one, strict=True):
            for key in ("loss_fake", "loss_discriminator", "loss_gan", "grad_norm", "grad_norm_discriminator"):
                assert ours.get(key) == (pytest.approx(theirs[key], rel=1e-3) if key in theirs else None)
        ours, theirs = (
            load_file(tmp_path / run / "ckpts" / "step_000006" / "state" / "discriminator.safetensors")
            for run in (name, "one")
        )
        for key in ours:  # four updates of 1e-3, whose signs hang on the last digit where a gradient is near 0
            assert (ours[key] - theirs[key]).abs().mean() < 1e-5


# The teacher's cache


def test_stored_samples_are_those_made_anew(flags, tmp_path):
    """The same bytes of weights with the pool made when needed, stored, and stored before."""
    texts = ["--cache_text_embeddings", str(tmp_path / "texts")]  # text is encoded in one batch in all of them
    common = [*flags, *GAN, *texts, "--max_steps", "6", "--teacher_cache_size", "20"]
    cache = ["--teacher_cache", str(tmp_path / "cache")]
    for name, more in (("anew", []), ("first", cache), ("second", cache)):
        assert train.main([*common, *more, "--run_dir", str(tmp_path / name)]) == 0
    assert state(tmp_path / "anew", 6) == state(tmp_path / "first", 6) == state(tmp_path / "second", 6)
    assert len(list((tmp_path / "cache").glob("shard_*"))) == 2 and not list((tmp_path / "cache").glob(".*"))
    log = [(tmp_path / name / "log" / "log.txt").read_text() for name in ("first", "second")]
    assert "making 20 teacher samples" in log[0] and "0.000 GB" in log[0] and "making" not in log[1]
    for stored, other in ((4, ["--seed", "4"]), (6, ["--no_t5"])):
        assert train.main([*common, *cache, *other, "--run_dir", str(tmp_path / f"other_{stored}")]) == 0
        assert len(list((tmp_path / "cache").glob("shard_*"))) == stored


def test_too_little_space_for_the_pool_is_told(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda _: Full())
    more = ["--teacher_cache", str(tmp_path / "cache"), "--teacher_cache_size", "9", "--run_dir", str(tmp_path / "run")]
    monkeypatch.setattr("dpdmd.training.preflight._check_space", lambda *_: None)
    assert train.main([*flags, *GAN, *more]) == 2
    assert "--teacher_cache" in capsys.readouterr().err and not list((tmp_path / "cache").glob("*"))


class Full:
    free = 0


# The moving average


def test_the_average_moves_with_student_updates_is_exported_and_scored_apart(flags, tmp_path, tiny_scorers):
    """EMA = D EMA + (1 - D) student at each student update, from the teacher's weights on; pictures by path."""
    run = tmp_path / "run"
    scored = ["--clip_path", tiny_scorers["clip_path"], "--div_prompts", "data/shapes_eval.txt"]
    scored += ["--eval_prompts_limit", "2", "--num_div_seeds", "2", "--eval_every", "6"]
    common = [*flags, *scored, "--per_train_fake_num", "1", "--ema_decay", "0.75", "--ckpt_every", "1"]
    assert train.main([*common, "--run_dir", str(run), "--max_steps", "4"]) == 0

    def weights(step: int, part: str) -> dict[str, torch.Tensor]:
        return load_file(run / "ckpts" / f"step_{step:06d}" / part / WEIGHTS)

    start, first, second = (weights(step, "student") for step in (1, 2, 4))
    assert state(run, 1)[f"student_ema/{WEIGHTS}"] == state(run, 1)[f"student/{WEIGHTS}"]
    assert state(run, 3)[f"student_ema/{WEIGHTS}"] == state(run, 2)[f"student_ema/{WEIGHTS}"]
    average = weights(4, "student_ema")
    for name in start:
        expected = 0.75 * (0.75 * start[name] + 0.25 * first[name]) + 0.25 * second[name]
        torch.testing.assert_close(average[name], expected, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(average[name], second[name]) for name in average)
    last = records(run)[-1]
    live, ema = (last[f"{group}/shapes_eval_div_clip"] for group in ("eval", "eval_ema"))
    assert live != ema and "eval_ema/shapes_eval_div_clip_teacher" not in last
    assert list((run / "eval_images" / "ema").rglob("*.png"))
    out = tmp_path / "out"
    place = str(run / "ckpts" / "latest" / "student_ema")
    assert generate.main(["--model", place, "--out", str(out), "--prompt", "a red circle", "--num_images", "1"]) == 0
    assert list(out.rglob("*.png"))


def test_an_average_changes_nothing_of_the_student(flags, tmp_path):
    for name, more in (("with", ["--ema_decay", "0.9"]), ("without", [])):
        assert train.main([*flags, *more, "--run_dir", str(tmp_path / name), "--max_steps", "6"]) == 0
    ours, theirs = state(tmp_path / "with", 6), state(tmp_path / "without", 6)
    assert {name: ours[name] for name in theirs} == theirs


# Perceptual distances


def test_dmd_lpips_trains_with_the_small_worlds_dino(flags, tmp_path, tiny_scorers):
    more = ["--method", "dmd_lpips", "--perceptual", "dino", "--perceptual_path", tiny_scorers["dino_path"]]
    assert train.main([*flags, *more, "--run_dir", str(tmp_path / "run"), "--max_steps", "6"]) == 0
    last = records(tmp_path / "run")[-1]
    assert last["loss_student"] == pytest.approx(last["loss_dmd"] + 0.25 * last["loss_perceptual"], rel=1e-5)
    assert last["loss_perceptual"] > 0
