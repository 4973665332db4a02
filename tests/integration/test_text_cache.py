"""`--cache_text_embeddings`: the same trajectory, from files that are made once and never mistaken for others."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpdmd import train
from dpdmd.data import text_embedding_cache
from dpdmd.data.text_embedding_cache import CachedTextEncoder, CacheSettings, plan_shards, write_shards
from dpdmd.models.sd35.family import SD35

CPU = torch.device("cpu")
STUDENT = "ckpts/step_000007/student/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def flags(short_run, tiny_scorers) -> list[str]:
    evaluation = ["--clip_path", tiny_scorers["clip_path"], "--div_prompts", "data/shapes_eval.txt"]
    evaluation += ["--eval_prompts_limit", "2", "--num_div_seeds", "2"]
    return [*short_run, *evaluation, "--max_steps", "7", "--vis_every", "0"]


@pytest.fixture
def loads(monkeypatch) -> list[Path]:
    """Every loading of text encoders."""
    healthy, seen = SD35.load_text_encoder, []

    def load(self, folder, length, **options):
        seen.append(folder)
        return healthy(self, folder, length, **options)

    monkeypatch.setattr(SD35, "load_text_encoder", load)
    return seen


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_the_cache_is_the_run_without(flags, tmp_path, loads):
    """Losses, scores and weights; the second run with the cache loads no text encoder."""
    cache = ["--cache_text_embeddings", str(tmp_path / "cache")]
    runs = [tmp_path / name for name in ("plain", "first", "second")]
    for run, more in zip(runs, ([], cache, cache), strict=True):
        assert train.main([*flags, *more, "--run_dir", str(run)]) == 0
    assert len(loads) == 2
    assert re.search(r"encoding \d prompts into .*: 0\.\d+ GB", (runs[1] / "log" / "log.txt").read_text())
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


@pytest.fixture
def encoder(tiny_pipeline):
    return SD35(CPU, torch.float32).load_text_encoder(tiny_pipeline, 10)


SETTINGS = CacheSettings("model", 10, "torch.float32")


def test_every_prompt_comes_back_from_its_shard(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(text_embedding_cache, "SHARD_SIZE", 3)
    prompts = ["a red circle", "a cross", "a small cross", "日本の円", "a red circle", "x" * 2000]
    shards = plan_shards(tmp_path, prompts, SETTINGS)
    assert len(shards) == 2 and sum(len(shard.prompts) for shard in shards) == 6  # with the empty one, without doubles
    write_shards(encoder, shards, progress=False)
    cached = CachedTextEncoder(shards, CPU)
    asked = ["", "日本の円", "a cross", "a cross"]
    ours, theirs = cached.encode(asked), encoder.encode(asked)
    torch.testing.assert_close(ours.context, theirs.context, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=0, atol=1e-5)
    assert not torch.allclose(ours.context[0], ours.context[1])
    stated = text_embedding_cache.size_in_bytes(shards, encoder.encode([""]))
    assert stated == pytest.approx(sum(shard.path.stat().st_size for shard in shards), rel=0.02)


def test_another_model_length_or_type_is_another_shard(tmp_path):
    names = {
        plan_shards(tmp_path, ["a"], settings)[0].path.name
        for settings in (
            SETTINGS,
            CacheSettings("other", 10, "torch.float32"),
            CacheSettings("model", 11, "torch.float32"),
            CacheSettings("model", 10, "torch.bfloat16"),
        )
    }
    assert len(names) == 4
    assert plan_shards(tmp_path, ["b", "a"], SETTINGS) == plan_shards(tmp_path, ["a", "b", "a"], SETTINGS)


def test_a_broken_shard_is_made_again(flags, tmp_path, loads):
    cache = tmp_path / "cache"
    more = ["--cache_text_embeddings", str(cache)]
    assert train.main([*flags, *more, "--run_dir", str(tmp_path / "first")]) == 0
    (shard,) = cache.glob("shard_*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-50])
    assert train.main([*flags, *more, "--run_dir", str(tmp_path / "second")]) == 0
    assert len(loads) == 2 and shard.read_bytes() == whole


def test_too_little_space_is_told(flags, tmp_path, monkeypatch, capsys):
    def refuse(folder, needed):
        raise ValueError(f"--cache_text_embeddings {folder}: the embeddings take {needed} bytes")

    monkeypatch.setattr(text_embedding_cache, "check_space", refuse)
    run = ["--run_dir", str(tmp_path / "run"), "--cache_text_embeddings", str(tmp_path / "cache")]
    assert train.main([*flags, *run]) == 2
    assert "--cache_text_embeddings" in capsys.readouterr().err and not list((tmp_path / "cache").glob("*"))
