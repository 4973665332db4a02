"""A sweep's folder in the report: its runs are labelled, and its table and plane are on the page."""

import json
import shutil
from pathlib import Path

from made_up_runs import Page, make_run, make_sweep

from dpdmd.report.__main__ import main
from dpdmd.report.style import run_style
from dpdmd.report.sweeps import Table, is_sweep, read_results
from dpdmd.utils.tables import markdown_table, read_markdown_row


def page_of(*folders: Path, out: Path) -> Page:
    assert main([*map(str, folders), "--out", str(out)]) == 0
    return Page(out.read_text(encoding="utf-8"))


def test_a_sweeps_page_has_its_runs_its_table_and_its_plane(tmp_path, capsys):
    root = make_sweep(tmp_path / "table1", images=False)
    assert main([str(root)]) == 0 and capsys.readouterr().out.strip() == str(root / "report.html")
    page = Page((root / "report.html").read_text(encoding="utf-8"))
    labels = ["dmd, seed 0", "dmd, seed 1", "dpdmd, seed 0", "dpdmd, seed 1"]
    places = [page.text.index(label) for label in labels]
    assert places == sorted(places) and "4 runs" in page.text
    assert "Two | methods 2026-11-29, python -m dpdmd.compare a.yaml Configuration entropy accuracy" in page.text
    assert "dpdmd 0.780 ± 0.127 0.935 ± 0.064" in page.text and "Minus dmd: " in page.text
    assert "± is half the width of the 95% t interval over training seeds" in page.text
    assert [alt for alt in page.attributes("alt") if alt.startswith("Two | methods: ")]
    assert [source[:20] for source in page.attributes("src")] == ["data:image/webp;base"]


def test_the_runs_have_the_colours_of_the_plane(tmp_path):
    """The seeds of a configuration share its colour, in the table's order, and differ in marker and dashes."""
    runs = read_results(make_sweep(tmp_path / "s", every=0, images=False)).runs
    assert [(run.style, run.member) for run in runs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    one, other = run_style(1), run_style(1, 1)
    assert one.colour == other.colour and one.marker != other.marker and one.dash != other.dash


def test_a_sweep_beside_another_and_a_run(tmp_path):
    """Labels name the sweep if there are two, and no two configurations share a colour."""
    first = make_sweep(tmp_path / "first", seeds=(0,), every=0, images=False)
    second = make_sweep(tmp_path / "second", seeds=(3,), every=0, images=False)
    run = make_run(tmp_path / "alone", every=0, images=False)
    text = page_of(first, run, second, out=tmp_path / "page.html").text
    assert "first: dmd, seed 0" in text and "second: dpdmd, seed 3" in text and "alone" in text
    assert [entry.style for entry in read_results(second, 3).runs] == [3, 4]


def test_two_sweeps_of_one_name_have_their_own_labels(tmp_path):
    """A sweep that is given twice is one."""
    sweeps = [make_sweep(tmp_path / place / "table1", seeds=(0,), every=0, images=False) for place in "ab"]
    again = tmp_path / "a" / ".." / "a" / "table1"
    text = page_of(*sweeps, again, out=tmp_path / "page.html").text
    assert "a/table1: dmd, seed 0" in text and "b/table1: dmd, seed 0" in text and "4 runs" in text


def test_a_run_of_another_sweep_is_found(tmp_path):
    """With `--reuse`, a model's record names the run in the other sweep's folder."""
    other = make_sweep(tmp_path / "other", seeds=(0,), every=0, images=False)
    root = make_sweep(tmp_path / "sweep", seeds=(0,), every=0, images=False)
    reused = root / "runs" / "dmd" / "seed_0"
    shutil.rmtree(reused / "run")
    trained = other / "runs" / "dmd" / "seed_0" / "run"
    (reused / "oracle.json").write_text(json.dumps({"done": True, "asked": {"command": [], "model": str(trained)}}))
    assert [run.folder for run in read_results(root).runs] == [trained, root / "runs" / "dpdmd" / "seed_0" / "run"]
    (reused / "oracle.json").write_text("{")
    sweep = read_results(root)
    assert len(sweep.runs) == 1 and sweep.warnings == ["dmd, seed 0: its run folder is not there"]


def test_a_sweep_that_is_not_finished(tmp_path, capsys):
    """Without a table there are the runs; without a run there is an error."""
    root = make_sweep(tmp_path / "sweep", seeds=(0,), every=0, images=False)
    for name in ("table.md", "table.csv", "plane.png"):
        (root / name).unlink()
    text = page_of(root, out=tmp_path / "page.html").text
    assert "sweep: table.md cannot be read" in text and "dmd, seed 0" in text
    shutil.rmtree(root / "runs" / "dmd"), shutil.rmtree(root / "runs" / "dpdmd")
    assert is_sweep(root) and main([str(root)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == f"dpdmd.report: error: {root}: is a sweep without a run (runs/*/seed_*/run); train one first"


def test_a_table_is_read_as_it_was_written(tmp_path):
    rows = [["a|b", "1 ± 2"], ["", "–"]]
    lines = markdown_table(["", "x | y"], rows).splitlines()
    assert [read_markdown_row(line) for line in (lines[0], *lines[2:])] == [["", "x | y"], *rows]
    table = next(block for block in read_results(make_sweep(tmp_path / "s")).blocks if isinstance(block, Table))
    assert table.header == ["", "entropy", "accuracy"] and [row[0] for row in table.rows] == ["teacher", "dmd", "dpdmd"]
