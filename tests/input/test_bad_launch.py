"""A wrong variable of the launcher gets one line from each program; `tests/unit/distributed` has every variable."""

import os
import subprocess
import sys

import pytest
from bad_input import ROOT
from processes import LAUNCHER as TORCHRUN
from processes import cpu_environment, free_port

from dpdmd import doctor, export, generate
from dpdmd.compare import __main__ as compare
from dpdmd.demo import __main__ as demo
from dpdmd.shapes import measure

pytestmark = pytest.mark.usefixtures("no_model_loads")
LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*LAUNCHER, *(name for name in os.environ if name.startswith("ACCELERATE_"))):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two', which must be a whole number, at least 1; start with accelerate"),
        ("WORLD_SIZE", "2", "WORLD_SIZE is 2, but RANK is not set; start with accelerate launch or torchrun"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "accelerate's distributed_type DEEPSPEED is not supported: use NO, MULTI"),
        (
            "ACCELERATE_MIXED_PRECISION",
            "fp16",
            "ACCELERATE_MIXED_PRECISION) is fp16, but --bf16 is False: set it to 'no'",
        ),
        (
            "ACCELERATE_MIXED_PRECISION",
            "bf16",
            "accelerate's mixed_precision (ACCELERATE_MIXED_PRECISION) is bf16, but",
        ),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "x", "_STEPS) is x, but --grad_accum is 1: set it to '1' there, or"),
        ("NVIDIA_TF32_OVERRIDE", "1", "NVIDIA_TF32_OVERRIDE is 1, but fp32 means fp32 here"),
    ],
)
def test_a_wrong_variable_gets_one_line(refused, monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    assert says in refused({})


@pytest.mark.parametrize("name", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_USE_FAST_MATH"])
def test_a_variable_that_undoes_compilation_gets_one_line(refused, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert f"{name} is 1, but --compile " in refused({"--compile": None})


def test_the_doctor_names_the_variable_too(refused_by, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "x")
    given = ["--out", str(tmp_path / "doctor")]
    assert "WORLD_SIZE is 'x'" in refused_by("dpdmd.doctor", doctor.main, given)


@pytest.mark.parametrize(
    ("program", "main", "given"),
    [
        ("dpdmd.export", export.main, ["--model", "m", "--out", "{tmp}/out"]),
        ("dpdmd.demo", demo.main, ["--model", "m"]),
        ("dpdmd.shapes.measure", measure.main, ["--model", "m"]),
        ("dpdmd.compare", compare.main, ["sweep.yaml"]),
    ],
)
def test_a_program_for_one_process_says_so(refused_by, two_processes, tmp_path, program, main, given):
    line = refused_by(program, main, [word.format(tmp=tmp_path) for word in given])
    assert line.startswith("2 processes were launched: start it on one process: it ")


@pytest.fixture
def two_processes(monkeypatch):
    two = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, text in two.items():
        monkeypatch.setenv(name, text)


@pytest.mark.usefixtures("two_processes")
def test_generate_runs_on_one_process(refused_by, tmp_path):
    given = ["--model", str(tmp_path), "--prompt", "a red circle", "--out", str(tmp_path / "out")]
    line = refused_by("dpdmd.generate", generate.main, given)
    assert line == "2 processes were launched: start it on one process: several would write the same images"


def test_processes_that_do_not_see_each_other_score_nothing(diversity, tmp_path):
    """`torchrun` on a CPU without ACCELERATE_USE_CPU: each process would write all images, over those of the others."""
    environment = {name: value for name, value in cpu_environment().items() if name != "ACCELERATE_USE_CPU"}
    launch = [sys.executable, "-m", *TORCHRUN, "--master_port", free_port(), "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "test_diversity.py", *diversity], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0 and "2 processes were launched but accelerate joined 1" in done.stderr
    assert not (tmp_path / "out").exists()
