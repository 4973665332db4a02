"""The networks and samples of each update, from the method's row in `dpdmd/config/method_table.py`."""

import math
from bisect import bisect_left

from dpdmd.config.method_table import FAKE, METHODS, STUDENT
from dpdmd.config.options import MAX_COUNT, MethodConfig
from dpdmd.methods.update_schedule import is_student_update


def trained_networks(config: MethodConfig) -> tuple[str, ...]:
    """Return the names of all networks that the method trains."""
    return (STUDENT, FAKE, *METHODS[config.method].trained_with_fake)


def networks_of_update(step: int, config: MethodConfig) -> tuple[str, ...]:
    """Return the names of the networks that update `step` trains; the update is named after the first."""
    if is_student_update(step, config):
        return (STUDENT,)
    return (FAKE, *METHODS[config.method].trained_with_fake)


def uses_sample_pool(step: int, config: MethodConfig) -> bool:
    """Return whether update `step` takes its prompts and start noises from the pool of teacher samples."""
    return networks_of_update(step, config)[0] == _update_on_pool(config)


def _update_on_pool(config: MethodConfig) -> str:
    """Return the update that takes its prompts from the pool of teacher samples, "" if none does."""
    return METHODS[config.method].teacher_samples_in if config.teacher_cache_size else ""


def num_draws(steps: int, config: MethodConfig, of_pool: bool = False) -> int:
    """Return how many of the first `steps` updates draw prompts: of the prompt file, or of the pool of teacher samples.

    Updates that share a roll-out share its prompts.
    """
    before = min(steps, config.fake_head_start)
    cycles, left = divmod(steps - before, config.per_train_fake_num + 1)
    parts = ((1, before), (cycles, config.per_train_fake_num), (1, left))  # fake-score updates in a row
    rollouts = sum(times * math.ceil(count / config.fake_rollout_reuse) for times, count in parts)
    draws = {FAKE: rollouts, STUDENT: cycles}
    return sum(number for update, number in draws.items() if (update == _update_on_pool(config)) == of_pool)


def steps_with_draws(draws: int, config: MethodConfig) -> int:
    """Return the fewest updates of which `draws` draw prompts, at most MAX_COUNT."""
    return bisect_left(range(MAX_COUNT), draws, key=lambda steps: num_draws(steps, config))
