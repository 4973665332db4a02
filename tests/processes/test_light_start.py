"""A program imports no model library before it has reported wrong input: the imports take seconds."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDS_GRADIO = pytest.mark.skipif(find_spec("gradio") is None, reason="pip install -e '.[demo]'")
ROOT = Path(__file__).parents[2]
# Calls the main function of a module or of a root program, and prints the libraries that this imported.
CALL = """
import importlib, runpy, sys
name = sys.argv[1]
main = runpy.run_path(name)["PROGRAM"].main if name.endswith(".py") else importlib.import_module(name).main
try:
    status = main(sys.argv[2:])
except SystemExit as error:
    status = error.code
print(status, *sorted({"accelerate", "diffusers", "gradio", "peft", "torch", "transformers"} & sys.modules.keys()))
"""
TIME = """
import time, torch
imported = time.process_time()
from dpdmd import train
train.main(["--teacher_id", "no/such"])
print((time.process_time() - imported) / imported)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize(
    ("command", "imported"),
    [
        ("dpdmd.generate --model no/such --prompt a --out README.md/g", []),
        ("dpdmd.export --model no/such --out README.md/g", []),
        ("dpdmd.compare.__main__ no/such.yaml --out README.md/g", []),
        ("dpdmd.report.__main__ no/such", []),
        ("dpdmd.generate --model no/such --prompt a --out no/such", []),
        ("dpdmd.generate --model weights/no_such --prompt a --out no/such", ["torch"]),
        pytest.param("dpdmd.demo.__main__ --model no/such --port 70000", [], marks=NEEDS_GRADIO),
        pytest.param("dpdmd.demo.__main__ --model weights/no_such --port 0", ["torch"], marks=NEEDS_GRADIO),
        ("dpdmd.train --teacher_id no/such", ["torch"]),
        ("dpdmd.doctor --teacher_id no/such", ["torch"]),
        ("dpdmd.find_anchor.__main__ --num_seeds 1", []),
        ("dpdmd.find_anchor.__main__ --teacher_id no/such", ["torch"]),
        ("dpdmd.shapes.measure --model no/such", ["torch"]),
        ("test_diversity.py --model no/such", []),
        (
            "test_diversity.py --model weights/no_such --prompts_txt data/shapes_eval.txt --output_dir no/such "
            "--dino_path weights/tiny/dinov2 --clip_path weights/tiny/clip",
            ["torch"],
        ),
    ],
)
def test_wrong_input_is_reported_before_the_heavy_imports(command, imported):
    done = run(CALL, *command.split())
    assert ": error: " in done.stderr and done.stdout.split() == ["2", *imported]


def test_wrong_input_of_a_training_costs_little_more_than_the_import_of_torch():
    """Half of it at most, in the processor's seconds: those of the clock depend on what else the machine does."""
    done = run(TIME)
    assert "no such folder" in done.stderr and float(done.stdout) < 0.5
