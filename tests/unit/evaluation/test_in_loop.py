"""Evaluation in the loop without a run: metric keys, and the best step."""

from dpdmd.evaluation.in_loop import best_step
from dpdmd.evaluation.in_loop_setup import ImageSet


def test_metric_keys_are_the_releases():
    images = ImageSet("pic", [], 9, ())
    assert images.metric_key("div_clip") == "eval/pic_div_clip"
    assert images.metric_key("pickscore_release") == "eval/pic_preference_pickscore_release"


def test_the_best_step():
    """Diversity and preference count the same; of equals the later step is the best."""
    sets = [ImageSet("x", [], 9, ("div_clip", "pickscore"))]
    records = [
        {"step": step, "eval/x_div_clip": d, "eval/x_preference_pickscore": p}
        for step, d, p in ((0, 9.0, 9.0), (6, 0.3, 1.0), (12, 0.2, 2.0), (18, 0.1, 0.0))
    ]
    assert best_step(records, {6, 12, 18}, sets, "mean_rank") == 12
    assert best_step(records, {6, 12, 18}, sets, "div_clip") == 6
    assert best_step(records, set(), sets, "mean_rank") is None
    lost = [{"step": 6, "eval/x_div_clip": None}, {"step": 12}]  # every scorer failed
    assert best_step(lost, {6, 12}, sets, "mean_rank") is None
    assert best_step([*lost, *records[2:]], {6, 12}, sets, "div_clip") == 12
