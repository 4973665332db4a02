"""Metrics are found by their keys in metrics.jsonl."""

from dpdmd.report.scores import Metric


def test_names_of_metrics():
    """An image set may contain a scorer's name; the keys of intervals and counts are not metrics."""
    metric = Metric.of("eval/my_div_prompts_div_clip")
    assert (metric.image_set, metric.label, metric.diversity) == ("my_div_prompts", "CLIP diversity", True)
    metric = Metric.of("eval/coco_preference_pickscore_release")
    assert (metric.label, metric.diversity, metric.rescaled) == ("PickScore / 26", False, True)
    for name in ("eval/x_div_clip_low", "eval/x_div_clip_teacher", "eval/x_preference_a_missing", "seconds", "step"):
        assert Metric.of(name) is None
