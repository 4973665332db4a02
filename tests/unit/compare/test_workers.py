"""Processes of a sweep: what does not count as done, and what does not end the others."""

import sys
from pathlib import Path

import pytest

from dpdmd.compare.jobs import Job, Stage
from dpdmd.compare.workers import Workers


def job(folder: Path, code: str, settings: dict) -> Job:
    stage = Stage("oracle", folder, [sys.executable, "-c", code], settings, True, {}, "figures.json")
    return Job(folder.name, None, folder, folder, (stage,))


def test_a_measure_without_a_readable_result_is_not_done(tmp_path, capsys):
    """It is reported when it ends, and runs again with the next call."""
    silent = job(tmp_path / "silent", "", {})
    workers = Workers(1)
    workers.run([silent])
    assert workers.failures == ["silent"] and not silent.is_done()
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("silent: "))
    assert (
        "figures.json: neither a summary.json nor" in line and f"delete {tmp_path / 'silent' / 'oracle.json'}" in line
    )


@pytest.mark.parametrize("record", ["{}", '{"done": true, "asked": {"command": "another"}}'])
def test_a_record_that_another_sweep_wrote_meanwhile_is_a_failure_of_its_job_alone(tmp_path, monkeypatch, record):
    """The second sweep waited for the lock of the first."""
    first, second = (job(tmp_path / name, "raise SystemExit(3)", {"command": "mine"}) for name in ("a", "b"))
    acquire = Workers._acquire

    def acquired(self, lock, each):
        if each is first:
            first.stages[0].record.write_text(record)
        return acquire(self, lock, each)

    monkeypatch.setattr(Workers, "_acquire", acquired)
    workers = Workers(1)
    workers.run([first, second])
    assert workers.failures == ["a", "b"] and (tmp_path / "b" / "oracle.log").exists()
    assert not (tmp_path / "a" / "oracle.log").exists()
