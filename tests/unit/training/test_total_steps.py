"""The length of a run that is given in passes over the prompts."""

import pytest

from dpdmd.config import parse
from dpdmd.methods.registry import num_draws
from dpdmd.training.preflight import _total_steps


@pytest.mark.parametrize(
    ("flags", "prompts", "batch", "draws"),
    [
        (["--max_epoch", "1"], 5, 2, 3),  # the last batch of a pass is completed from the next
        (["--max_epoch", "1"], 4, 2, 2),
        (["--max_epoch", "3"], 5, 2, 9),
        (["--max_epoch", "1", "--fake_rollout_reuse", "5"], 5, 2, 3),
    ],
)
def test_a_pass_ends_with_the_update_that_draws_the_last_prompts(flags, prompts, batch, draws):
    config = parse(flags)
    steps = _total_steps(config, prompts, batch)
    assert num_draws(steps, config.method) == draws and num_draws(steps - 1, config.method) == draws - 1


def test_the_shorter_of_steps_and_passes_counts():
    assert _total_steps(parse(["--max_epoch", "2", "--max_steps", "3"]), 100, 2) == 3
    assert _total_steps(parse(["--max_epoch", "2", "--max_steps", "900"]), 2, 2) == 2
    assert _total_steps(parse(["--max_steps", "7"]), 2, 2) == 7
