"""Variables of launchers and libraries that must not change the mathematics of a run: equal metrics to the last bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import cpu_environment

ROOT = Path(__file__).parents[2]
NO_EFFECT = {
    "ACCELERATE_BYPASS_DEVICE_MAP": "true",
    "ACCELERATE_DEBUG_MODE": "true",
    "ACCELERATE_DOWNCAST_BF16": "true",
    "ACCELERATE_DYNAMO_MODE": "max-autotune",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "true",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
    "ACCELERATE_GRADIENT_CLIPPING": "0.001",
    "ACCELERATE_INIT_INCLUDE_BUFFERS": "true",
    "DIFFUSERS_ATTN_BACKEND": "_native_math",
    "FSDP_ACTIVATION_CHECKPOINTING": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_IGNORED_MODULES": ".*",
    "FSDP_OFFLOAD_PARAMS": "true",
    "NVIDIA_TF32_OVERRIDE": "0",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "PYTHONHASHSEED": "7",
    "TORCHINDUCTOR_USE_FAST_MATH": "1",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
    "TORCH_COMPILE_DISABLE": "1",
}


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        (["--batch_size", "1", "--grad_accum", "2"], {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2", **NO_EFFECT}),
        (["--bf16"], {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    ],
    ids=["accumulation", "bf16"],
)
def test_a_setting_of_a_library_is_not_counted_beside_ours(short_run, tmp_path, flags, variables):
    """The gradient was divided by ACCELERATE_GRADIENT_ACCUMULATION_STEPS and by --grad_accum."""

    def metrics(name: str, more: dict[str, str]) -> list[dict]:
        run = ["--run_dir", str(tmp_path / name), "--max_steps", "6", "--ckpt_every", "6", "--vis_every", "0"]
        command = [sys.executable, "-m", "dpdmd.train", *short_run, *run, *flags]
        kept = {key: value for key, value in cpu_environment().items() if key not in variables}
        environment = {**kept, **more}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        measured = ("seconds", "samples_per_second", "memory_gb")
        return [{key: value for key, value in record.items() if key not in measured} for record in records]

    assert metrics("with", variables) == metrics("without", {})


@pytest.mark.parametrize(
    ("program", "variable", "value"),
    [
        ("dpdmd.train", "TQDM_MININTERVAL", "abc"),
        ("dpdmd.train", "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments=True"),
        ("dpdmd.generate", "PYTORCH_ALLOC_CONF", "max_split_size_mb:64,expandable_segments"),
        ("dpdmd.export", "TORCH_DISTRIBUTED_DEBUG", "1"),
        ("dpdmd.doctor", "TORCH_LOGS", "foo.bar"),
        ("dpdmd.generate --model weights/tiny/sd35 --prompt a --out", "DIFFUSERS_ATTN_BACKEND", "flash_atn"),
        ("dpdmd.export --model weights/tiny/sd35 --out", "DIFFUSERS_ATTN_BACKEND", "flash_atn"),
        ("dpdmd.report", "MPLBACKEND", "foo"),
    ],
)
def test_a_variable_that_ends_the_import_of_a_library_is_named(tmp_path, program, variable, value):
    command = [sys.executable, "-m", *program.split(), str(tmp_path / "out")]
    environment = {**cpu_environment(), variable: value}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{program.split()[0]}: error: {variable}={value}: ") and line.endswith("unset it")


@pytest.mark.parametrize("program", ["dpdmd.train", "dpdmd.report", "dpdmd.generate"])
def test_a_current_folder_that_is_gone_is_named(tmp_path, program):
    (tmp_path / "gone").mkdir()
    start = f"rmdir {tmp_path / 'gone'}; exec {sys.executable} -m {program} --model x"
    environment = {**cpu_environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", start], cwd=tmp_path / "gone", env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{program}: error: the current folder is gone; cd to one that exists\n"
