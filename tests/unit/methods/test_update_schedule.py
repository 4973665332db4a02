"""Which network each step updates, with and without a head start of the fake score, and which roll-out it uses."""

from itertools import pairwise

import pytest

from dpdmd.config.options import MethodConfig
from dpdmd.methods.update_schedule import (
    diversity_weight,
    is_student_update,
    last_student_step,
    num_student_updates,
    rollout_step,
)

SCHEDULES = [(0, 5, 1), (0, 5, 2), (0, 1, 1), (7, 5, 1), (7, 5, 2), (7, 5, 5), (3, 2, 2), (1, 1, 1), (60, 5, 4)]


def simulate(config: MethodConfig, steps: int) -> list[tuple[str, int]]:
    """(update, roll-out step) of each step, by going through them one after another."""
    updates, pending, shared, start = [], config.fake_head_start, 0, 0
    for step in range(steps):
        if step == config.fake_head_start:
            pending, shared = config.per_train_fake_num, 0
        if pending == 0:
            updates.append(("student", step))
            pending, shared = config.per_train_fake_num, 0
            continue
        if shared == 0:
            start, shared = step, config.fake_rollout_reuse
        updates.append(("fake", start))
        pending, shared = pending - 1, shared - 1
    return updates


@pytest.mark.parametrize(("head_start", "fakes", "reuse"), SCHEDULES)
def test_updates_and_rollouts_are_those_of_a_schedule_that_is_simulated(head_start, fakes, reuse):
    config = MethodConfig(fake_head_start=head_start, per_train_fake_num=fakes, fake_rollout_reuse=reuse)
    expected = simulate(config, 100)
    updates = ["student" if is_student_update(step, config) else "fake" for step in range(100)]
    assert list(zip(updates, [rollout_step(step, config) for step in range(100)], strict=True)) == expected
    for steps in range(101):
        assert num_student_updates(steps, config) == updates[:steps].count("student")


@pytest.mark.parametrize(("head_start", "fakes", "reuse"), SCHEDULES)
def test_the_students_last_update(head_start, fakes, reuse):
    config = MethodConfig(fake_head_start=head_start, per_train_fake_num=fakes, fake_rollout_reuse=reuse)
    students = [step for step in range(100) if is_student_update(step, config)]
    assert last_student_step(students[0], config) == 0
    for earlier, step in pairwise(students):
        assert last_student_step(step, config) == earlier + 1


def test_lambda_over_the_run():
    """Constant, or a line over the student updates; the last update keeps one part of it, as a learning rate does."""
    config = MethodConfig(fake_head_start=3, per_train_fake_num=1, div_weight=2.0)
    students = [step for step in range(11) if is_student_update(step, config)]
    assert students == [4, 6, 8, 10]
    for schedule, expected in (
        ("constant", [2.0, 2.0, 2.0, 2.0]),
        ("decreasing", [2.0, 1.5, 1.0, 0.5]),
        ("increasing", [0.0, 0.5, 1.0, 1.5]),
    ):
        config.div_weight_schedule = schedule
        assert [diversity_weight(step, 11, config) for step in students] == expected
