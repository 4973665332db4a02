"""`dpdmd.compare`: sweeps are checked first, run once whatever happens meanwhile, and told in one table."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
from small_sweep import call, starts, two_methods

from dpdmd.compare import cli, jobs, results

ROOT = Path(__file__).parents[2]


@pytest.fixture
def values(tmp_path: Path, tiny_pipeline: Path) -> dict:
    return two_methods(tmp_path, tiny_pipeline)


def test_everything_runs_once_and_the_table_is_right(values, tmp_path, capsys):
    assert cli.main(call(values, tmp_path)) == 0
    once = starts(tmp_path)
    assert len(once) == 9 and set(once.values()) == {1}
    rows = {(r["configuration"], r["metric"]): r for r in csv.DictReader((tmp_path / "out" / "table.csv").open())}
    ours, teacher = rows["dpdmd", "accuracy"], rows["teacher", "accuracy"]
    assert (float(ours["seed_0"]), float(ours["seed_1"]), float(ours["mean"])) == pytest.approx((0.75, 0.76, 0.755))
    # two seeds: half width t(.975; 1) = 12.706 times the standard error .005
    assert float(ours["margin"]) == pytest.approx(12.7062 * 0.005, rel=1e-4) and teacher["margin"] == ""
    assert float(ours["difference"]) == pytest.approx(0.25) and float(ours["paper"]) == 0.8
    assert float(teacher["difference"]) == pytest.approx(0.9 - 0.505) and rows["dmd", "accuracy"]["difference"] == ""
    # nine prompts, all differences alike: only the signs ++... and --... are as far from 0, 2 of 512
    assert float(ours["p_prompts"]) == pytest.approx(2 / 512, abs=0.003)
    assert "| dpdmd | 0.755 ± 0.064 (paper 0.800) | 0.755 ± 0.064 |" in capsys.readouterr().out
    assert r"dpdmd & $0.755 \pm 0.064$ (0.800) & $0.755 \pm 0.064$ \\" in (tmp_path / "out" / "table.tex").read_text()
    assert r"teacher & $0.900$ & $0.900$ \\" in (tmp_path / "out" / "table.tex").read_text()
    assert cli.main(call(values, tmp_path)) == 0 and starts(tmp_path) == once


def test_the_tables_are_there_after_each_model(values, tmp_path, monkeypatch):
    """And a table or plane that cannot be written meanwhile stops nothing."""
    values["plane"] = {"x": "entropy", "y": "accuracy"}
    seen, write = [], results.write

    def broken_at_first(*arguments):
        seen.append((tmp_path / "out" / "table.md").exists() and (tmp_path / "out" / "table.md").read_text())
        if len(seen) == 1:
            raise OSError("no space left")
        return write(*arguments)

    monkeypatch.setattr(results, "write", broken_at_first)
    assert cli.main(call(values, tmp_path)) == 0
    assert seen[0] is seen[1] is False and len(seen) == 6  # five models, and the end
    finished = [5 - text.partition("Not finished: ")[2].partition("\n")[0].count("seed") for text in seen[2:]]
    assert finished[0] >= 2 and finished == sorted(finished) and finished[-1] == 5
    assert (tmp_path / "out" / "plane.png").is_file()


def test_a_signal_leaves_a_table_of_what_is_finished(values, tmp_path):
    (tmp_path / "obey").write_text("wait")
    first = process(call(values, tmp_path))
    wait_for(lambda: (tmp_path / "out" / "table.md").exists())  # the teacher alone is measured without waiting
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 143 and "| teacher | 0.900 |" in out
    assert "Not finished: dmd, seed 0; dpdmd, seed 0; dmd, seed 1; dpdmd, seed 1." in out
    assert (tmp_path / "out" / "table.md").read_text() == out and (tmp_path / "out" / "table.tex").is_file()


def test_a_image_or_plane_that_fails_keeps_the_table(values, tmp_path, capsys, monkeypatch):
    values["plane"] = {"x": "entropy", "y": "accuracy"}
    values["picture"] = {"prompts": ["a red circle"], "rows": ["teacher", "dmd"]}  # neither is a pipeline

    def broken(*arguments):
        raise RuntimeError("no font")

    monkeypatch.setattr(results, "draw_plane", broken)
    assert cli.main(call(values, tmp_path)) == 1
    told = capsys.readouterr()
    assert "| dpdmd | 0.755" in told.out and (tmp_path / "out" / "table.csv").is_file()
    assert "plane.png: RuntimeError: no font" in told.err and "picture.png: --model" in told.err


def test_a_disk_that_is_full_is_told_in_one_line(values, tmp_path, capsys, monkeypatch):
    """At the end, with the picture, and in the thread of one model, which leaves the others alone."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    values["picture"] = {"prompts": ["a red circle"], "rows": ["teacher"]}
    note = jobs.Stage.note
    with monkeypatch.context() as patch:
        patch.setattr(results, "draw", full)
        patch.setattr(
            jobs.Stage, "note", lambda stage, done: (full if "dpdmd/seed_1" in str(stage.folder) else note)(stage, done)
        )
        assert cli.main(call(values, tmp_path)) == 1
    told = capsys.readouterr()
    assert "dpdmd, seed 1: [Errno 28] No space left on device" in told.err and "| dmd | 0.505 ±" in told.out
    assert "error: picture.png: [Errno 28] No space left on device" in told.err
    monkeypatch.setattr(results, "write_text", full)
    assert cli.main(call(values, tmp_path)) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].endswith("out: the tables could not be written ([Errno 28] No space left on device)")


