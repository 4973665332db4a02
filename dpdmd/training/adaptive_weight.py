"""Lambda that follows the measured loss of variety: `--div_weight_schedule adaptive`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpdmd.config.scorer_table import DIVERSITY_SCORERS

GAIN = 8  # at 5% less diversity than the teacher's, lambda grows by half
LIMIT = 10  # largest factor of lambda, and its inverse the smallest


def weight_factor(evaluations: Sequence[Mapping[str, Any]]) -> float:
    """Return the factor of lambda after some evaluations, given by their records in metrics.jsonl.

    Each evaluation multiplies the factor by (teacher / student)^GAIN, the geometric mean over the diversity scores, and
    the factor stays within LIMIT and its inverse. The evaluation before the first update does not count: it is of the
    teacher's weights with the student's steps. The factor depends on the records alone, so a resumed run has the same.
    """
    log_factor, bound = 0.0, math.log(LIMIT)
    for record in evaluations:
        ratios = _log_ratios(record) if record["step"] > 0 else []
        if ratios:
            log_factor = min(bound, max(-bound, log_factor + GAIN * sum(ratios) / len(ratios)))
    return math.exp(log_factor)


def _log_ratios(record: Mapping[str, Any]) -> list[float]:
    """Return log(teacher / student) of each diversity score that both have above 0."""
    endings = tuple(f"_{name}" for name in DIVERSITY_SCORERS)
    names = [key for key in record if key.startswith("eval/") and key.endswith(endings)]
    pairs = [(record[f"{name}_teacher"], record[name]) for name in names]
    return [math.log(teacher / student) for teacher, student in pairs if (teacher or 0) > 0 and (student or 0) > 0]
