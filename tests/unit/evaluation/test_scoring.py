"""From images to a report: scorers that fail or overflow, diversity of known features, summaries."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from dpdmd.evaluation.diversity import diversity_per_image
from dpdmd.evaluation.scorers.base import FeatureScorer, Sample, Score, ValueScorer
from dpdmd.evaluation.scoring import NOT_FINITE, score_batch, summarise_scores


class BrokenFeatures(FeatureScorer):
    name = "div_broken"

    def features(self, samples):
        raise RuntimeError("no kernel for this device")


class BrokenValues(ValueScorer):
    name = "broken"

    def score(self, samples):
        raise ValueError("no answer")


def test_a_scorer_that_fails_is_reported_and_missing(caplog):
    samples = [Sample(Image.new("RGB", (8, 8)), "a", (0, n)) for n in range(3)]
    with caplog.at_level("WARNING", logger="dpdmd"):
        rows = score_batch(samples, [BrokenFeatures(), BrokenValues()])
    found = summarise_scores(rows, ["div_broken", "broken"])
    assert found.summaries["div_broken"].num_missing == found.summaries["broken"].num_missing == 3
    assert found.summaries["broken"].mean is None
    assert "no kernel for this device" in found.rows[0].notes["div_broken"]


class Choosy(ValueScorer):
    name = "choosy"

    def score(self, samples):
        if any(sample.image.width > 100 for sample in samples):
            raise ValueError("too wide")
        return [Score(1.0) for _ in samples]


def test_an_image_that_a_scorer_cannot_take_does_not_cost_the_others_of_its_batch_their_score(caplog):
    samples = [Sample(Image.new("RGB", (width, 8)), "a", (0, n)) for n, width in enumerate((8, 200, 9))]
    with caplog.at_level("WARNING", logger="dpdmd"):
        rows = score_batch(samples, [Choosy()])
    assert [row.values.get("choosy") for row in rows] == [1.0, None, 1.0]
    assert rows[1].notes == {"choosy": "failed: ValueError: too wide"} and not rows[0].notes
    assert caplog.messages == ["choosy gives 1 image no score: the first failed: ValueError: too wide"]


class Constant(FeatureScorer):
    name = "div_constant"

    def features(self, samples):
        return torch.ones(len(samples), 5)


def test_the_features_of_an_image_are_sent_alone():
    """A row of a batch's tensor would be pickled with the whole batch, and a gather would be as many times larger."""
    rows = score_batch([Sample(Image.new("RGB", (8, 8)), "a", (0, n)) for n in range(3)], [Constant()])
    assert [row.features["div_constant"].untyped_storage().nbytes() for row in rows] == [5 * 4] * 3


class HungryValues(ValueScorer):
    name = "hungry"

    def score(self, samples):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_full_memory_is_a_missing_score_in_a_training_alone():
    samples = [Sample(Image.new("RGB", (8, 8)), "a", (0, 0))]
    assert "out of memory" in score_batch(samples, [HungryValues()])[0].notes["hungry"]
    with pytest.raises(torch.OutOfMemoryError):
        score_batch(samples, [HungryValues()], raise_memory=True)


class OverflowingFeatures(FeatureScorer):
    name = "div_overflowing"

    def features(self, samples):
        return torch.tensor([[1.0, 0.0], [0.0, torch.nan], [0.0, 1.0]])


class OverflowingValues(ValueScorer):
    name = "overflowing"
    rescaled: ClassVar = {"half": 0.5}

    def score(self, samples):
        return [Score(1.0), Score(math.nan), Score(math.inf)]


def test_a_score_that_is_not_finite_is_missing():
    """One nan would make the mean nan; the others still count."""
    samples = [Sample(Image.new("RGB", (8, 8)), "a", (0, n)) for n in range(3)]
    found = summarise_scores(
        score_batch(samples, [OverflowingFeatures(), OverflowingValues()]), ["div_overflowing", "overflowing", "half"]
    )
    told = {name: (each.mean, each.num_missing) for name, each in found.summaries.items()}
    assert told == {"div_overflowing": (1.0, 1), "overflowing": (1.0, 2), "half": (0.5, 2)}
    assert found.rows[1].notes == {"div_overflowing": NOT_FINITE, "overflowing": NOT_FINITE}


def test_diversity_of_known_features():
    assert diversity_per_image(torch.ones(9, 5)) == pytest.approx([0] * 9, abs=1e-12)
    assert diversity_per_image(torch.eye(9)) == pytest.approx([1] * 9, abs=1e-12)
    half = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # pairs: 1, 0, 0
    values = diversity_per_image(half)
    assert values == pytest.approx([0.5, 0.5, 1.0])
    assert np.mean(values) == pytest.approx(1 - 1 / 3)
    with pytest.raises(ValueError, match="at least two"):
        diversity_per_image(torch.ones(1, 5))
