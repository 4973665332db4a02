"""The factor of lambda after evaluations: closed form, bounds, and what does not count."""

import math

import pytest

from dpdmd.config.options import MethodConfig
from dpdmd.training.adaptive_weight import GAIN, LIMIT, weight_factor

METHOD = MethodConfig(per_train_fake_num=5, fake_head_start=0)


def record(step: int, student: float | None, teacher: float | None = 0.2, scorer: str = "div_dino") -> dict:
    name = f"eval/prompts_{scorer}"
    return {"step": step, name: student, f"{name}_low": 0.01, f"{name}_teacher": teacher, "eval/prompts_clip": 0.3}


def test_each_evaluation_multiplies_the_factor():
    first, second = record(60, 0.1), record(120, 0.19)
    assert weight_factor([], METHOD) == 1
    assert weight_factor([record(60, 0.2)], METHOD) == 1
    assert weight_factor([record(60, 0.19)], METHOD) == pytest.approx((0.2 / 0.19) ** GAIN)
    assert weight_factor([record(60, 0.21), second], METHOD) == pytest.approx((0.2 / 0.21 * 0.2 / 0.19) ** GAIN)
    both = {**record(60, 0.19), **record(60, 0.4, 0.5, "div_clip")}
    assert weight_factor([both], METHOD) == pytest.approx(math.sqrt(0.2 / 0.19 * 0.5 / 0.4) ** GAIN)
    assert weight_factor([first], METHOD) == pytest.approx(LIMIT)
    assert weight_factor([record(60, 0.9)], METHOD) == pytest.approx(1 / LIMIT)
    assert weight_factor([first, record(120, 0.21)], METHOD) == pytest.approx(
        LIMIT * (0.2 / 0.21) ** GAIN
    )  # no wind-up


@pytest.mark.parametrize(
    "other", [record(0, 0.1), record(60, None), record(60, 0.0), {"step": 60, "eval_ema/prompts_div_dino": 0.1}]
)
def test_what_does_not_count(other):
    """The evaluation before the first update, a missing score, a score of 0, and the moving average's."""
    assert weight_factor([other], METHOD) == 1


def test_a_student_counts_once_and_only_after_its_first_update():
    method = MethodConfig(per_train_fake_num=5, fake_head_start=100)
    untrained, first, same, second = (record(step, 0.19) for step in (100, 106, 111, 112))
    assert weight_factor([untrained], method) == 1
    assert weight_factor([untrained, first, same], method) == pytest.approx((0.2 / 0.19) ** GAIN)
    assert weight_factor([untrained, first, same, second], method) == pytest.approx((0.2 / 0.19) ** (2 * GAIN))
