"""Model folders for the tests of models."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def copied(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a family's tiny folder, for a test that changes it."""
    return lambda family: Path(shutil.copytree(tiny_folder(family), tmp_path / "copy"))
