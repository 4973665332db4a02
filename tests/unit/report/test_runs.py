"""Runs: what cannot be read is a warning."""

import pytest
from made_up_runs import make_run

from dpdmd.report.runs import RunEntry, read_runs


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ("run: {max_steps: !!int 0b_}", "config.yaml: no YAML ('0b_' is no int"),
        ("run: {seed: 2026-13-45}", "is no timestamp"),
        ("- 1", "config.yaml: has no groups of options"),
        ("run: 3", "config.yaml: has no groups of options"),
        ("run: {max_steps: many}", "config.yaml: max_steps is not an integer: 'many'"),
    ],
)
def test_a_damaged_configuration_is_a_warning_in_the_report(tmp_path, config, warning):
    run = make_run(tmp_path / "run", images=False)
    (run / "config.yaml").write_text(config)
    (line,) = read_runs([RunEntry(run)])[0].warnings
    assert warning in line
