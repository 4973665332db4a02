"""The cache of text embeddings and of teacher samples: file names, contents, and the division over processes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, local
from typing import Any

import pytest
import torch

from dpdmd.data import text_embedding_cache
from dpdmd.data.prompts import pool_prompts
from dpdmd.data.teacher_sample_cache import PoolSettings, sample_cache, stored_samples
from dpdmd.data.tensor_cache import CacheReader, Processes, TensorCache
from dpdmd.data.text_embedding_cache import EmbeddingSettings, cached_encoder, embedding_cache, embedding_maker
from dpdmd.models.base import TextEmbedding, TextEncoder

CPU = torch.device("cpu")
SETTINGS = EmbeddingSettings("model", 10, "torch.float32")
POOL = PoolSettings("model", "torch.float32", (1.0, 0.0), 3.5, (1, 1, 1), 10, False, 0)
PROMPTS = ["a red circle", "a cross", "a small cross", "日本の円", "a red circle", "x" * 2000]


class Letters(TextEncoder):
    """Embeds a prompt by the codes of its first letters."""

    def __init__(self):
        self.calls: list[list[str]] = []

    def encode(self, prompts: list[str]) -> TextEmbedding:
        self.calls.append(prompts)
        codes = torch.tensor([[ord(letter) for letter in f"{prompt[:80]:80}"] for prompt in prompts]).float()
        return TextEmbedding(codes.reshape(-1, 10, 8), codes[:, :4])


def test_names_of_files_stay_as_they_are():
    """Caches of earlier versions are still found."""
    prompts = [f"prompt {index}" for index in range(70)] + ["日本の円"]
    text = embedding_cache(Path("cache"), prompts, EmbeddingSettings("weights/model", 77, "torch.bfloat16", True))
    assert [file.path.name for file in text.files] == [
        "shard_d0403aef03f71e3b72b9dfb7775ada54.safetensors",
        "shard_87dd8d58dcae51438e4d7a5fd18eaff0.safetensors",
    ]
    pool = PoolSettings("weights/model", "torch.float32", (1.0, 0.75, 0.0), 3.5, (16, 8, 8), 77, False, 3)
    assert [file.path.name for file in sample_cache(Path("cache"), prompts[:20], pool).files] == [
        "shard_f126738fdf498dae87b345a9fe96c162.safetensors",
        "shard_6ce5a59dc70963ad70e45169da6f739d.safetensors",
    ]


def test_every_prompt_comes_back_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(text_embedding_cache, "ROWS_PER_FILE", 3)
    cache, encoder = embedding_cache(tmp_path, PROMPTS, SETTINGS), Letters()
    assert len(cache.files) == 2 and len(cache.prompts) == 6  # with the empty prompt, without duplicates
    cached = cached_encoder(tmp_path, PROMPTS, SETTINGS, CPU, lambda: encoder, Processes())
    asked = ["", "日本の円", "a cross", "a cross"]
    ours, theirs = cached.encode(asked), encoder.encode(asked)
    assert torch.equal(ours.context, theirs.context) and torch.equal(ours.pooled, theirs.pooled)
    stated = embedding_maker(encoder).row_bytes * len(cache.prompts)
    assert stated == pytest.approx(sum(file.path.stat().st_size for file in cache.files), rel=0.2)
    with pytest.raises(KeyError):
        cached.encode(["a star"])


class Words(TextEncoder):
    """Embeds a prompt by the lengths of its words, one token a word and one before them."""

    def encode(self, prompts: list[str]) -> TextEmbedding:
        words = [[0, *map(len, prompt.split())] for prompt in prompts]
        return TextEmbedding.of_lengths([torch.tensor(each).float()[:, None].expand(-1, 4) for each in words])


def test_prompts_of_different_lengths_come_back_at_their_lengths(tmp_path, monkeypatch):
    """In the files prompts are filled to the longest of their file, which no reader sees."""
    monkeypatch.setattr(text_embedding_cache, "ROWS_PER_FILE", 3)
    names, encoder = ("context", "lengths"), Words()
    cached = cached_encoder(tmp_path, PROMPTS, SETTINGS, CPU, lambda: encoder, Processes(), names)
    for asked in ([""], ["a small cross"], ["a red circle", "", "日本の円", "a cross"]):
        ours, theirs = cached.encode(asked), encoder.encode(asked)
        assert torch.equal(ours.context, theirs.context) and ours.lengths == theirs.lengths and ours.pooled is None
    assert embedding_maker(encoder, "a small cross").row_bytes == 4 * 4 * 4 + 8


def test_only_missing_files_are_made(tmp_path, monkeypatch):
    """Encoders are loaded only if a file is missing or truncated."""
    monkeypatch.setattr(text_embedding_cache, "ROWS_PER_FILE", 3)
    first, second, loaded = Letters(), Letters(), []
    cached_encoder(tmp_path, PROMPTS, SETTINGS, CPU, lambda: first, Processes())
    cached_encoder(tmp_path, PROMPTS, SETTINGS, CPU, lambda: loaded.append(second), Processes())
    assert not loaded
    cache = embedding_cache(tmp_path, PROMPTS, SETTINGS)
    whole = cache.files[1].path.read_bytes()
    cache.files[1].path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=f"--cache_text_embeddings: {cache.files[1].path} is missing or incomplete"):
        CacheReader(cache, CPU)
    cached_encoder(tmp_path, PROMPTS, SETTINGS, CPU, lambda: second, Processes())
    assert second.calls == [[""], list(cache.files[1].prompts)] and cache.files[1].path.read_bytes() == whole


def test_another_model_length_or_type_is_another_file(tmp_path):
    changes = ({}, {"model": "other"}, {"max_sequence_length": 11}, {"dtype": "torch.bfloat16"}, {"no_t5": True})
    caches = [embedding_cache(tmp_path, ["a"], replace(SETTINGS, **change)) for change in changes]
    assert len({cache.files[0].path.name for cache in caches}) == 5
    one, other = (embedding_cache(tmp_path, prompts, SETTINGS).files for prompts in (["b", "a"], ["a", "b", "a"]))
    assert one == other


def test_more_prompts_to_evaluate_leave_the_other_files_as_they_are(monkeypatch):
    """Both may change on a resume; sorted among the training's prompts, each would shift all files behind it."""
    monkeypatch.setattr(text_embedding_cache, "ROWS_PER_FILE", 2)

    def names(evaluated):
        cache = embedding_cache(Path("cache"), ["b", "d", "f"], SETTINGS, evaluated=evaluated)
        assert cache.prompts == ["", "b", "d", "f", *(each for each in evaluated if each != "d")]
        return [file.path.name for file in cache.files]

    few, more = names(["c", "d", "a"]), names(["c", "d", "a", "aa", "e"])
    assert len(more) == 4 and few == more[:3]


