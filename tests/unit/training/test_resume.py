"""Which checkpoint a run continues; the checkpoints are manifests beside one small file."""

import os
from pathlib import Path

import pytest

from dpdmd.config import Config
from dpdmd.run_folder import LATEST, RunFolder
from dpdmd.training import resume
from dpdmd.training.resume import ResumePoint
from dpdmd.utils.manifest import MANIFEST, write_manifest


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config()
    config.model.teacher_id = str(tmp_path)
    return config


@pytest.fixture
def run(tmp_path: Path, config: Config) -> RunFolder:
    """Checkpoints of steps 2, 4 and 6."""
    folder = RunFolder.of(tmp_path / "run")
    for step in (2, 4, 6):
        write(folder, step, config)
    return folder


def write(folder: RunFolder, step: int, config: Config, **progress: object) -> None:
    path = folder.checkpoint(step)
    path.mkdir(parents=True)
    (path / "weights").write_bytes(bytes([step]))
    counts = {"step": step, "updates": {"student": 1, "fake": step - 1}, "global_batch_size": 4}
    write_manifest(path, {"progress": counts | progress, "config": config.as_dict()})
    folder.point(LATEST, path)


def test_latest_is_where_the_link_points(run, config):
    point = resume.find(run, LATEST, config)
    assert (point.path, point.step, point.passed_over) == (run.checkpoint(6), 6, ())
    run.point(LATEST, run.checkpoint(4))  # resumed from 4 since: 6 is left over
    assert resume.find(run, LATEST, config).step == 4


def test_a_checkpoint_that_a_run_went_back_from_is_not_continued(run, config):
    """The new way was killed behind step 4, before it saved: the old step 4 is of the other way."""
    for step, age in ((2, 300), (4, 200), (6, 100)):
        manifest = run.checkpoint(step) / MANIFEST
        os.utime(manifest, (manifest.stat().st_mtime - age,) * 2)
    run.continue_from(run.checkpoint(2))
    run.metrics.write_text("".join(f'{{"step": {step}, "turn": "fake"}}\n' for step in range(1, 6)))
    assert resume.find(run, LATEST, config).step == 2


def test_without_a_checkpoint_latest_starts_anew(tmp_path, config):
    assert resume.find(RunFolder.of(tmp_path / "new"), LATEST, config) == ResumePoint()
    assert ResumePoint().step == 0


def test_a_damaged_checkpoint_is_passed_over_and_sizes_alone_show_only_missing_bytes(run, config):
    (run.checkpoint(6) / "weights").write_bytes(b"x")
    (run.checkpoint(4) / "weights").write_bytes(b"")
    by_size, by_content = (resume.find(run, LATEST, config, sizes_only=sizes_only) for sizes_only in (True, False))
    assert (by_size.step, by_size.passed_over) == (6, ())
    altered, truncated = by_content.passed_over
    assert by_content.step == 2 and f"{run.checkpoint(6)} is not whole" in altered and "altered" in altered
    assert f"{run.checkpoint(4)} is not whole" in truncated and "has 0 bytes" in truncated


@pytest.mark.parametrize("wanted", [LATEST, "path"])
def test_it_is_an_error_if_nothing_is_whole(run, config, wanted):
    for path in run.checkpoints():
        (path / "weights").unlink()
    given = wanted if wanted == LATEST else str(run.checkpoint(4))
    with pytest.raises(ValueError, match=f"--resume_from_checkpoint {given}: no .*whole.*weights is missing"):
        resume.find(run, given, config)


@pytest.mark.parametrize(
    "count",
    [{"step": 0}, {"global_batch_size": "4"}, {"updates": {"fake": 7}}, {"total_steps": "6"}, {"left_behind": "6"}],
)
def test_impossible_counts_are_damage(run, config, count):
    (run.checkpoint(6) / MANIFEST).unlink()
    counts = {"step": 6, "updates": {"student": 1, "fake": 5}, "global_batch_size": 4}
    write_manifest(run.checkpoint(6), {"progress": counts | count, "config": config.as_dict()})
    point = resume.find(run, LATEST, config)
    assert point.step == 4 and "manifest.json" in point.passed_over[0]


def test_another_configuration_is_an_error_that_names_the_difference(run, config):
    config.method.k_anchor += 1
    with pytest.raises(ValueError, match=r"of another configuration .*k_anchor"):
        resume.find(run, LATEST, config)
