"""A program that cannot fit gets one line before any model loads; so do wrong flags of `dpdmd.doctor --memory`."""

import os

import pytest
from bad_input import program

from dpdmd import doctor, export, generate

pytestmark = pytest.mark.usefixtures("no_model_loads")


def test_sampling_and_exports_that_cannot_fit(refused_by, diversity, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.get)
    out = tmp_path / "out"
    given = ["--model", str(tiny_pipeline), "--out", str(out)]
    for name, main, command, flags in (
        ("dpdmd.generate", generate.main, [*given, "--prompt", "a"], "--batch_size, --height, --width"),
        ("dpdmd.export", export.main, given, "--model"),
        ("test_diversity.py", program("test_diversity.py"), diversity, "--gen_batch_size, --height, --width"),
    ):
        line = refused_by(name, main, command)
        assert line.startswith(f"{flags}: the run cannot fit: estimated ") and "this machine has 0.0 GB" in line
        assert not list(out.rglob("*.*")), name


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--memory", "--num_processes", "0"], "--num_processes 0: must be 1 to 65536"),
        (["--memory", "--num_processes", "1000000"], "--num_processes 1000000: must be 1 to 65536"),
        (["--memory", "--num_processes", "two"], "argument --num_processes: invalid int value: 'two'"),
        (["--num_processes", "8"], "--num_processes: is for --memory alone"),
        (["--fsdp"], "--fsdp: is for --memory alone"),
        (["--memory", "--teacher_id", "nowhere"], "--teacher_id nowhere: no such folder"),
        (["--memory", "--family", "sd36"], "--family"),
        (["--memory", "--height", "44"], "--height 44: must be a multiple of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_doctor_names_the_flag(refused_by, tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused_by("dpdmd.doctor", doctor.main, flags)
    assert not list(tmp_path.iterdir())