def test_a_pool_shows_every_prompt_as_often_as_any_other():
    prompts = [f"prompt {index}" for index in range(5)]
    pool = pool_prompts(prompts, 0, 10)
    assert sorted(pool) == sorted(prompts * 2)
    assert pool_prompts(prompts, 0, 7) == pool[:7]


class Ranks:
    """Threads that act as the processes of a run."""

    def __init__(self, count: int):
        self.count, self.values = count, [None] * count
        self.together, self.here = Barrier(count, timeout=60), local()

    def processes(self, rank: int) -> Processes:
        def gather(value):
            self.values[rank] = value
            self.together.wait()
            values = list(self.values)
            self.together.wait()
            return values

        return Processes(rank, self.count, gather)

    def run(self, function: Callable[[Processes], Any]) -> list[Any]:
        """Return what `function` returns, or raises, on each rank."""

        def call(rank: int) -> Any:
            self.here.rank = rank
            try:
                return function(self.processes(rank))
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(self.count) as ranks:
            return list(ranks.map(call, range(self.count)))


@pytest.mark.parametrize(("count", "made"), [(1, [[16, 16]]), (2, [[16], [16]])])
def test_ranks_call_the_teacher_equally_often(tmp_path, count, made):
    """A pool of 20 has files of 16 and 4 samples: a sharded teacher would wait forever for a call that another rank
    does not make."""
    prompts, calls = [str(index) for index in range(20)], [[] for _ in range(count)]

    def run(processes):
        def sample(prompts, entries):
            calls[processes.rank].append((list(prompts), list(entries)))
            return torch.tensor(entries).reshape(-1, 1, 1, 1).float()

        return stored_samples(tmp_path, prompts, POOL, CPU, sample, processes)

    stored = Ranks(count).run(run)
    assert [[len(entries) for _, entries in each] for each in calls] == made
    assert all(prompts == [str(entry) for entry in entries] for each in calls for prompts, entries in each)
    assert all(read([19, 0, 16, 7]).flatten().tolist() == [19, 0, 16, 7] for read in stored)


