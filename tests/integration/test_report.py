"""The report of a training run, and the imports of the program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_runs import Page, make_run

from dpdmd import train
from dpdmd.evaluation import seed_grids
from dpdmd.report import writer


def test_no_model_library_is_imported(tmp_path):
    """Importing the program imports no plotting library, and writing a report imports no torch."""
    run = make_run(tmp_path / "run")
    code = (
        "import sys, dpdmd.report.__main__; assert 'matplotlib' not in sys.modules; "
        f"assert dpdmd.report.__main__.main([{str(run)!r}]) == 0; "
        "assert not {'torch', 'diffusers', 'transformers', 'accelerate', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def flags(short_run: list[str], tiny_scorers: dict[str, str], tmp_path: Path) -> list[str]:
    """Flags of a run that CLIP scores every six steps, for diversity and for alignment."""
    prompts = tmp_path / "eval.txt"
    prompts.write_text("a red circle\na <shape>")
    scorers = [part for flag in ("clip_path", "clip_score_path") for part in (f"--{flag}", tiny_scorers[flag])]
    evaluated = ["--div_prompts", str(prompts), "--pref_prompts", str(prompts), "--num_div_seeds", "3"]
    return [*short_run, *scorers, *evaluated, "--ckpt_every", "6", "--run_dir", str(tmp_path / "run")]


def test_a_run_keeps_its_report_up_to_date(flags, tmp_path, monkeypatch):
    """It is written at each evaluation and at the end. A resume drops evaluations after its checkpoint."""
    written, write = [], writer.write

    def counted(folders, out):
        write(folders, out)
        records = (out.parent / "metrics.jsonl").read_text().splitlines()
        written.append((json.loads(records[-1])["step"], Page(out.read_text(encoding="utf-8")).text))

    monkeypatch.setattr(writer, "write", counted)
    run = tmp_path / "run"
    assert train.main([*flags, "--max_steps", "12"]) == 0
    assert [step for step, _ in written] == [0, 6, 12]
    assert "run: 12 of 12 steps" in written[-1][1] and "“a <shape>”" in written[-1][1]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] in written[-1][1] and environment["processes"] == 1
    assert {path.name for path in (run / "seed_grids").iterdir()} == {
        *("teacher", "step_000000", "step_000006", "step_000012")
    }
    resumed = ["--resume_from_checkpoint", str(run / "ckpts" / "step_000006"), "--max_steps", "8"]
    assert train.main([*flags, *resumed]) == 0
    assert [s for s in seed_grids.read(run / "seed_grids") if s != "teacher"] == [0, 6, 8]
    assert "run: 8 of 8 steps" in written[-1][1]


def test_an_error_in_the_report_stops_no_training(flags, tmp_path, monkeypatch):
    """An error in the seed grids neither: each gives a warning, and the run ends as usual."""

    def fail(*_):
        raise RuntimeError("no font")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write", fail)
    monkeypatch.setattr(seed_grids, "save", full)
    assert train.main([*flags, "--max_steps", "6"]) == 0
    log = (tmp_path / "run" / "log" / "log.txt").read_text()
    assert log.count("no report was written: RuntimeError: no font") == 2
    assert "the report will lack the images of step 6: [Errno 28]" in log
    assert (tmp_path / "run" / "ckpts" / "step_000006").is_dir() and not (tmp_path / "run" / "report.html").exists()
