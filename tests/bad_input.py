"""What the tests of wrong input share: command lines that would run, and the one line that a wrong one gets.

Each line is noted in TOLD, of which test_errors_table.py makes docs/errors.md.
"""

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dpdmd import train
from dpdmd.models.sd35.family import SD35
from dpdmd.models.sdxl.family import SDXL

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "errors.md"
LONG = "a" * 300
HEAD = """# What wrong input is told

Each line was printed by `python -m dpdmd.train` on every rank, or by the program that its row names, before any model
was loaded, with exit status 2.
`WRITE_ERRORS=1 python -m pytest tests/test_bad_*.py tests/test_errors_table.py` makes this table, and the same tests
hold it. TEACHER and TMP stand for folders.

| wrong | what is told |
|---|---|
"""
TOLD: dict[str, str] = {}  # what was wrong -> the line it got
Refused = Callable[[dict[str, str], str], str]


@pytest.fixture
def flags(tiny_pipeline: Path, tmp_path: Path) -> dict[str, str]:
    """A command line that would run, as flag -> value."""
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
    """Loading anything fails the test: wrong input is told before."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded before the input was refused")

    for name in ("load_network", "load_text_encoder", "load_image_decoder"):
        monkeypatch.setattr(SD35, name, refuse)
        monkeypatch.setattr(SDXL, name, refuse)


@pytest.fixture
def refused(flags, capsys, tmp_path, tiny_pipeline, tiny_sdxl, monkeypatch) -> Refused:
    """Calls `dpdmd.train` with changed flags ("" for none to give); returns the one line it gets, and notes it."""
    monkeypatch.setenv("COLUMNS", "200")  # argparse folds its lines to the terminal's width

    def told(changes: dict[str, str], what: str) -> str:
        command = []
        for flag, value in {**flags, **changes}.items():
            command += [flag, value] if value else [flag]
        return one_line("dpdmd.train", train.main, command, capsys, what, places)

    places = {tiny_pipeline: "TEACHER", tiny_sdxl: "TEACHER", tmp_path: "TMP", ROOT: "CHECKOUT"}
    return told


def one_line(
    program: str,
    main: Callable[[list[str]], int],
    command: list[str],
    capsys: pytest.CaptureFixture,
    what: str,
    places: dict[Path, str],
) -> str:
    """The one line that a program's wrong command line gets; noted, with the names of `places`."""
    try:
        status = main(command)
    except SystemExit as error:  # argparse
        status = error.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"{program}: error: ")
    assert sum("error:" in line for line in lines) == 1
    assert len(lines) == 1 or program != "dpdmd.train"  # argparse shows the usage of those with few flags
    line = shown = lines[-1].removeprefix(f"{program}: error: ")
    for path, name in places.items():
        shown = shown.replace(str(path), name)
    TOLD[what] = shown
    return line


@pytest.fixture
def refused_by(capsys, tiny_pipeline, tmp_path, monkeypatch) -> Callable[..., str]:
    """Calls another program with a command line; returns the one line it gets, and notes it."""
    monkeypatch.setenv("COLUMNS", "200")
    places = {tiny_pipeline: "TEACHER", tmp_path: "TMP", ROOT: "CHECKOUT", Path(LONG): "A_LONG_NAME"}

    def told(program: str, main: Callable[[list[str]], int], command: list[str], what: str) -> str:
        return one_line(program, main, command, capsys, what.replace(LONG, "A_LONG_NAME"), places)

    return told


def program(name: str) -> Callable[[list[str]], int]:
    """The main function of a root program."""
    return runpy.run_path(str(ROOT / name))["PROGRAM"].main


@pytest.fixture
def diversity(tiny_pipeline, tiny_scorers, tmp_path) -> list[str]:
    """A command line of test_diversity.py that would run."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    given = ["--model", str(tiny_pipeline), "--prompts_txt", str(tmp_path / "prompts.txt")]
    scorers = ["--dino_path", tiny_scorers["dino_path"], "--clip_path", tiny_scorers["clip_path"]]
    return [*given, *scorers, "--output_dir", str(tmp_path / "out")]


@pytest.fixture
def broken(tmp_path: Path, tiny_pipeline: Path) -> Path:
    """A copy of the teacher, to be broken."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "broken"))
