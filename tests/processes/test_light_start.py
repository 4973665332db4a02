"""A program imports no model library before it has reported wrong input: the imports take seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

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
print(status, *sorted({"accelerate", "diffusers", "torch", "transformers"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("command", "imported"),
    [
        ("dpdmd.generate --model no/such --prompt a --out out --num_images 0", ""),
        ("dpdmd.export --out out", ""),
        ("dpdmd.export --model no/such --out out", "torch"),
        ("dpdmd.compare.__main__ no/such.yaml --out out", ""),
        ("dpdmd.report.__main__ no/such", ""),
        ("dpdmd.train --prompt_txt no/such", "torch"),
        ("dpdmd.doctor --teacher_id no/such", "torch"),
        ("dpdmd.shapes.measure --model no/such", "torch"),
        ("test_diversity.py --model no/such", "torch"),
    ],
)
def test_wrong_input_is_reported_before_the_heavy_imports(command, imported, tmp_path):
    name, *arguments = command.split()
    if name.endswith(".py"):
        name = str(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-c", CALL, name, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ": error: " in done.stderr and done.stdout.split() == ["2", *imported.split()]
