"""`--cache_text_embeddings`: training does not change, and the files are made once for all runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpdmd import train
from dpdmd.models.sd35.family import SD35

STUDENT = "ckpts/step_000007/student/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def flags(short_run, tiny_scorers) -> list[str]:
    evaluation = ["--clip_path", tiny_scorers["clip_path"], "--div_prompts", "data/shapes_eval.txt"]
    evaluation += ["--eval_prompts_limit", "2", "--num_div_seeds", "2"]
    return [*short_run, *evaluation, "--max_steps", "7", "--vis_every", "0"]


@pytest.fixture
def loads(monkeypatch) -> list[Path]:
    """Folders of all text encoders that are loaded."""
    healthy, seen = SD35.load_text_encoder, []

    def load(self, folder, length, **options):
        seen.append(folder)
        return healthy(self, folder, length, **options)

    monkeypatch.setattr(SD35, "load_text_encoder", load)
    return seen


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_the_cache_equals_the_run_without(flags, tmp_path, loads):
    """Losses, scores and weights agree. The second run with the cache loads no text encoder."""
    cache = ["--cache_text_embeddings", str(tmp_path / "cache")]
    runs = [tmp_path / name for name in ("plain", "first", "second")]
    for run, more in zip(runs, ([], cache, cache), strict=True):
        assert train.main([*flags, *more, "--run_dir", str(run)]) == 0
    assert len(loads) == 2
    assert re.search(r"making \d text embeddings in .*: 0\.\d+ GB", (runs[1] / "log" / "log.txt").read_text())
    plain, first, second = (records(run) for run in runs)
    assert [r.get("loss_student") for r in first] == [r.get("loss_student") for r in second]
    for ours, theirs in zip(first, plain, strict=True):
        for name in ("loss_fake", "loss_dmd", "loss_div", "grad_norm", "eval/shapes_eval_div_clip"):
            # Prompts are encoded in other batches, whose fp32 sums differ in the last digit.
            assert ours.get(name) == (pytest.approx(theirs[name], rel=1e-3) if name in theirs else None)
    weights = [load_file(run / STUDENT) for run in runs]
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 2e-3


def test_two_processes_share_the_encoding(flags, tmp_path, run_processes, monkeypatch):
    cache = tmp_path / "cache"
    command = ["-m", "dpdmd.train", *flags, "--run_dir", str(tmp_path / "run"), "--cache_text_embeddings", str(cache)]
    run_processes(command)
    assert records(tmp_path / "run")[-1]["step"] == 7
    assert not list(cache.glob(".*")) and len(list(cache.glob("shard_*"))) == 1


def test_a_broken_shard_is_made_again(flags, tmp_path, loads):
    cache = tmp_path / "cache"
    more = ["--cache_text_embeddings", str(cache)]
    assert train.main([*flags, *more, "--run_dir", str(tmp_path / "first")]) == 0
    (shard,) = cache.glob("shard_*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-50])
    assert train.main([*flags, *more, "--run_dir", str(tmp_path / "second")]) == 0
    assert len(loads) == 2 and shard.read_bytes() == whole


class Full:
    free = 0


def test_too_little_space_is_an_error(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda _: Full())
    monkeypatch.setattr("dpdmd.training.preflight._check_space", lambda *_: None)
    run = ["--run_dir", str(tmp_path / "run"), "--cache_text_embeddings", str(tmp_path / "cache")]
    assert train.main([*flags, *run]) == 2
    assert "--cache_text_embeddings" in capsys.readouterr().err and not list((tmp_path / "cache").glob("*"))
