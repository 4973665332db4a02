"""The launcher's variables: a wrong one is an error that names it, before a rank waits for another."""

import os
import re
from pathlib import Path

import pytest

from dpdmd.distributed.launch_env import (
    Launch,
    check_accelerate_file,
    check_launch,
    check_single_process,
    is_on,
    read_launch,
    single_process_warning,
)
from dpdmd.distributed.topology import check_joined

TWO = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    theirs = [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_")) or "TF32" in name]
    for name in (*TWO, "LOCAL_WORLD_SIZE", *theirs):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', which must be a whole number, at least 1; start with accelerate"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', which must be a whole number, at least 1"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', which"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²', which"),
        ({"WORLD_SIZE": "9" * 5000}, "which must be a whole number"),
        ({"RANK": "one"}, "RANK is 'one', which must be a whole number, at least 0"),
        ({"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2, and ranks count from 0"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', which"),
        ({"LOCAL_RANK": "7"}, "LOCAL_RANK is 7, but 2 processes were launched here"),
        ({"LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK is 1, but 1 processes were launched here"),
        ({"RANK": None}, "WORLD_SIZE is 2, but RANK is not set; start with accelerate launch or torchrun"),
        ({"LOCAL_RANK": None}, "WORLD_SIZE is 2, but LOCAL_RANK is not set"),
        ({"MASTER_ADDR": None}, "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "nowhere.invalid"}, "MASTER_ADDR is 'nowhere.invalid', which cannot be resolved"),
        ({"MASTER_PORT": ""}, "WORLD_SIZE is 2, but MASTER_PORT is not set"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http', which must be a port, 1 to 65535"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is '0', which must be a port, 1 to 65535"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT is '65536', which must be a port, 1 to 65535"),
    ],
)
def test_a_wrong_variable_of_two_processes_is_named(monkeypatch, changes, says):
    # A real name server may take seconds, and words its answer as it likes.
    monkeypatch.setattr("dpdmd.distributed.launch_env.socket.getaddrinfo", _no_server)
    for name, text in {**TWO, **changes}.items():
        if text is not None:
            monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=re.escape(says)):
        check_launch()


def _no_server(address, port):
    if address == "nowhere.invalid":
        raise OSError(-2, "Name or service not known")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("RANK", "5", "RANK is 5, but WORLD_SIZE is 1, and ranks count from 0"),
        ("ACCELERATE_USE_CPU", "maybe", "ACCELERATE_USE_CPU is 'maybe', which must be true or false"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "accelerate's distributed_type DEEPSPEED is not supported: use NO, MULTI"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "accelerate's distributed_type MEGATRON_LM is not supported"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "accelerate's parallelism_config is not supported"),
        (
            "ACCELERATE_DYNAMO_BACKEND",
            "INDUCTOR",
            "accelerate's dynamo_backend (ACCELERATE_DYNAMO_BACKEND) is INDUCTOR, but --",
        ),
        ("ACCELERATE_DYNAMO_USE_FULLGRAPH", "maybe", "ACCELERATE_DYNAMO_USE_FULLGRAPH is 'maybe', which must be true"),
        ("ACCELERATE_FP8_BACKEND", "TE", "accelerate's fp8_backend (ACCELERATE_FP8_BACKEND) is TE, but fp8 is not"),
        ("NVIDIA_TF32_OVERRIDE", "1", "NVIDIA_TF32_OVERRIDE is 1, but fp32 means fp32 here, and --bf16 is the faster"),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is 1, but fp32 means fp32 here"),
        ("ACCELERATE_TORCH_DEVICE", "nope", "ACCELERATE_TORCH_DEVICE is 'nope', which must be cpu or cuda"),
    ],
)
def test_an_unsupported_variable_is_named(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(says)):
        check_launch()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "ACTIVATION_CHECKPOINTING",
            "true",
            "but --gradient_checkpointing does that: set it to 'false' there, or unset",
        ),
        ("ACTIVATION_CHECKPOINTING_OFFLOAD", "True", "but --gradient_checkpointing does that: set it to 'false' there"),
        ("OFFLOAD_PARAMS", "1", "but trained weights stay on the GPU: set it to 'false' there, or unset it"),
        ("CPU_RAM_EFFICIENT_LOADING", "true", "but every rank loads its weights itself: set it to 'false' there"),
        ("IGNORED_MODULES", "pos_embed", "but no gradients would be averaged for them: remove it there"),
    ],
)
def test_a_setting_of_fsdp_that_the_trainer_cannot_use_is_named(monkeypatch, name, value, says):
    """Without FSDP nothing reads the setting."""
    monkeypatch.setenv(f"FSDP_{name}", value)
    assert check_launch() == Launch(1, 0, 0, 1)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        check_launch()
    assert str(error.value).startswith(f"accelerate's fsdp_{name.lower()} (FSDP_{name}) is {value}")


