"""The scorers, a module each: batched, strictly loaded from the official layouts.

Use `check_scorer_contents` and `build_scorer`; `config/scorer_table.py` says which class belongs to a name.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from dpdmd.config.scorer_table import SCORERS
from dpdmd.evaluation.scorer_files import describe_error
from dpdmd.evaluation.scorers.base import Scorer


def scorer_class(name: str) -> type[Scorer]:
    """Import the class of a scorer."""
    module, _, class_name = SCORERS[name].implementation.partition(":")
    return getattr(importlib.import_module(module), class_name)


def build_scorer(name: str, paths: Mapping[str, Path], device: torch.device, **options: Any) -> Scorer:
    """Load one scorer from its `paths` (flag -> path), as `check_scorer_paths` returns them.

    Raises:
        ValueError: its files do not load.
    """
    row = SCORERS[name]
    scorer = scorer_class(name)(*(paths[file.flag] for file in row.files), device, **options)
    scorer.name = name
    scorer.rescaled = {metric: 1 / divisor for metric, divisor in row.rescaled.items()}
    return scorer


def check_scorer_contents(paths: Mapping[str, Mapping[str, Path]]) -> None:
    """Check that the libraries can load the files of every scorer in `paths` (scorer -> flag -> path).

    Weights are read by name and shape only, and nothing is put on a device. Call `check_scorer_paths` first.

    Raises:
        ValueError: one line that names the flag, the file, and where to get it.
    """
    transformers.utils.logging.set_verbosity_error()  # its report of what does not fit is a table of many lines
    transformers.utils.logging.disable_progress_bar()
    for name, given in paths.items():
        files = SCORERS[name].files
        checks = scorer_class(name).checks(*(given[file.flag] for file in files))
        for file, check in zip(files, checks, strict=True):
            try:
                if check:
                    check()
            except ImportError as error:
                raise ValueError(f"--{file.flag}: pip install -e '.[quality]' first ({error})") from None
            except (ValueError, OSError) as error:
                raise ValueError(describe_error(error, given[file.flag], file)) from None
