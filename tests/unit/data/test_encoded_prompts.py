"""Embeddings that are encoded once and read back from a temporary file."""

import gc
import shutil
import weakref

import pytest
import torch

from dpdmd.data.encoded_prompts import EncodedPrompts
from dpdmd.models.base import TextEmbedding, TextEncoder

CPU = torch.device("cpu")


class CountingEncoder(TextEncoder):
    """An encoder whose embedding depends on the prompt; counts its calls."""

    def __init__(self, dtype: torch.dtype):
        self.dtype, self.calls = dtype, []

    def encode(self, prompts: list[str]) -> TextEmbedding:
        self.calls += prompts
        noise = torch.Generator().manual_seed(len(prompts[0]))
        return TextEmbedding(
            torch.randn(len(prompts), 3, 5, generator=noise).to(self.dtype),
            torch.randn(len(prompts), 7, generator=noise).to(self.dtype),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_come_back_bit_for_bit(dtype):
    """In any order; each prompt is encoded once."""
    encoder = CountingEncoder(dtype)
    encoded = EncodedPrompts(encoder, ["a", "abc", "a", ""], CPU)
    assert encoder.calls == ["a", "abc", ""]
    found = encoded.encode(["abc", "", "abc"])
    assert found.context.shape == (3, 3, 5) and found.pooled.shape == (3, 7) and found.context.dtype == dtype
    for row, prompt in enumerate(["abc", "", "abc"]):
        wanted = CountingEncoder(dtype).encode([prompt])
        assert torch.equal(found.rows(row, row + 1).context, wanted.context)
        assert torch.equal(found.rows(row, row + 1).pooled, wanted.pooled)
    with pytest.raises(KeyError):
        encoded.encode(["another"])


class WordEncoder(TextEncoder):
    """An encoder whose embedding is as long as the prompt has words, without a pooled vector."""

    def encode(self, prompts: list[str]) -> TextEmbedding:
        return TextEmbedding.of_lengths([torch.full((len(prompt.split()), 5), len(prompt)) for prompt in prompts])


def test_prompts_of_different_lengths_come_back_as_they_were():
    prompts = ["a b c", "a", "a b"]
    found = EncodedPrompts(WordEncoder(), prompts, CPU).encode(["a", "a b c", "a b"])
    wanted = WordEncoder().encode(["a", "a b c", "a b"])
    assert found.lengths == (1, 3, 2) and found.pooled is None and torch.equal(found.context, wanted.context)


def test_the_encoder_is_free_afterwards():
    encoder = CountingEncoder(torch.float32)
    gone = weakref.ref(encoder)
    encoded = EncodedPrompts(encoder, ["a"], CPU)
    del encoder
    gc.collect()
    assert gone() is None and len(encoded.encode(["a"])) == 1


def test_too_little_space_is_one_line(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(OSError, match=r"the embeddings of 2 prompts will take about .*set TMPDIR"):
        EncodedPrompts(CountingEncoder(torch.float32), ["a", "b"], CPU)