def test_a_metric_that_the_result_lacks_leaves_its_cells_empty(values, tmp_path, capsys):
    values["measure"]["oracle"]["metrics"] = ["accuracy", "beauty"]
    assert cli.main(call(values, tmp_path)) == 1
    told = capsys.readouterr()
    assert "no 'beauty' in" in told.err and "| dpdmd | 0.755 ± 0.064 (paper 0.800) | – |" in told.out
    (tmp_path / "out" / "runs" / "dmd" / "seed_0" / "oracle" / "figures.json").write_text("{")
    assert cli.main(call(values, tmp_path)) == 1
    told = capsys.readouterr()
    assert "dmd/seed_0/oracle/figures.json: neither" in told.err and "| dmd | 0.510 | – |" in told.out


@pytest.mark.parametrize(("given", "expected"), [(None, 900), ("60", 60)])
def test_a_launcher_waits_for_the_checkpoint_of_a_stopped_run(values, tmp_path, monkeypatch, given, expected):
    """torch's own 30 seconds are too few; what the user says counts."""
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    if given:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", given)
    values["measure"]["oracle"]["command"] = f"{sys.executable} {tmp_path / 'tell.py'} {{out}}"
    (tmp_path / "tell.py").write_text(
        "from torch.distributed.launcher.api import LaunchConfig as L; print(L(1, 1, 1).shutdown_timeout)"
    )
    assert cli.main(call(values, tmp_path, "--only", "teacher")) == 1  # it leaves no figures
    log = (tmp_path / "out" / "runs" / "teacher" / "oracle.log").read_text()
    assert log.splitlines()[-1] == str(expected)


