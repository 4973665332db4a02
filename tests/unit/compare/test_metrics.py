"""Metrics of a measuring program are read with their values per prompt."""

import json

import pytest

from dpdmd.compare.metrics import read_metrics


def test_metrics_of_a_root_program_are_averaged_by_prompt(tmp_path):
    """A missing image does not count in its prompt's mean; a prompt without any score is left out."""
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": {"div_dino": {"mean": 0.4}, "vqr1": {"mean": None}}}))
    rows = ["prompt_index,sample_index,file,prompt,div_dino,vqr1,notes", "0,0,a,cat,0.2,,", "0,1,b,cat,0.4,,"]
    rows += ["1,0,c,dog,0.5,,", "2,0,d,owl,,,"]
    (tmp_path / "per_image.csv").write_text("\n".join(rows) + "\n")
    found = read_metrics(tmp_path / "summary.json")
    assert found["div_dino"].mean == 0.4 and found["vqr1"].mean is None and found["vqr1"].by_prompt == {}
    assert found["div_dino"].by_prompt == pytest.approx({"0 cat": 0.3, "1 dog": 0.5})
    with pytest.raises(ValueError, match=r"neither a summary\.json"):
        read_metrics(tmp_path / "per_image.csv")


def test_what_is_not_finite_is_missing(tmp_path):
    """A nan in a difference would make every comparison false, and so a p below .001."""
    (tmp_path / "summary.json").write_text('{"metrics": {"mine": {"mean": NaN}, "other": {"mean": 1}}}')
    rows = ["prompt_index,prompt,mine,other", "0,cat,nan,1", "1,dog,0.5,1"]
    (tmp_path / "per_image.csv").write_text("\n".join(rows) + "\n")
    found = read_metrics(tmp_path / "summary.json")
    assert (found["mine"].mean, found["mine"].by_prompt, found["other"].mean) == (None, {"1 dog": 0.5}, 1.0)
    (tmp_path / "oracle.json").write_text('{"model": {"prompts": {"a": {"accuracy": NaN}, "b": {"accuracy": 0.5}}}}')
    assert read_metrics(tmp_path / "oracle.json")["accuracy"].by_prompt == {"b": 0.5}


@pytest.mark.parametrize("mean", ["12.5", [1, 2], True])
def test_a_mean_that_is_no_number_is_named(tmp_path, mean):
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": {"mine": {"mean": mean}}}))
    (tmp_path / "per_image.csv").write_text("prompt_index,prompt,mine\n")
    with pytest.raises(ValueError, match="which is no number"):
        read_metrics(tmp_path / "summary.json")
