"""Lambda that follows the measured loss of variety: `--div_weight_schedule adaptive`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpdmd.config.options import MethodConfig
from dpdmd.config.scorer_table import DIVERSITY_SCORERS
from dpdmd.methods.update_schedule import num_student_updates

GAIN = 8  # at 5% less diversity than the teacher's, lambda grows by half
LIMIT = 10  # largest factor of lambda, and its inverse the smallest


def weight_factor(evaluations: Sequence[Mapping[str, Any]], config: MethodConfig) -> float:
    """Return the factor of lambda after some evaluations, given by their records in metrics.jsonl.

    Each evaluation multiplies the factor by (teacher / student)^GAIN, the geometric mean over the diversity scores, and
    the factor stays within LIMIT and its inverse. An evaluation without a student update since the last one, or before
    the first, does not count: at first the student has the teacher's weights. The factor depends on the records alone,
    so a resumed run has the same.
    """
    log_factor, bound, counted = 0.0, math.log(LIMIT), 0
    for record in evaluations:
        updates = num_student_updates(record["step"], config)
        if updates > counted and (ratios := _log_ratios(record)):
            counted = updates
            log_factor = min(bound, max(-bound, log_factor + GAIN * sum(ratios) / len(ratios)))
    return math.exp(log_factor)


def _log_ratios(record: Mapping[str, Any]) -> list[float]:
    """Return log(teacher / student) of each diversity score that both have above 0."""
    endings = tuple(f"_{name}" for name in DIVERSITY_SCORERS)
    names = [key for key in record if key.startswith("eval/") and key.endswith(endings)]
    pairs = [(record[f"{name}_teacher"], record[name]) for name in names]
    return [math.log(teacher / student) for teacher, student in pairs if (teacher or 0) > 0 and (student or 0) > 0]
