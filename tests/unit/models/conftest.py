"""Model folders for the tests of models."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def copied(tiny_pipeline: Path, tiny_sdxl: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a family's tiny folder, for a test that changes it."""
    return lambda family: Path(shutil.copytree({"sd35": tiny_pipeline, "sdxl": tiny_sdxl}[family], tmp_path / "copy"))
