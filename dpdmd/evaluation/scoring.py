"""Pictures to a report: every scorer over every image, each prompt's features compared, summaries."""

import csv
import io
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.evaluation.diversity import diversity_per_image
from dpdmd.evaluation.scorers.base import FeatureScorer, Sample, Scorer, ValueScorer
from dpdmd.evaluation.statistics import Summary, summarise
from dpdmd.utils.atomic_files import write_text

logger = logging.getLogger("dpdmd")
UNREADABLE = "unreadable"
NOT_FINITE = "not finite"  # such a score is missing: one of them would make the mean nan, and nan wins comparisons


@dataclass(frozen=True)
class ImageScores:
    """What is known of one image.

    Attributes:
        key: (prompt index, sample index).
        file: where the image lies; "" if nowhere.
        values: metric -> score, None where it is missing.
        notes: metric -> text worth keeping, such as an answer that could not be parsed.
        features: metric -> unit vector, until the rows of one prompt are compared.
    """

    key: tuple[int, int]
    prompt: str
    file: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreReport:
    """One model's scores: metric -> summary, and every image's row, in the order of their keys."""

    summaries: dict[str, Summary]
    rows: list[ImageScores]


def score_batch(samples: Sequence[Sample], scorers: Sequence[Scorer], files: Sequence[str] = ()) -> list[ImageScores]:
    """One batch through every scorer; what a scorer that fails would have said is missing, with the reason kept."""
    rows = [
        ImageScores(sample.key, sample.prompt, file)
        for sample, file in zip(samples, files or [""] * len(samples), strict=True)
    ]
    for scorer in scorers if samples else ():  # no scorer needs to know what an empty batch looks like
        try:
            _apply(scorer, samples, rows)
        except Exception as error:  # whatever a scorer's libraries raise: days of training are worth more than a score
            reason = f"{type(error).__name__}: {error}"
            logger.warning("%s failed on %d images, now without its score: %s", scorer.name, len(rows), reason)
            for row in rows:
                row.notes[scorer.name] = f"failed: {reason}"
    return rows


def _apply(scorer: Scorer, samples: Sequence[Sample], rows: Sequence[ImageScores]) -> None:
    if isinstance(scorer, FeatureScorer):
        for row, features in zip(rows, scorer.features(samples), strict=True):
            if features.isfinite().all():
                row.features[scorer.name] = features
            else:
                row.notes[scorer.name] = NOT_FINITE
    elif isinstance(scorer, ValueScorer):
        for row, score in zip(rows, scorer.score(samples), strict=True):
            finite = score.value is not None and math.isfinite(score.value)
            row.values[scorer.name] = score.value if finite else None
            row.values.update({name: factor * score.value if finite else None for name, factor in scorer.also.items()})
            if note := score.text or ("" if finite or score.value is None else NOT_FINITE):
                row.notes[scorer.name] = note


def summarise_scores(rows: Sequence[ImageScores], metrics: Sequence[str], seed: int = 0) -> ScoreReport:
    """Compare each prompt's features, then summarise `metrics`; a prompt with one image has no diversity.

    Rows come in any order, and an image that two ranks made counts once.
    """
    finished = _with_diversity(sorted({row.key: row for row in rows}.values(), key=lambda row: row.key))
    return ScoreReport(
        {name: summarise(((row.key[0], row.values.get(name)) for row in finished), seed) for name in metrics}, finished
    )


def metric_names(scorers: Iterable[Scorer]) -> list[str]:
    """Everything that these scorers report, in their order."""
    return [name for scorer in scorers for name in (scorer.name, *getattr(scorer, "also", ()))]


def _with_diversity(rows: Sequence[ImageScores]) -> list[ImageScores]:
    values = {row.key: dict(row.values) for row in rows}
    groups: dict[tuple[str, int], list[ImageScores]] = {}
    for row in rows:
        for name in row.features:
            groups.setdefault((name, row.key[0]), []).append(row)
    for (name, _), members in groups.items():
        known = len(members) > 1
        scores = diversity_per_image(torch.stack([row.features[name] for row in members])) if known else [None]
        for row, score in zip(members, scores, strict=True):
            values[row.key][name] = score
    return [replace(row, values=values[row.key], features={}) for row in rows]


def write_csv(path: Path, rows: Sequence[ImageScores], metrics: Sequence[str]) -> None:
    """One line an image; a missing score is an empty cell, with its text in the last column."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["prompt_index", "sample_index", "file", "prompt", *metrics, "notes"])
    for row in rows:
        scores = ["" if row.values.get(name) is None else format(row.values[name], ".9g") for name in metrics]
        notes = json.dumps(row.notes, ensure_ascii=False) if row.notes else ""
        writer.writerow([*row.key, row.file, row.prompt, *scores, notes])
    write_text(path, text.getvalue())
