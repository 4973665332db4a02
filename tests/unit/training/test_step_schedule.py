"""What is due at which step."""

import pytest

from dpdmd.config import Config
from dpdmd.methods.update_schedule import is_student_update
from dpdmd.training.lr_schedules import lr_factor
from dpdmd.training.step_schedule import StepSchedule


def schedule(total_steps: int, *, scored: bool = True, **options: object) -> StepSchedule:
    config = Config()
    for name, value in options.items():
        group = next(group for group in vars(config).values() if hasattr(group, name))
        setattr(group, name, value)
    return StepSchedule(config, total_steps, scored)


def test_checkpoints_and_evaluations_come_periodically_and_at_the_end():
    both = schedule(10, ckpt_every=4, eval_every=3)
    assert [done for done in range(1, 11) if both.saves(done)] == [4, 8, 10]
    assert [done for done in range(11) if both.evaluates(done)] == [0, 3, 6, 9, 10]
    assert both.evaluates(11)  # of a run that was resumed with fewer steps than it has done


def test_an_evaluation_follows_each_checkpoint_unless_another_period_is_set():
    assert [done for done in range(11) if schedule(10, ckpt_every=4).evaluates(done)] == [0, 4, 8, 10]
    assert not any(schedule(10, ckpt_every=4, scored=False).evaluates(done) for done in range(11))


def test_images_are_shown_by_the_first_student_update_after_a_period():
    """A multiple within the head start, 5, is shown by the student's first update; 10 lies in the next cycle."""
    shown = schedule(14, vis_every=5, fake_head_start=6, per_train_fake_num=1)
    assert [step for step in range(14) if shown.shows_images(step)] == [7, 9]
    assert not any(schedule(14, vis_every=0).shows_images(step) for step in range(14))


@pytest.mark.parametrize("head_start", [0, 4])
def test_each_network_has_its_own_learning_rate_schedule(head_start):
    rates = schedule(18, fake_head_start=head_start, per_train_fake_num=2, lr_scheduler="cosine", lr_warmup_steps=2)
    student = [step for step in range(18) if is_student_update(step, rates.config.method)]
    for steps in (student, sorted(set(range(18)) - set(student))):
        expected = [3.0 * lr_factor("cosine", update, len(steps), 2) for update in range(len(steps))]
        assert [rates.learning_rate(3.0, step) for step in steps] == expected
