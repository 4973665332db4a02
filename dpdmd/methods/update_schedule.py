"""Whose turn an update is: functions of the step alone, so a resumed run needs no state. Steps count from 0."""

from dpdmd.config.options import MethodConfig


def num_student_updates(steps: int, config: MethodConfig) -> int:
    """How many of the first `steps` updates are the student's; the others are the fake score's.

    The first `fake_head_start` are not; then cycles follow, each of `per_train_fake_num` fake updates and a student's.
    """
    return max(0, steps - config.fake_head_start) // (config.per_train_fake_num + 1)


def is_student_update(step: int, config: MethodConfig) -> bool:
    """Whether update `step` (from 0) is the student's."""
    return num_student_updates(step + 1, config) > num_student_updates(step, config)


def rollout_step(step: int, config: MethodConfig) -> int:
    """The update whose roll-out update `step` works on: the first of `fake_rollout_reuse` fake turns, else itself.

    Fake turns share one within the head start, and within a cycle.
    """
    if is_student_update(step, config):
        return step
    beyond = step - config.fake_head_start
    place = step if beyond < 0 else beyond % (config.per_train_fake_num + 1)
    return step - place % config.fake_rollout_reuse


def last_student_step(step: int, config: MethodConfig) -> int:
    """Updates that were done when the student last had its turn before update `step`; 0 where it had none."""
    turns = num_student_updates(step, config)
    return config.fake_head_start + turns * (config.per_train_fake_num + 1) if turns else 0
