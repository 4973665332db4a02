"""Evaluation in the loop without a run: metric keys, and the best step."""

import pytest

from dpdmd.config.options import EvalConfig
from dpdmd.evaluation.in_loop import best_step
from dpdmd.evaluation.in_loop_setup import ImageSet, set_up_evaluation


def test_metric_keys_are_the_releases():
    images = ImageSet("pic", [], 9, ())
    assert images.metric_key("div_clip") == "eval/pic_div_clip"
    assert images.metric_key("pickscore_release") == "eval/pic_preference_pickscore_release"


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("a/test.txt", "b/test.txt"), ["a_test.txt", "b_test.txt"]),
        (("a/test.txt", "a/test.csv"), ["test.txt", "test.csv"]),
        (("a/test.txt", "b/other.txt"), ["test", "other"]),
        (("a/test.txt", "a/../a/test.txt"), ["test"]),
        (("a/pick2pic_sfw_test.txt", "b/test.txt"), ["pic", "test"]),
    ],
)
def test_two_prompt_files_of_one_name_have_their_own_images(tiny_scorers, tmp_path, files, names):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("prompt\na cat\n")
    scorers = {name: tiny_scorers[name] for name in ("clip_path", "clip_score_path")}
    prompts = dict(zip(("div_prompts", "pref_prompts"), (str(tmp_path / file) for file in files), strict=True))
    setup = set_up_evaluation(EvalConfig(**scorers, **prompts), None)
    assert [images.name for images in setup.sets] == names


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


def test_the_best_step_is_among_those_of_the_last_conditions():
    """Scores of other prompts, seeds or scorers cannot be compared; records of older versions say nothing of them."""
    sets = [ImageSet("x", [], 9, ("div_clip",))]
    scores = {6: 0.9, 12: 0.8, 18: 0.2, 24: 0.1}
    records = [{"step": step, "eval/x_div_clip": score, "conditions": "a"} for step, score in scores.items()]
    assert best_step(records, set(scores), sets, "div_clip") == 6
    for record in records[2:]:
        record["conditions"] = "b"
    assert best_step(records, set(scores), sets, "div_clip") == 18
    assert best_step(records, {6, 12}, sets, "div_clip") is None
    del records[0]["conditions"]
    assert best_step(records, set(scores), sets, "div_clip") == 6
