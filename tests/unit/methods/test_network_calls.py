"""The counted network calls of an update against the calls that the update makes."""

from pathlib import Path

import pytest
from small_distillation import K

from dpdmd.config import read_yaml
from dpdmd.config.options import MethodConfig
from dpdmd.methods.network_calls import CallCounter
from dpdmd.methods.updates import fake_score_loss, student_loss
from dpdmd.models.layout_values import CLASSIFIER_FREE

ROOT = Path(__file__).parents[3]
OPTIONS = [
    {},
    {"method": "dmd"},
    {"method": "dmd_lpips"},
    {"method": "dmd_gan"},
    {"anchor_steps": 1},
    {"grad_steps": "last"},
    {"grad_steps": "random", "detach_first_step": False},
    {"rollout": "dmd2"},
    {"method": "dmd", "detach_first_step": True},
    {"teacher_guidance_scale": 1.0},
    {"real_guidance_scale": 1.0},
    {"fake_rollout_reuse": 2},
    {"method": "dmd_gan", "fake_rollout_reuse": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_update_makes_the_counted_calls(make, batch, options):
    """Each prediction is one call for each of its rows, and two more if a gradient reaches its network's weights."""
    run, mine = make(**options), batch(0, 1)
    counter = CallCounter(run.config, run.seed, options.get("anchor_steps", K), CLASSIFIER_FREE)
    for step, loss in ((4, fake_score_loss), (5, student_loss)):
        run.family.calls.clear()
        loss(run, batch(0, 1, step=step)).loss.backward()
        calls = [(len(call.z), call.prediction.grad is not None) for call in run.family.calls]
        counted = sum(rows * (3 if trained else 1) for rows, trained in calls)
        if run.config.method == "dmd_gan" and loss is student_loss:
            counted += 2 * len(mine.samples)  # the generator's gradient enters at the blocks, not at the prediction
        assert counter.of_update(step) * len(mine.samples) == counted, step


def test_a_stored_teacher_sample_and_a_shared_rollout_cost_nothing():
    def calls(step: int, **options) -> int:
        return CallCounter(MethodConfig(**options), 0, 5, CLASSIFIER_FREE).of_update(step)

    stored = {"teacher_cache_size": 8, "teacher_cache": "pool"}
    assert calls(5, method="dmd_lpips") - calls(5, method="dmd_lpips", **stored) == 2 * 30
    assert calls(0, method="dmd_gan") - calls(0, method="dmd_gan", **stored) == 2 * 30
    assert [calls(step, fake_rollout_reuse=5) for step in range(5)] == [4 + 3, 3, 3, 3, 3]
    shared = [calls(step, method="dmd_gan", fake_rollout_reuse=2) for step in range(2)]
    assert shared == [4 + 3 + 2 + 2 * 30, 3 + 2]


@pytest.mark.parametrize(("name", "total"), [("tiny", 3_750), ("paper_tiny", 15_000)])
def test_the_small_worlds_run(name, total):
    """A cycle: 4 + 5 x 3 of the fake score, 4 + 2 x 4 of the roll-out, 2 + 1 of the scores, 2 x 8 of the anchor."""
    config = read_yaml(ROOT / "scripts" / "configs" / f"{name}.yaml")
    counter = CallCounter(config.method, 0, config.method.anchor_steps, CLASSIFIER_FREE)
    assert counter.of_run(6) == 4 + 15 + 12 + 3 + 16
    assert counter.of_run(config.run.max_steps) == total
