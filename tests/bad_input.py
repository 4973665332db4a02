"""Fixtures for the tests of wrong input: valid command lines, and the one-line error that a wrong one gets."""

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dpdmd import train
from dpdmd.models.registry import LAYOUTS, family_class

ROOT = Path(__file__).parent.parent
LONG = "a" * 300
Refused = Callable[[dict[str, str]], str]


@pytest.fixture
def flags(tiny_pipeline: Path, tmp_path: Path) -> dict[str, str]:
    """Return a valid command line of `dpdmd.train`, as flag -> value."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    return {
        "--teacher_id": str(tiny_pipeline),
        "--prompt_txt": str(prompts),
        "--height": "64",
        "--width": "64",
        "--run_dir": str(tmp_path / "run"),
    }


@pytest.fixture
def no_model_loads(monkeypatch):
    """Fail the test if a model is loaded: wrong input is reported before."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded before the wrong input was reported")

    for family in map(family_class, LAYOUTS):
        for name in ("load_network", "load_text_encoder", "load_image_decoder"):
            monkeypatch.setattr(family, name, refuse)


@pytest.fixture
def refused(flags, capsys, tiny_sdxl, monkeypatch) -> Refused:
    """Return a function that calls `dpdmd.train` with changed flags and returns the error that it prints.

    A flag whose value is "" is given without a value.
    """
    monkeypatch.setenv("COLUMNS", "200")  # argparse folds its lines to the terminal's width

    def message(changes: dict[str, str]) -> str:
        command = []
        for flag, value in {**flags, **changes}.items():
            command += [flag, value] if value else [flag]
        return one_line("dpdmd.train", train.main, command, capsys)

    return message


def one_line(program: str, main: Callable[[list[str]], int], command: list[str], capsys: pytest.CaptureFixture) -> str:
    """Return the one-line error of a program for a wrong command line, without the program's name."""
    capsys.readouterr()  # progress bars of models that a test made first
    try:
        status = main(command)
    except SystemExit as error:  # argparse
        status = error.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"{program}: error: ")
    assert sum("error:" in line for line in lines) == 1
    assert len(lines) == 1 or program != "dpdmd.train"  # for programs with few flags, argparse prints the usage, too
    return lines[-1].removeprefix(f"{program}: error: ")


@pytest.fixture
def refused_by(capsys, monkeypatch) -> Callable[..., str]:
    """Return a function that calls a program with a command line and returns the error that it prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def message(program: str, main: Callable[[list[str]], int], command: list[str]) -> str:
        return one_line(program, main, command, capsys)

    return message


def program(name: str) -> Callable[[list[str]], int]:
    """Return the main function of a root program."""
    return runpy.run_path(str(ROOT / name))["PROGRAM"].main


@pytest.fixture
def diversity(tiny_pipeline, tiny_scorers, tmp_path) -> list[str]:
    """Return a valid command line of test_diversity.py."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    given = ["--model", str(tiny_pipeline), "--prompts_txt", str(tmp_path / "prompts.txt")]
    scorers = ["--dino_path", tiny_scorers["dino_path"], "--clip_path", tiny_scorers["clip_path"]]
    return [*given, *scorers, "--output_dir", str(tmp_path / "out")]


@pytest.fixture
def broken(tmp_path: Path, tiny_pipeline: Path) -> Path:
    """Return a copy of the teacher for a test to damage."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "broken"))
