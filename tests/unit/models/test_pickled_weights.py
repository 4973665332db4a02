"""Pickled weights: what is rejected instead of being run."""

from pathlib import Path

import pytest
import torch

from dpdmd.models.weight_files import read_checkpoint


def test_pickles_that_could_run_code_are_refused(tmp_path):
    torch.save({"params": {"weight": torch.ones(1)}, "extra": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="refused"):
        read_checkpoint(tmp_path / "bad.pt")
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="no torch checkpoint"):
        read_checkpoint(tmp_path / "text.pt")
