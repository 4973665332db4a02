"""Which network update `step` trains: functions of the step alone, so a resumed run needs no state.

Steps count from 0. The first `fake_head_start` updates train the fake score. Cycles follow, each of
`per_train_fake_num` fake-score updates and one student update.
"""

from dpdmd.config.options import ADAPTIVE, MethodConfig


def num_student_updates(steps: int, config: MethodConfig) -> int:
    """Return how many of the first `steps` updates train the student; the others train the fake score."""
    return max(0, steps - config.fake_head_start) // (config.per_train_fake_num + 1)


def is_student_update(step: int, config: MethodConfig) -> bool:
    """Return whether update `step` trains the student."""
    return num_student_updates(step + 1, config) > num_student_updates(step, config)


def rollout_step(step: int, config: MethodConfig) -> int:
    """Return the update that names the roll-out of update `step`.

    `fake_rollout_reuse` fake-score updates in a row share the roll-out of their first. They lie in the head start, or
    in one cycle. A student update has its own roll-out.
    """
    if is_student_update(step, config):
        return step
    after_head_start = step - config.fake_head_start
    index = step if after_head_start < 0 else after_head_start % (config.per_train_fake_num + 1)
    return step - index % config.fake_rollout_reuse


def last_student_step(step: int, config: MethodConfig) -> int:
    """Return the number of updates up to the last student update before update `step`; 0 if there was none."""
    updates = num_student_updates(step, config)
    return config.fake_head_start + updates * (config.per_train_fake_num + 1) if updates else 0


def diversity_weight(step: int, total_steps: int, config: MethodConfig) -> float:
    """Return lambda at student update `step` of a run of `total_steps` updates.

    "adaptive" is the constant, which the caller multiplies by `DistillationContext.div_weight_factor`. The others are a
    line over the student updates, which would reach its end one update after the last, as learning-rate schedules do.
    """
    if config.div_weight_schedule in ("constant", ADAPTIVE):
        return config.div_weight
    progress = num_student_updates(step, config) / max(1, num_student_updates(total_steps, config))
    return config.div_weight * (progress if config.div_weight_schedule == "increasing" else 1 - progress)
