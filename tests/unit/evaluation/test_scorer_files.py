"""Paths of the scorers' flags: what leaves a scorer out, what is missing, and defaults beside another file."""

from pathlib import Path

import pytest

from dpdmd.evaluation.scorer_files import check_scorer_paths


def test_an_empty_path_leaves_a_scorer_out(tiny_scorers):
    """One of its paths is enough, whatever the defaults of the others are."""
    names = ("pickscore", "imagereward", "clip_score")
    assert set(check_scorer_paths(tiny_scorers, names)) == set(names)
    for flag, name in (
        ("pick_model_path", "pickscore"),
        ("ir_med_config", "imagereward"),
        ("clip_score_path", names[2]),
    ):
        assert set(check_scorer_paths({**tiny_scorers, flag: ""}, names)) == set(names) - {name}


def test_a_scorer_needs_all_its_flags(tiny_scorers):
    """A tokenizer that is not given lies beside ImageReward.pt."""
    weights = {"ir_model_path": tiny_scorers["ir_model_path"]}
    with pytest.raises(ValueError, match="--ir_med_config is missing: imagereward needs it beside --ir_model_path"):
        check_scorer_paths(weights, ("imagereward",))
    found = check_scorer_paths({**weights, "ir_med_config": tiny_scorers["ir_med_config"]}, ("imagereward",))
    assert found["imagereward"]["ir_tokenizer_path"] == Path(weights["ir_model_path"]).parent


def test_a_message_names_the_flag_the_path_and_the_repository(tmp_path):
    for folder, repository in (
        ("mine", "facebook/dinov2-base"),
        ("dinov3-vitl16-pretrain-lvd1689m", "facebook/dinov3-vitl16-pretrain-lvd1689m"),
    ):
        with pytest.raises(ValueError) as caught:
            check_scorer_paths({"dino_path": str(tmp_path / folder)}, ("div_dino",))
        assert str(caught.value).startswith(f"--dino_path {tmp_path / folder}: no such folder; get it from ")
        assert f"https://huggingface.co/{repository} " in str(caught.value)