def test_a_launch_that_fits(monkeypatch):
    assert read_launch() == check_launch() == Launch(1, 0, 0, 1)
    for name, text in {**TWO, "ACCELERATE_USE_CPU": "True", "ACCELERATE_DYNAMO_BACKEND": "NO"}.items():
        monkeypatch.setenv(name, text)
    assert check_launch() == Launch(2, 1, 1, 2)
    monkeypatch.setenv("LOCAL_RANK", "-1")
    assert check_launch().local_rank == 0
    assert is_on("ACCELERATE_USE_CPU") and not is_on("ACCELERATE_USE_FSDP")


@pytest.mark.parametrize(("count", "warns"), [("1", False), ("2", True)])
def test_accelerate_that_starts_one_process_of_several_is_noticed(monkeypatch, count, warns):
    """With the variables that accelerate's launcher itself sets for `accelerate launch --cpu --num_processes N`."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    given = ["--cpu", "--num_processes", count, "--num_machines", "1", "--mixed_precision", "no"]
    args = launch_command_parser().parse_args([*given, "--dynamo_backend", "no", "script.py"])
    _, environment = prepare_simple_launcher_cmd_env(_validate_launch_command(args)[0])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert check_launch().processes == 1
    assert bool(single_process_warning()) == warns
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun
    assert single_process_warning() == ""


def test_processes_that_do_not_see_each_other_are_an_error(monkeypatch):
    """As without ACCELERATE_USE_CPU on a CPU: each of them would do all the work."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_joined(2)
    with pytest.raises(ValueError, match="2 processes were launched but accelerate joined 1: on a CPU set ACCELERATE_"):
        check_joined(1)


def test_a_program_for_one_process_rejects_several(monkeypatch):
    check_single_process("why")
    for name, text in TWO.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match="2 processes were launched: start it on one process: why"):
        check_single_process("why")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no file of accelerate (no distributed_type); give one of scripts/accelerate_*.yaml"),
        ("- FSDP\n", "no file of accelerate"),
        ("model: {family: sd35}\n", "no file of accelerate"),
        ("distributed_type: {\n", "no YAML ("),
        (
            "distributed_type: FSDPX\n",
            "distributed_type is 'FSDPX', which must be one of NO, MULTI_GPU, MULTI_CPU, FSDP",
        ),
        ("distributed_type: [FSDP]\n", "distributed_type is ['FSDP'], which must be"),
        ("distributed_type: FSDP\nnum_processes: two\n", "num_processes is 'two', which must be a whole number"),
        ("distributed_type: FSDP\nnum_processes: 0\n", "num_processes is 0, which must be a whole number"),
        ("distributed_type: FSDP\nmachine_rank: 1.5\n", "machine_rank is 1.5, which must be a whole number"),
    ],
)
def test_a_wrong_file_of_accelerate_gets_one_line(tmp_path, text, says):
    path = tmp_path / "accelerate.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^ACCELERATE_CONFIG a: {re.escape(says)}"):
        check_accelerate_file(path, "ACCELERATE_CONFIG a")


def test_files_of_accelerate_pass(tmp_path):
    """A bare NO is false in YAML, and accelerate takes it; LAUNCH_FLAGS may give an empty number of processes."""
    (tmp_path / "own.yaml").write_text("distributed_type: NO\nnum_processes:\n")
    for path in (*(Path(__file__).parents[3] / "scripts").glob("accelerate_*.yaml"), tmp_path / "own.yaml"):
        check_accelerate_file(path, "")