@pytest.mark.parametrize("script", ["run_train_sd35.sh", "run_train_sdxl.sh"])
@pytest.mark.parametrize(("given", "expected"), [({}, "900"), ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}, "60")])
def test_so_does_that_of_the_launch_scripts(tmp_path, script, given, expected):
    python = tmp_path / "python"  # it has all that setup.py asks for, and tells what it is launched with
    python.write_text('#!/bin/bash\n[ "$1" = - ] && echo "$0" || echo "$* $TORCH_ELASTIC_SHUTDOWN_TIMEOUT"\n')
    python.chmod(0o755)
    (tmp_path / "model_index.json").touch()
    paths = ("TEACHER", "PICK_PROCESSOR", "PICK_MODEL", "IR_MODEL", "IR_MED_CONFIG", "DINO", "CLIP")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCH_ELASTIC")}
    environment |= {"PYTHON": str(python), **dict.fromkeys(paths, str(tmp_path)), **given}
    done = subprocess.run(
        ["bash", f"scripts/{script}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("-m accelerate.commands.launch") and done.stdout.split()[-1] == expected


def test_a_measure_finds_what_an_earlier_one_left(values, tmp_path):
    """{out}/../oracle, as the system follows it: through a folder that must be there."""
    copy = "cp {out}/../oracle/figures.json {out}/../again.json"
    values["measure"]["second"] = {"command": copy, "result": "../again.json", "metrics": {"again": "accuracy"}}
    assert cli.main(call(values, tmp_path, "--only", "teacher")) == 0
    assert "| teacher | 0.900 | 0.900 | 0.900 |" in (tmp_path / "out" / "table.md").read_text()


def test_a_failing_run_is_told_and_the_others_go_on(values, tmp_path, capsys):
    (tmp_path / "obey").write_text("fail dmd 1")
    assert cli.main(call(values, tmp_path)) == 1
    told = capsys.readouterr()
    assert "dmd, seed 1: train ended with status 1" in told.err and "this went wrong" in told.err
    assert "Not finished: dmd, seed 1." in told.out and "| dmd | 0.500 |" in told.out and "0.755" in told.out
    (tmp_path / "obey").unlink()
    assert cli.main(call(values, tmp_path)) == 0
    assert starts(tmp_path)["dmd/seed_1/run"] == 2 and starts(tmp_path)["dmd/seed_0/run"] == 1


def test_only_runs_what_it_names(values, tmp_path):
    assert cli.main(call(values, tmp_path, "--only", "teacher", "dmd")) == 0
    assert set(starts(tmp_path)) == {
        "teacher/oracle",
        *(f"dmd/seed_{seed}/{what}" for seed in (0, 1) for what in ("run", "oracle")),
    }
    assert cli.main(call(values, tmp_path, "--only", "nobody")) == 2


def test_a_part_of_a_sweep_is_a_command_whose_table_it_gives_again(values, tmp_path, capsys):
    """Whatever else was finished in the same folder, and without the baseline's column where that is not asked for."""
    part = ["--only", "teacher", "dpdmd", "--seeds", "1"]
    assert cli.main(call(values, tmp_path, *part)) == 0
    alone = capsys.readouterr().out
    assert set(starts(tmp_path)) == {"teacher/oracle", "dpdmd/seed_1/run", "dpdmd/seed_1/oracle"}
    assert "| dpdmd | 0.760 (paper" in alone and "dmd |" not in alone.replace("dpdmd |", "")
    assert "Not finished" not in alone and "Minus" not in alone and "--only teacher dpdmd --seeds 1`" in alone
    assert cli.main(call(values, tmp_path)) == 0
    assert "| dpdmd | 0.755 ± " in capsys.readouterr().out
    assert cli.main(call(values, tmp_path, *part)) == 0 and capsys.readouterr().out == alone
    assert cli.main(call(values, tmp_path, "--seeds", "2")) == 2
    assert "--seeds 2: not one of the sweep's seeds (0, 1)" in capsys.readouterr().err


def test_a_row_may_have_its_own_launcher(values, tmp_path, capsys):
    values["configurations"]["dmd"]["launcher"] = values.pop("launcher") + " --own"
    values["launcher"] = "false"
    assert cli.main(call(values, tmp_path)) == 1
    assert "Not finished: dpdmd, seed 0; dpdmd, seed 1." in capsys.readouterr().out
    assert (
        (tmp_path / "out/runs/dmd/seed_0/train.log").read_text().split("\n")[0].count("train.py --own -m dpdmd.train")
    )


def test_what_another_sweep_trained_is_measured_only(values, tmp_path, capsys):
    """Whatever it is called there; and what was measured so is not taken for a model of the sweep's own."""
    first, second = tmp_path / "out", tmp_path / "second"
    assert cli.main(call(values, tmp_path, "--only", "dpdmd")) == 0
    values["configurations"] = {"ours": {"flags": {"method": "dpdmd"}}, "dmd": {"flags": {"method": "dmd"}}}
    arguments = [*call(values, tmp_path), "--out", str(second)]
    assert cli.main([*arguments, "--reuse", str(first)]) == 0
    assert not (second / "runs/ours/seed_0/run").exists() and (second / "runs/dmd/seed_0/run/value").is_file()
    assert "| ours | 0.755" in capsys.readouterr().out
    assert cli.main(arguments) == 2
    assert f"was made with model '{first}/runs/dpdmd/seed_0/run'" in capsys.readouterr().err


def process(arguments: list[str], stderr: int | IO = subprocess.PIPE) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dpdmd.compare", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_after_a_kill_the_same_command_waits_for_what_was_left_behind(values, tmp_path):
    """The killed sweep's trainings live on: no second one may start on their folders while they do."""
    (tmp_path / "obey").write_text("wait")
    first = process(call(values, tmp_path))
    running = [
        tmp_path / "out" / "runs" / "dmd" / "seed_0" / "run",
        tmp_path / "out" / "runs" / "dpdmd" / "seed_0" / "run",
    ]
    wait_for(lambda: all((run / "starts").exists() for run in running))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with (tmp_path / "told").open("w") as told:
        second = process(call(values, tmp_path), told)
    wait_for(lambda: "waiting for a process of an earlier call" in (tmp_path / "told").read_text())
    time.sleep(1)
    assert second.poll() is None
    assert [len((run / "starts").read_text()) for run in running] == [1, 1]
    (tmp_path / "obey").unlink()
    second.communicate(timeout=120)
    assert second.returncode == 0
    counts = starts(tmp_path)
    assert len(counts) == 9 and {counts[f"{name}/seed_0/run"] for name in ("dmd", "dpdmd")} == {2}
    assert all(count == 1 for place, count in counts.items() if not place.endswith("seed_0/run"))


def test_a_signal_reaches_the_runs_and_the_same_command_goes_on(values, tmp_path):
    (tmp_path / "obey").write_text("wait")
    first = process(call(values, tmp_path))
    wait_for(lambda: (tmp_path / "out" / "runs" / "dmd" / "seed_0" / "run" / "starts").exists())
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)  # its trainings, which wait for ever, are ended with it
    assert first.returncode == 143 and "the same command goes on" in err
    (tmp_path / "obey").unlink()
    assert cli.main(call(values, tmp_path)) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"configurations": {"dmd": {"flags": {"method": "dmd", "k_anchor": 9}}}}, "k_anchor 5 (now 9)"),
        ({"launcher": "python other.py"}, "launcher"),
    ],
)
def test_what_is_there_must_be_of_the_same_configuration(values, tmp_path, capsys, change, says):
    assert cli.main(call(values, tmp_path)) == 0
    before = starts(tmp_path)
    values["configurations"].update(change.pop("configurations", {}))
    assert cli.main(call({**values, **change}, tmp_path)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert says in line and "give another --out" in line and starts(tmp_path) == before


def test_an_option_that_came_later_counts_as_its_default(values, tmp_path):
    assert cli.main(call(values, tmp_path)) == 0
    for record in (tmp_path / "out").rglob("train.json"):
        there = json.loads(record.read_text())
        del there["asked"]["dmd_t"]
        record.write_text(json.dumps(there))
    before = starts(tmp_path)
    assert cli.main(call(values, tmp_path)) == 0 and starts(tmp_path) == before
