"""Encoded prompts: cutting, repeating, joining and storing them, of one length or of different lengths."""

import pytest
import torch

from dpdmd.models.base import TextEmbedding


def prompts_of(*lengths: int) -> TextEmbedding:
    """Return prompts of these lengths; each token holds the number of its prompt, from 1."""
    return TextEmbedding.of_lengths([torch.full((length, 3), float(n)) for n, length in enumerate(lengths, start=1)])


def test_prompts_of_different_lengths_share_one_tensor():
    text = prompts_of(2, 5, 3)
    assert len(text) == 3 and text.context.shape == (3, 5, 3) and text.lengths == (2, 5, 3) and text.pooled is None
    assert [context.shape[0] for context in text.contexts()] == [2, 5, 3]
    assert [context.unique().tolist() for context in text.contexts()] == [[1], [2], [3]]
    assert not text.context[0, 2:].any() and not text.context[2, 3:].any()


def test_rows_have_the_length_of_their_own_longest_prompt():
    """What a prompt is filled with is no property of the prompt: alone it has its own tokens only."""
    text = prompts_of(2, 5, 3)
    for row, length in enumerate(text.lengths):
        alone = text.rows(row, row + 1)
        assert alone.context.shape == (1, length, 3) and alone.lengths == (length,)
    assert text.rows(0, 2).context.shape == (2, 5, 3) and text.rows(0, 2).lengths == (2, 5)


def test_joined_embeddings_are_those_of_all_prompts():
    text = prompts_of(2, 5, 3)
    joined = TextEmbedding.concatenate([text.rows(0, 1), text.rows(1, 3)])
    assert torch.equal(joined.context, text.context) and joined.lengths == text.lengths
    both = TextEmbedding.concatenate([text.rows(0, 1).expand(3), text])
    assert both.lengths == (2, 2, 2, 2, 5, 3) and torch.equal(both.context[3:], text.context)
    whole = TextEmbedding(torch.randn(2, 4, 3), torch.randn(2, 6))
    twice = TextEmbedding.concatenate([whole, whole])
    assert torch.equal(twice.context, whole.context.repeat(2, 1, 1)) and torch.equal(
        twice.pooled, whole.pooled.repeat(2, 1)
    )
    assert twice.lengths is None and [len(each) for each in twice.contexts()] == [4] * 4


@pytest.mark.parametrize("pooled", [None, torch.randn(3, 2)])
@pytest.mark.parametrize("lengths", [None, (2, 5, 3)])
def test_what_a_cache_holds_gives_the_embedding_back(pooled, lengths):
    text = TextEmbedding(torch.randn(3, 5, 3), pooled, lengths)
    stored = text.to_cache()
    assert ("lengths" in stored, "pooled" in stored) == (lengths is not None, pooled is not None)
    assert all(len(value) == 3 for value in stored.values())
    for row in range(3):
        one, own = (
            TextEmbedding.from_cache({name: value[row : row + 1] for name, value in stored.items()}),
            text.rows(row, row + 1),
        )
        assert torch.equal(one.context, own.context) and one.lengths == own.lengths
        assert pooled is None or torch.equal(one.pooled, own.pooled)


def test_a_function_reaches_every_tensor():
    text = TextEmbedding(torch.ones(1, 2, 3), torch.ones(1, 4), (2,)).map(torch.zeros_like)
    assert not text.context.any() and not text.pooled.any() and text.lengths == (2,)
