"""The scripts print their help and report wrong settings on a machine without weights and packages."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("check.sh", "Checks before a commit"),
        ("download_prompts.sh", "Download the paper's prompt sets"),
        ("download_weights.sh", "usage: bash scripts/download_weights.sh [NAME ...]"),
        ("run_tests.sh", "Run the tests"),
        ("run_train.sh", "Distils the model of a family on 8 GPUs"),
        ("run_train_sd35.sh", "Distils SD3.5-Medium with the paper's settings"),
        ("run_train_tiny.sh", "Distils the small world's 30-step teacher"),
        ("run_train_sdxl.sh", "Distils SDXL (base 1.0) with the paper's settings"),
        ("slurm_train_sd35.sh", "SD3.5-Medium on two SLURM nodes of 8 GPUs"),
    ],
)
def test_help_needs_nothing(tmp_path, script, says, flag):
    for package in ("pyarrow", "huggingface_hub"):  # as if they were not installed
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('no {package}', name='{package}')\n")
    environment = {"PATH": os.defpath, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), flag],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") and says in done.stdout
    assert "SBATCH" not in done.stdout and "set -" not in done.stdout


def test_a_missing_package_is_named_when_it_is_needed(tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ImportError('no pyarrow', name='pyarrow')\n")
    environment = {"PATH": os.defpath, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    command = ["bash", str(ROOT / "scripts" / "download_prompts.sh"), "--out", str(tmp_path), "coco"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.startswith("download_prompts: no pyarrow; ")
    wrong = subprocess.run(
        [*command, "cocoa"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode == 2 and "unknown set 'cocoa': choose of" in wrong.stderr


def test_every_default_weight_can_be_fetched_and_is_listed():
    """download_weights.sh and the documents have all weights that a root program reads by default."""
    fetched = (ROOT / "scripts" / "download_weights.sh").read_text()
    listed = "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    for program in sorted(ROOT.glob("test_*.py")):
        for value in runpy.run_path(str(program))["PROGRAM"].defaults.values():
            if isinstance(value, str) and value.startswith("weights/"):
                name = (
                    value.split("/")[1] if value.startswith("weights/ImageReward/") else value.removeprefix("weights/")
                )
                assert name in fetched and f"`weights/{name}`" in listed


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MEASURED_PROMPTS", "no/such.txt", "MEASURED_PROMPTS no/such.txt: cannot be read (No such file or directory)"),
        ("MEASURED_PROMPTS", "data/prompts_eval.txt", "is not a caption of the small world"),
        ("NUM_SEEDS", "abc", "argument NUM_SEEDS: invalid int value: 'abc'"),
        ("GRID_PROMPT", " ", "GRID_PROMPT: is empty"),
    ],
)
def test_the_small_worlds_run_checks_its_measurement_before_it_trains(tmp_path, variable, value, says):
    environment = os.environ | {variable: value}
    command = ["bash", str(ROOT / "scripts" / "run_train_tiny.sh"), "--run_dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("run_train_tiny.sh: ") and says in line
    assert not (tmp_path / "run").exists()
