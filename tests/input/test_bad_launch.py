"""A wrong variable of the launcher gets one line from each program; `tests/unit/distributed` has every variable."""

import os

import pytest

from dpdmd import doctor

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
