"""From images to a report: score batches, compare the features of each prompt's images, summarise the metrics."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.evaluation.diversity import diversity_per_image
from dpdmd.evaluation.scorers.base import FeatureScorer, Sample, Scorer, ValueScorer
from dpdmd.evaluation.statistics import Summary, summarise
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.logging import logger
from dpdmd.utils.out_of_memory import is_out_of_memory
from dpdmd.utils.wording import counted

UNREADABLE = "unreadable"
NOT_FINITE = "not finite"  # such a score is missing: a single one would make the mean nan


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image.

    Attributes:
        key: (prompt index, sample index).
        file: the image's path; "" if it is not on disk.
        values: metric -> score, None if it is missing.
        notes: metric -> text worth keeping, such as an answer that could not be parsed.
        features: metric -> unit vector, until `summarise_scores` compares the images of a prompt.
    """

    key: tuple[int, int]
    prompt: str
    file: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreReport:
    """Scores of one model: metric -> summary, and a row for each image, sorted by key."""

    summaries: dict[str, Summary]
    rows: list[ImageScores]


def score_batch(
    samples: Sequence[Sample], scorers: Sequence[Scorer], files: Sequence[str] = (), *, raise_memory: bool = False
) -> list[ImageScores]:
    """Score one batch with every scorer. An image on which a scorer fails has no score of it, and its row the reason.

    Args:
        raise_memory: raise errors of full memory: outside a training, a smaller batch gives the scores.
    """
    rows = [
        ImageScores(sample.key, sample.prompt, file)
        for sample, file in zip(samples, files or [""] * len(samples), strict=True)
    ]
    for scorer in scorers if samples else ():  # a scorer never gets an empty batch
        if failed := _try(scorer, samples, rows, raise_memory):
            reason = failed[0].notes[scorer.name]
            logger.warning("%s gives %s no score: the first %s", scorer.name, counted(len(failed), "image"), reason)
    return rows


def _try(
    scorer: Scorer, samples: Sequence[Sample], rows: Sequence[ImageScores], raise_memory: bool
) -> list[ImageScores]:
    """Score a batch, and if that fails each of its images alone; return the rows of those that fail alone."""
    try:
        _apply(scorer, samples, rows)
    except Exception as error:  # of any library: a score that fails must not end days of training
        full = is_out_of_memory(error)
        if raise_memory and full:
            raise
        if len(rows) > 1 and not full:
            alone = zip(samples, rows, strict=True)
            return [failed for sample, row in alone for failed in _try(scorer, [sample], [row], raise_memory)]
        for row in rows:
            row.notes[scorer.name] = f"failed: {type(error).__name__}: {error}"
        return list(rows)
    return []


def _apply(scorer: Scorer, samples: Sequence[Sample], rows: Sequence[ImageScores]) -> None:
    if isinstance(scorer, FeatureScorer):
        for row, features in zip(rows, scorer.features(samples), strict=True):
            if features.isfinite().all():
                row.features[scorer.name] = features.clone()  # a view would be sent with its whole batch
            else:
                row.notes[scorer.name] = NOT_FINITE
    elif isinstance(scorer, ValueScorer):
        for row, score in zip(rows, scorer.score(samples), strict=True):
            finite = score.value is not None and math.isfinite(score.value)
            row.values[scorer.name] = score.value if finite else None
            for name, factor in scorer.rescaled.items():
                row.values[name] = factor * score.value if finite else None
            if text := score.text or ("" if finite or score.value is None else NOT_FINITE):
                row.notes[scorer.name] = text


def summarise_scores(rows: Sequence[ImageScores], metrics: Sequence[str], seed: int = 0) -> ScoreReport:
    """Compare each prompt's features, then summarise `metrics`; a prompt with one image has no diversity.

    Rows may come in any order. An image that two ranks scored counts once.
    """
    finished = _with_diversity(sorted({row.key: row for row in rows}.values(), key=lambda row: row.key))
    return ScoreReport(
        {name: summarise(((row.key[0], row.values.get(name)) for row in finished), seed) for name in metrics}, finished
    )


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
    """Write a line for each image. A missing score is an empty cell; the last column has the notes."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["prompt_index", "sample_index", "file", "prompt", *metrics, "notes"])
    for row in rows:
        scores = ["" if row.values.get(name) is None else format(row.values[name], ".9g") for name in metrics]
        notes = json.dumps(row.notes, ensure_ascii=False) if row.notes else ""
        writer.writerow([*row.key, row.file, row.prompt, *scores, notes])
    write_text(path, text.getvalue())
