"""The networks and samples of each update, from the method's row in `dpdmd/config/method_table.py`."""

from bisect import bisect_left

from dpdmd.config.method_table import FAKE, METHODS, STUDENT
from dpdmd.config.options import MAX_COUNT, MethodConfig
from dpdmd.methods.update_schedule import is_student_update, rollout_step


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
    update = networks_of_update(step, config)[0]
    return bool(config.teacher_cache_size) and METHODS[config.method].teacher_samples_in == update


def num_draws(steps: int, config: MethodConfig) -> int:
    """Return how many of the first `steps` updates draw prompts of the prompt file.

    Updates that share a roll-out share its prompts, and updates on the pool of teacher samples take the pool's.
    """

    def count(updates: range) -> int:
        return sum(rollout_step(step, config) == step and not uses_sample_pool(step, config) for step in updates)

    # The pattern repeats with each shared roll-out of the head start, and with each cycle after it.
    before, shared = min(steps, config.fake_head_start), config.fake_rollout_reuse
    start, cycle = config.fake_head_start, config.per_train_fake_num + 1
    full, left = divmod(max(0, steps - start), cycle)
    head = before // shared * count(range(min(before, shared))) + count(range(before % shared))
    return head + full * count(range(start, start + cycle)) + count(range(start, start + left))


def steps_with_draws(draws: int, config: MethodConfig) -> int:
    """Return the fewest updates of which `draws` draw prompts, at most MAX_COUNT."""
    return bisect_left(range(MAX_COUNT), draws, key=lambda steps: num_draws(steps, config))
