"""Checkpoints: a damaged one is named and passed over, too little disk is an error, and no earlier one is lost."""

import errno
import json
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpdmd import train
from dpdmd.config import Config, read_yaml
from dpdmd.run_folder import RunFolder
from dpdmd.training import checkpoint, preflight, resume
from dpdmd.utils.manifest import MANIFEST, check_files, read_manifest

DRIVERS = Path(__file__).parents[1] / "processes" / "drivers"
STUDENT = "student/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def flags(short_run: list[str], tmp_path: Path) -> list[str]:
    return [*short_run, "--run_dir", str(tmp_path / "run"), "--ckpt_every", "2", "--vis_every", "0"]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def change_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": (STUDENT, lambda path: path.write_bytes(path.read_bytes()[:-8])),
    "altered": ("state/fake.safetensors", change_one_byte),
    "missing": ("state/optimizer_student.safetensors", Path.unlink),
    "empty": ("student/model_index.json", lambda path: path.write_bytes(b"")),
    "no manifest": (MANIFEST, Path.unlink),
    "half a manifest": (MANIFEST, lambda path: path.write_text(path.read_text()[:200])),
    "another step in the manifest": (MANIFEST, lambda path: path.write_text(path.read_text().replace("6,", "4,", 1))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(flags, run, damage):
    """The newest whole one is continued, and gives what the undamaged run gave."""
    good = (run / "ckpts" / "step_000006" / STUDENT).read_bytes()
    name, harm = DAMAGE[damage]
    harm(run / "ckpts" / "step_000006" / name)
    assert train.main([*flags, "--max_steps", "6", "--resume_from_checkpoint", "latest"]) == 0
    log = (run / "log" / "log.txt").read_text()
    assert "step_000006 is not whole" in log and Path(name).name in log and "passed over" in log
    assert (run / "ckpts" / "step_000006" / STUDENT).read_bytes() == good
    assert os.readlink(run / "ckpts" / "latest") == "step_000006"


def test_a_damaged_checkpoint_that_is_asked_for_is_an_error(flags, run, capsys):
    wanted = run / "ckpts" / "step_000004"
    change_one_byte(wanted / STUDENT)
    assert train.main([*flags, "--max_steps", "6", "--resume_from_checkpoint", str(wanted)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(wanted / STUDENT) in line and "altered" in line


@pytest.fixture
def resume_on_two(short_run, run, run_processes, monkeypatch, tmp_path):
    """Resume on two processes; returns their stderr, and (rank, path of a file that it hashed, or its exit status)."""

    def resume_run(wanted: str, *, check: bool) -> tuple[str, list[tuple[str, str]]]:
        monkeypatch.setenv("READS", str(tmp_path / "reads"))
        flags = [*short_run, "--batch_size", "1", "--run_dir", str(run), "--ckpt_every", "2", "--vis_every", "0"]
        more = ["--max_steps", "6", "--resume_from_checkpoint", wanted]
        err = run_processes([str(DRIVERS / "counted_reads.py"), *flags, *more], check=check).stderr
        return err, [tuple(line.split(" ", 1)) for line in (tmp_path / "reads").read_text().splitlines()]

    return resume_run


def test_rank_0_alone_reads_a_checkpoint_and_all_continue_the_same(run, resume_on_two):
    """The newest is damaged in a way that only reading shows: rank 0 reads it and the one before, rank 1 none."""
    damaged, whole = run / "ckpts" / "step_000006" / STUDENT, run / "ckpts" / "step_000004" / STUDENT
    change_one_byte(damaged)
    _, reads = resume_on_two("latest", check=True)
    assert {rank for rank, _ in reads} == {"0"}
    assert {str(damaged), str(whole)} <= {path for _, path in reads}
    assert "step_000006 is not whole" in (run / "log" / "log.txt").read_text()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    check_files(run / "ckpts" / "step_000006", read_manifest(run / "ckpts" / "step_000006"))


def test_a_damaged_checkpoint_is_an_error_on_every_rank(run, resume_on_two):
    """Only rank 0 read it; both print the line and end with status 2, and nothing in the run's folder changes."""
    wanted = run / "ckpts" / "step_000004"
    change_one_byte(wanted / STUDENT)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    err, reads = resume_on_two(str(wanted), check=False)
    line = f"dpdmd.train: error: --resume_from_checkpoint {wanted}: no whole checkpoint: {wanted / STUDENT} was altered"
    assert err.count(line) == 2
    assert {what for rank, what in reads if rank == "1"} == {"2"} and ("0", "2") in reads
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_no_whole_checkpoint_is_an_error_and_no_new_start(flags, run, capsys):
    for path in (run / "ckpts").glob("step_*"):
        (path / "state" / "fake.safetensors").unlink()
    before = sorted((run / "ckpts").rglob("*"))
    assert train.main([*flags, "--max_steps", "6", "--resume_from_checkpoint", "latest"]) == 2
    assert "no checkpoint in" in capsys.readouterr().err
    assert sorted((run / "ckpts").rglob("*")) == before


def test_a_half_written_checkpoint_is_named_and_cleared(flags, run):
    left = run / "ckpts" / ".step_000008.tmp"
    left.mkdir()
    (left / "part").write_text("x")
    assert train.main([*flags, "--max_steps", "8", "--resume_from_checkpoint", "latest"]) == 0
    assert f"{left} is half-written" in (run / "log" / "log.txt").read_text()
    assert not left.exists() and (run / "ckpts" / "step_000008" / MANIFEST).is_file()


def test_a_dangling_latest_falls_back_to_the_newest(flags, run):
    shutil.rmtree(run / "ckpts" / "step_000006")
    assert train.main([*flags, "--max_steps", "6", "--resume_from_checkpoint", "latest"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_manifest_lists_every_file_and_no_link(finished):
    middle, last = (finished / "ckpts" / name for name in ("step_000002", "step_000006"))
    assert not any("text_encoder/" in name for name in read_manifest(middle)["files"])
    assert any("text_encoder/" in name for name in read_manifest(last)["files"])
    on_disk = {str(path.relative_to(last)) for path in last.rglob("*") if path.is_file()}
    assert set(read_manifest(last)["files"]) == on_disk - {MANIFEST}
    manifest = read_manifest(last)
    assert manifest["progress"]["step"] == 6 and manifest["versions"]["torch"] and manifest["config"]["method"]


def test_a_disk_that_fills_while_saving_keeps_the_earlier_checkpoints(flags, tmp_path, monkeypatch, capsys):
    """The error is one line, status 1, and nothing half-written is left to fill the disk further."""
    healthy = checkpoint.save_file
    written = []

    def full_after_four(tensors, path):
        written.append(path)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        healthy(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_after_four)
    assert train.main([*flags, "--max_steps", "6"]) == 1
    assert "step_000004 could not be written" in capsys.readouterr().err
    ckpts = tmp_path / "run" / "ckpts"
    assert sorted(path.name for path in ckpts.iterdir()) == ["latest", "step_000002"]
    assert resume.find(RunFolder.of(tmp_path / "run"), "latest", read_config(flags)).progress.step == 2


def read_config(flags: list[str]) -> Config:
    from dpdmd.config import parse

    config = parse(flags)
    config.data.max_sequence_length = 10  # as in the teacher's dpdmd.json
    return config


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    place = tmp_path / "small_disk"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_really_full_disk(short_run, small_disk, capsys, monkeypatch):
    """As above, on a file system that is really full, without the check at the start."""
    monkeypatch.setattr(preflight, "_check_space", lambda *_: None)
    run = small_disk / "run"
    flags = [*short_run, "--run_dir", str(run), "--ckpt_every", "1", "--vis_every", "0", "--max_steps", "30"]
    assert train.main(flags) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dpdmd.train: stopped: ") and "o space left on device" in line
    found = resume.find(RunFolder.of(run), "latest", read_config(flags))
    assert found.progress.step >= 1 and not found.passed_over


def test_too_little_space_is_an_error_at_the_start(flags, tiny_scorers, capsys, monkeypatch, tmp_path):
    """With a limit, one more than the limit, and the best one too if the student is evaluated."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    assert train.main([*flags, "--max_steps", "6"]) == 2
    assert "0.00 GB are free, but 3 checkpoints will take about" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train.main([*flags, "--max_steps", "6", "--checkpoints_total_limit", "1"]) == 2
    assert "but 2 checkpoints" in capsys.readouterr().err
    evaluated = ["--checkpoints_total_limit", "1", "--dino_path", tiny_scorers["dino_path"]]
    assert train.main([*flags, "--max_steps", "12", *evaluated]) == 2
    assert "but 3 checkpoints" in capsys.readouterr().err


def test_the_estimate_is_what_a_checkpoint_takes(finished, tiny_pipeline):
    """Within a tenth: headers, configurations and links are small."""
    from dpdmd.models.sd35.layout import LAYOUT

    whole = sum(
        path.stat().st_size
        for path in (finished / "ckpts" / "step_000006").rglob("*")
        if path.is_file() and path.suffix == ".safetensors"
    )
    config = read_yaml(finished / "config.yaml")
    estimate = checkpoint.size_in_bytes(config) + LAYOUT.bytes_beside_network(tiny_pipeline)
    assert estimate == pytest.approx(whole, rel=0.1)
