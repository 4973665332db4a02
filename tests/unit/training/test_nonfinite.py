"""The diagnostic of a step that is not finite."""

import json
import math

import pytest
import torch

from dpdmd.training.nonfinite import latent_statistics, write_diagnostic


def test_statistics_are_of_the_finite_values():
    latents = torch.tensor([1.0, 2.0, 3.0, math.nan]).reshape(1, 1, 2, 2)
    found = latent_statistics(latents)
    assert found == pytest.approx({"nonfinite_share": 0.25, "mean": 2, "std": 1, "min": 1, "max": 3})
    assert latent_statistics(latents * math.inf) == {"nonfinite_share": 1}


def test_a_diagnostic_is_valid_json_and_names_the_bad_metric(tmp_path):
    ranks = [{"rank": 0, "prompts": ["ein Bär"], "latents": {"student": {"nonfinite_share": 0.5}}}]
    write_diagnostic(tmp_path / "a.json", 3, "fake", {"loss": math.nan, "grad_norm": 1.5}, ranks)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"step": 3, "turn": "fake", "metrics": {"loss": "nan", "grad_norm": 1.5}, "ranks": ranks}
    assert "Bär" in text
