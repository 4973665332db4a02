"""The cost of a sweep's trainings."""

from pathlib import Path

import pytest

from dpdmd.compare.cost import calls_of_training
from dpdmd.compare.sweep_file import read_sweep
from dpdmd.config import Config

ROOT = Path(__file__).parents[3]


def test_the_cost_of_the_bundled_search(monkeypatch):
    """The paper's way costs 15,000 calls for each sample of a batch, and no row of the searches more than a quarter.

    The rows of its stage 3 cost half and all of it.
    """
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(Path("scripts/sweeps/recipe_tiny.yaml"))
    calls = {name: calls_of_training(row.resolved) for name, row in sweep.configurations.items() if not row.model}
    assert (calls["paper"], calls["base"], calls["small_batch"]) == (8 * 15_000, 8 * 3_750, 8 * 3_750)
    others = ("paper", "adaptive")  # an evaluation's calls are not counted
    stage_3 = {name: int(name.rpartition("_")[2]) for name in calls if name.endswith(("_7500", "_15000"))}
    assert len(stage_3) == 6 and all(0.99 * 8 * most <= calls[name] <= 8 * most for name, most in stage_3.items())
    searched = {name: number for name, number in calls.items() if name not in (*others, *stage_3)}
    assert len(searched) == 24 + 5 + 6 + 3 and set(searched.values()) <= set(range(8 * 3_700, 8 * 3_750 + 1))


def test_the_anchor_of_an_epsilon_model_costs_one_more_guided_call(tiny_pipeline, tiny_sdxl):
    """The x0 at z_k is predicted once more; after all of the teacher's steps z_k is x0 itself."""
    flow, epsilon = (
        {"family": family, "teacher_id": str(folder), "teacher_infer_steps": 6, "max_steps": 6}
        for family, folder in (("sd35", tiny_pipeline), ("sdxl", tiny_sdxl))
    )
    more = calls_of_training({**epsilon, "k_anchor": 5}) - calls_of_training({**flow, "k_anchor": 5})
    assert more == 2 * Config().optim.batch_size
    assert calls_of_training({**epsilon, "k_anchor": 6}) == calls_of_training({**flow, "k_anchor": 6})


@pytest.mark.parametrize("k", [20, "auto"])
def test_a_method_without_an_anchor_costs_the_same_for_any_k(tiny_pipeline, k):
    options = {"teacher_id": str(tiny_pipeline), "method": "dmd", "teacher_infer_steps": 4, "max_steps": 6}
    assert calls_of_training({**options, "k_anchor": k}) == calls_of_training({**options, "k_anchor": 2})


@pytest.mark.parametrize("options", [{"max_epoch": 1}, {"k_anchor": "auto"}, {"teacher_id": "nowhere"}])
def test_a_cost_that_only_the_run_knows_is_none(tiny_pipeline, options):
    assert calls_of_training({"teacher_id": str(tiny_pipeline), **options}) is None


@pytest.mark.parametrize("family", ["flux2_klein", "qwen_image", "lumina2"])
def test_a_grid_that_depends_on_the_size_is_that_of_the_runs_size(tiny_folder, family):
    options = {"family": family, "teacher_id": str(tiny_folder(family)), "teacher_infer_steps": 6, "k_anchor": 2}
    assert calls_of_training({**options, "height": 64, "width": 64, "max_steps": 6}) > 0