@pytest.mark.parametrize("filled", [[], [0], [1]])
def test_a_folder_that_each_machine_has_of_its_own_is_an_error_on_all(tmp_path, filled):
    """Whether nobody has the files, or one machine has: nothing is made, and no process waits for another."""
    for rank in filled:
        cached_encoder(tmp_path / str(rank), PROMPTS, SETTINGS, CPU, Letters, Processes())
    made = []
    said = Ranks(2).run(
        lambda ours: cached_encoder(
            tmp_path / str(ours.rank), PROMPTS, SETTINGS, CPU, lambda: made.append(1) or Letters(), ours
        )
    )
    assert not made and said == [
        f"--cache_text_embeddings {tmp_path / str(rank)}: not all processes see the same files there; give a folder on "
        "a disk that all machines share"
        for rank in (0, 1)
    ]


@pytest.mark.parametrize("early", [0, 1])
def test_files_that_another_run_writes_meanwhile_are_made_by_all_or_none(tmp_path, monkeypatch, early):
    """One rank looks before the other run has written. All take the list of rank 0, so all call the encoder equally."""
    monkeypatch.setattr(text_embedding_cache, "ROWS_PER_FILE", 3)
    cached_encoder(tmp_path, PROMPTS, SETTINGS, CPU, Letters, Processes())
    ranks, encoders, looked = Ranks(2), [Letters(), Letters()], set()
    is_complete = TensorCache.is_complete

    def look(self, file):
        is_first = ranks.here.rank == early and file.path not in looked
        looked.update([file.path] if is_first else [])
        return not is_first and is_complete(self, file)

    monkeypatch.setattr(TensorCache, "is_complete", look)
    found = ranks.run(lambda ours: cached_encoder(tmp_path, PROMPTS, SETTINGS, CPU, lambda: encoders[ours.rank], ours))
    assert [len(encoder.calls) for encoder in encoders] == ([2, 2] if early == 0 else [0, 0])
    assert all(torch.equal(each.encode([""]).context, Letters().encode([""]).context) for each in found)


class Broken(Letters):
    def encode(self, prompts: list[str]) -> TextEmbedding:
        embedding = super().encode(prompts)
        embedding.pooled[[index for index, prompt in enumerate(prompts) if prompt == "a cross"]] = float("inf")
        return embedding


def test_rows_that_are_not_finite_are_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(text_embedding_cache, "ROWS_PER_FILE", 3)
    said = Ranks(2).run(lambda ours: cached_encoder(tmp_path, PROMPTS, SETTINGS, CPU, Broken, ours))
    assert said[0] == said[1]
    assert said[0].startswith("--cache_text_embeddings: the text embeddings of 'a cross' are not finite")
    cache = embedding_cache(tmp_path, PROMPTS, SETTINGS)
    assert [cache.is_complete(file) for file in cache.files] == ["a cross" not in file.prompts for file in cache.files]
