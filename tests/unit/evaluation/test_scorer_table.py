"""The table of scorers against the classes, the flags and the root programs that read it."""

import inspect
import runpy
from dataclasses import fields
from pathlib import Path

import pytest

from dpdmd.config.options import EvalConfig
from dpdmd.config.sampling_flags import FLAGS
from dpdmd.config.scorer_table import (
    DIVERSITY,
    IN_LOOP_SCORERS,
    METRIC_LABELS,
    RESCALED_METRICS,
    SCORERS,
    in_loop_files,
    metric_names,
)
from dpdmd.evaluation.scorers import scorer_class
from dpdmd.evaluation.scorers.base import FeatureScorer, ValueScorer
from dpdmd.report.scores import Metric

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("row", SCORERS.values(), ids=lambda row: row.name)
def test_a_class_takes_what_its_row_lists(row):
    """Files in their order, then the device, then the options; and a check for each file."""
    kind = scorer_class(row.name)
    assert issubclass(kind, FeatureScorer if row.kind == DIVERSITY else ValueScorer)
    assert row.name.startswith("div_") == (row.kind == DIVERSITY)
    arguments = inspect.signature(kind).parameters.values()
    positional = [item.name for item in arguments if item.kind is item.POSITIONAL_OR_KEYWORD]
    keywords = {item.name for item in arguments if item.kind is item.KEYWORD_ONLY}
    assert len(positional) == len(row.files) + 1 and positional[-1] == "device"
    assert keywords == {option.argument for option in row.options}
    assert len(kind.checks(*(Path("x") for _ in row.files))) == len(row.files)
    assert row.weights and not (row.rescaled and row.kind == DIVERSITY)


def test_the_loops_flags_are_the_tables():
    names = [item.name for item in fields(EvalConfig)]
    flags = [file.flag for file in in_loop_files()]
    assert names[: len(flags)] == flags
    best_by = next(item for item in fields(EvalConfig) if item.name == "best_by")
    assert best_by.metadata["choices"] == ("mean_rank", *IN_LOOP_SCORERS)


@pytest.mark.parametrize("path", sorted(ROOT.glob("test_*.py")), ids=lambda path: path.stem)
def test_a_root_program_has_its_scorers_flags(path):
    program = runpy.run_path(str(path))["PROGRAM"]
    rows = [SCORERS[name] for name in program.scorers]
    flags = {item.flag for row in rows for item in (*row.files, *row.options)}
    assert flags <= {*program.defaults, *FLAGS}
    assert all(f"--{flag} " in program.parser().format_help().replace(",", " ") for flag in flags)


def test_the_report_labels_every_metric():
    for metric in metric_names(IN_LOOP_SCORERS):
        key = f"eval/set_{metric}" if metric.startswith("div_") else f"eval/set_preference_{metric}"
        found = Metric.of(key)
        assert (found.label, found.rescaled) == (METRIC_LABELS[metric], metric in RESCALED_METRICS)
    assert METRIC_LABELS["pickscore_release"] == "PickScore / 26"
