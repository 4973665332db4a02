"""`dpdmd.compare`: every stage runs once, also after a failure, a signal or a kill, and one table shows the results."""

import csv
import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
from safetensors.torch import load_file, save_file
from small_sweep import call, starts, two_methods

from dpdmd.compare import jobs, outputs
from dpdmd.compare.__main__ import main
from dpdmd.compare.metrics import read_metrics
from dpdmd.report import __main__ as report
from dpdmd.shapes import measure

ROOT = Path(__file__).parents[2]


@pytest.fixture
def values(tmp_path: Path, tiny_pipeline: Path) -> dict:
    return two_methods(tmp_path, tiny_pipeline)


def test_everything_runs_once_and_the_table_is_right(values, tmp_path, capsys):
    assert main(call(values, tmp_path)) == 0
    counts = starts(tmp_path)
    assert len(counts) == 9 and set(counts.values()) == {1}
    rows = {(r["configuration"], r["metric"]): r for r in csv.DictReader((tmp_path / "out" / "table.csv").open())}
    ours, teacher = rows["dpdmd", "accuracy"], rows["teacher", "accuracy"]
    assert (float(ours["seed_0"]), float(ours["seed_1"]), float(ours["mean"])) == pytest.approx((0.75, 0.76, 0.755))
    # two seeds: half width t(.975; 1) = 12.706 times the standard error .005
    assert float(ours["margin"]) == pytest.approx(12.7062 * 0.005, rel=1e-4) and teacher["margin"] == ""
    assert float(ours["difference"]) == pytest.approx(0.25) and float(ours["paper"]) == 0.8
    assert float(teacher["difference"]) == pytest.approx(0.9 - 0.505) and rows["dmd", "accuracy"]["difference"] == ""
    # nine prompts, all differences alike: only the signs ++... and --... are as far from 0, 2 of 512
    assert float(ours["p_prompts"]) == pytest.approx(2 / 512, abs=0.003)
    printed = capsys.readouterr().out
    assert "| dpdmd | 0.755 ± 0.064 (paper 0.800) | 0.755 ± 0.064 |" in printed
    command = shlex.split(printed.strip().splitlines()[-1].removeprefix("report: "))
    assert command[:3] == ["python", "-m", "dpdmd.report"] and report.main(command[3:]) == 0
    assert "dpdmd, seed 1" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert r"dpdmd & $0.755 \pm 0.064$ (0.800) & $0.755 \pm 0.064$ \\" in (tmp_path / "out" / "table.tex").read_text()
    assert r"teacher & $0.900$ & $0.900$ \\" in (tmp_path / "out" / "table.tex").read_text()
    assert main(call(values, tmp_path)) == 0 and starts(tmp_path) == counts


def test_the_table_has_the_cost_of_each_training_if_the_plane_shows_it(values, tmp_path):
    """Two cycles, batch 4: 5 (4 + 3) of the fake score, 4 + 2 x 4 + 3 of the student, and 2 x 5 of the anchor."""
    values["plane"] = {"x": "entropy", "y": "accuracy", "size": "calls"}
    values["flags"] |= {"max_steps": 12}
    assert main(call(values, tmp_path, "--seeds", "0")) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert (
        "Network calls of a training in each process, each of one sample, a backward pass as two: dmd 400, dpdmd 480."
        in table
    )


def test_the_tables_are_there_after_each_model(values, tmp_path, monkeypatch):
    """A table that cannot be written at first stops nothing."""
    values["plane"] = {"x": "entropy", "y": "accuracy"}
    seen, write = [], outputs.write_tables

    def broken_at_first(*arguments):
        seen.append((tmp_path / "out" / "table.md").exists() and (tmp_path / "out" / "table.md").read_text())
        if len(seen) == 1:
            raise OSError("no space left")
        return write(*arguments)

    monkeypatch.setattr(outputs, "write_tables", broken_at_first)
    assert main(call(values, tmp_path)) == 0
    assert seen[0] is seen[1] is False and len(seen) == 6  # after each of five models, and at the end
    finished = [5 - text.partition("Not finished: ")[2].partition("\n")[0].count("seed") for text in seen[2:]]
    assert finished[0] >= 2 and finished == sorted(finished) and finished[-1] == 5
    assert (tmp_path / "out" / "plane.png").is_file()


def test_the_metrics_of_the_oracle_are_read_and_images_drawn(tiny_pipeline, tmp_path):
    """The means over prompts are those of `dpdmd.shapes.measure`."""
    (tmp_path / "prompts.txt").write_text("a red circle\na small shape\na small red circle on a grey background\n")
    oracle = f"python -m dpdmd.shapes.measure --model {{model}} --prompt_txt {tmp_path / 'prompts.txt'} --steps 1"
    sweep = {
        "title": "One pipeline",
        "configurations": {"teacher": {"model": str(tiny_pipeline)}},
        "measure": {
            "oracle": {
                "command": f"{oracle} --num_seeds 2 --out {{out}}/figures.json",
                "result": "figures.json",
                "metrics": ["accuracy", "entropy"],
            }
        },
        "picture": {"prompts": ["a red circle"], "rows": ["teacher"], "num_images": 2},
    }
    assert main(call(sweep, tmp_path)) == 0
    path = tmp_path / "out" / "runs" / "teacher" / "oracle" / "figures.json"
    metrics, (written,) = read_metrics(path), json.loads(path.read_text()).values()
    for name in measure.COLUMNS:
        assert metrics[name].mean == pytest.approx(written["mean"][name])
    assert len(metrics["accuracy"].by_prompt) == 3 and len(metrics["entropy"].by_prompt) == 2
    assert set(metrics) > {"accuracy/colour_shape", "accuracy/single_attribute", "accuracy/all_attributes"}
    assert set(written["categories"]) == {"single_attribute", "colour_shape", "all_attributes"}
    assert (tmp_path / "out" / "picture.png").is_file()


def test_a_signal_leaves_a_table_of_the_finished_models(values, tmp_path):
    (tmp_path / "control").write_text("wait")
    first = process(call(values, tmp_path))
    wait_for(lambda: (tmp_path / "out" / "table.md").exists())  # the teacher alone is measured without waiting
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 143 and "| teacher | 0.900 |" in out
    assert "Not finished: dmd, seed 0; dpdmd, seed 0; dmd, seed 1; dpdmd, seed 1." in out
    assert (tmp_path / "out" / "table.md").read_text() == out and (tmp_path / "out" / "table.tex").is_file()


def test_an_error_in_the_grid_or_plane_keeps_the_table(values, tmp_path, capsys, monkeypatch):
    values["plane"] = {"x": "entropy", "y": "accuracy"}
    values["picture"] = {"prompts": ["a red circle"], "rows": ["teacher", "dmd"]}  # neither is a pipeline

    def broken(*arguments):
        raise RuntimeError("no font")

    monkeypatch.setattr(outputs, "draw_plane", broken)
    assert main(call(values, tmp_path)) == 1
    printed = capsys.readouterr()
    assert "| dpdmd | 0.755" in printed.out and (tmp_path / "out" / "table.csv").is_file()
    assert "plane.png: RuntimeError: no font" in printed.err and "picture.png: --model" in printed.err


def test_a_full_disk_is_reported_in_one_line(values, tmp_path, capsys, monkeypatch):
    """At the end, with the image grid, and in the thread of one model, whose error does not stop the others."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    values["picture"] = {"prompts": ["a red circle"], "rows": ["teacher"]}
    write = jobs.Stage.write_record
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "draw_sample_grid", full)
        patch.setattr(
            jobs.Stage,
            "write_record",
            lambda stage, done: (full if "dpdmd/seed_1" in str(stage.folder) else write)(stage, done),
        )
        assert main(call(values, tmp_path)) == 1
    printed = capsys.readouterr()
    assert "dpdmd, seed 1: [Errno 28] No space left on device" in printed.err and "| dmd | 0.505 ±" in printed.out
    assert "error: picture.png: [Errno 28] No space left on device" in printed.err
    monkeypatch.setattr(outputs, "write_text", full)
    assert main(call(values, tmp_path)) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].endswith("out: the tables could not be written ([Errno 28] No space left on device)")


def test_a_metric_that_is_missing_in_the_result_leaves_its_cells_empty(values, tmp_path, capsys):
    values["measure"]["oracle"]["metrics"] = ["accuracy", "beauty"]
    assert main(call(values, tmp_path)) == 1
    printed = capsys.readouterr()
    assert "no 'beauty' in" in printed.err and "| dpdmd | 0.755 ± 0.064 (paper 0.800) | – |" in printed.out
    (tmp_path / "out" / "runs" / "dmd" / "seed_0" / "oracle" / "figures.json").write_text("{")
    assert main(call(values, tmp_path)) == 1
    printed = capsys.readouterr()
    assert "dmd/seed_0/oracle/figures.json: neither" in printed.err and "| dmd | 0.510 | – |" in printed.out


@pytest.mark.parametrize(("given", "expected"), [(None, 900), ("60", 60)])
def test_a_launcher_waits_for_the_checkpoint_of_a_stopped_run(values, tmp_path, monkeypatch, given, expected):
    """torch's default of 30 seconds is too short; a value set by the user is kept."""
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    if given:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", given)
    values["measure"]["oracle"]["command"] = f"{sys.executable} {tmp_path / 'show.py'} {{out}}"
    (tmp_path / "show.py").write_text(
        "from torch.distributed.launcher.api import LaunchConfig as L; print(L(1, 1, 1).shutdown_timeout)"
    )
    assert main(call(values, tmp_path, "--only", "teacher")) == 1  # it writes no metrics
    log = (tmp_path / "out" / "runs" / "teacher" / "oracle.log").read_text()
    assert log.splitlines()[-1] == str(expected)


@pytest.mark.parametrize("script", ["run_train_sd35.sh", "run_train_sdxl.sh", "run_train.sh zimage"])
@pytest.mark.parametrize(("given", "expected"), [({}, "900"), ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}, "60")])
def test_the_launch_scripts_wait_for_it_too(tmp_path, script, given, expected):
    python = tmp_path / "python"  # it passes the check of setup_env.sh, and prints its arguments
    own = f'[[ $2 == *.yaml ]] && exec {sys.executable} "$@"'  # checks the flags
    python.write_text(f'#!/bin/bash\n{own}\n[ "$1" = - ] && echo "$0" || echo "$* $TORCH_ELASTIC_SHUTDOWN_TIMEOUT"\n')
    python.chmod(0o755)
    (tmp_path / "model_index.json").touch()
    paths = ("TEACHER", "PICK_PROCESSOR", "PICK_MODEL", "IR_MODEL", "IR_MED_CONFIG", "DINO", "CLIP")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCH_ELASTIC")}
    environment |= {"PYTHON": str(python), **dict.fromkeys(paths, str(tmp_path)), **given}
    done = subprocess.run(
        ["bash", *f"scripts/{script}".split()], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("-m accelerate.commands.launch") and done.stdout.split()[-1] == expected


def test_a_measure_reads_the_result_of_an_earlier_one(values, tmp_path):
    """The path {out}/../oracle resolves only if {out} exists."""
    copy = "cp {out}/../oracle/figures.json {out}/again.json"
    values["measure"]["second"] = {"command": copy, "result": "again.json", "metrics": {"again": "accuracy"}}
    assert main(call(values, tmp_path, "--only", "teacher")) == 0
    assert "| teacher | 0.900 | 0.900 | 0.900 |" in (tmp_path / "out" / "table.md").read_text()


def test_a_failed_run_is_reported_and_the_others_go_on(values, tmp_path, capsys):
    (tmp_path / "control").write_text("fail dmd 1")
    assert main(call(values, tmp_path)) == 1
    printed = capsys.readouterr()
    assert "dmd, seed 1: train ended with status 1" in printed.err and "this went wrong" in printed.err
    assert "Not finished: dmd, seed 1." in printed.out and "| dmd | 0.500 |" in printed.out and "0.755" in printed.out
    (tmp_path / "control").unlink()
    assert main(call(values, tmp_path)) == 0
    assert starts(tmp_path)["dmd/seed_1/run"] == 2 and starts(tmp_path)["dmd/seed_0/run"] == 1


def test_only_selected_rows_run(values, tmp_path):
    assert main(call(values, tmp_path, "--only", "teacher", "dmd")) == 0
    assert set(starts(tmp_path)) == {
        "teacher/oracle",
        *(f"dmd/seed_{seed}/{what}" for seed in (0, 1) for what in ("run", "oracle")),
    }
    assert main(call(values, tmp_path, "--only", "nobody")) == 2


def test_a_part_of_a_sweep_has_its_own_table(values, tmp_path, capsys):
    """It is the same after the rest of the sweep ran, and has no differences if the baseline is not selected."""
    part = ["--only", "teacher", "dpdmd", "--seeds", "1"]
    assert main(call(values, tmp_path, *part)) == 0
    alone = capsys.readouterr().out
    assert set(starts(tmp_path)) == {"teacher/oracle", "dpdmd/seed_1/run", "dpdmd/seed_1/oracle"}
    assert "| dpdmd | 0.760 (paper" in alone and "dmd |" not in alone.replace("dpdmd |", "")
    assert "Not finished" not in alone and "Minus" not in alone and "--only teacher dpdmd --seeds 1`" in alone
    assert main(call(values, tmp_path)) == 0
    assert "| dpdmd | 0.755 ± " in capsys.readouterr().out
    assert main(call(values, tmp_path, *part)) == 0 and capsys.readouterr().out == alone
    assert main(call(values, tmp_path, "--seeds", "2")) == 2
    assert "--seeds 2: not one of the sweep's seeds (0, 1)" in capsys.readouterr().err


def test_a_row_may_have_its_own_launcher(values, tmp_path, capsys):
    values["configurations"]["dmd"]["launcher"] = values.pop("launcher") + " --own"
    values["launcher"] = "false"
    assert main(call(values, tmp_path)) == 1
    assert "Not finished: dpdmd, seed 0; dpdmd, seed 1." in capsys.readouterr().out
    assert (
        (tmp_path / "out/runs/dmd/seed_0/train.log").read_text().split("\n")[0].count("train.py --own -m dpdmd.train")
    )


def test_a_model_of_another_sweep_is_only_measured(values, tmp_path, capsys):
    """Its name may differ there. Without --reuse, its measures are not taken for those of a model trained here."""
    first, second = tmp_path / "out", tmp_path / "second"
    assert main(call(values, tmp_path, "--only", "dpdmd")) == 0
    values["configurations"] = {"ours": {"flags": {"method": "dpdmd"}}, "dmd": {"flags": {"method": "dmd"}}}
    arguments = [*call(values, tmp_path), "--out", str(second)]
    assert main([*arguments, "--reuse", str(first)]) == 0
    assert not (second / "runs/ours/seed_0/run").exists() and (second / "runs/dmd/seed_0/run/value").is_file()
    assert "| ours | 0.755" in capsys.readouterr().out
    assert main(arguments) == 2
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


def test_after_a_kill_the_same_command_waits_for_the_processes_left_running(values, tmp_path):
    """The killed sweep's trainings continue, and no second training may start in their folders."""
    (tmp_path / "control").write_text("wait")
    first = process(call(values, tmp_path))
    running = [
        tmp_path / "out" / "runs" / "dmd" / "seed_0" / "run",
        tmp_path / "out" / "runs" / "dpdmd" / "seed_0" / "run",
    ]
    wait_for(lambda: all((run / "starts").exists() for run in running))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with (tmp_path / "stderr").open("w") as stderr:
        second = process(call(values, tmp_path), stderr)
    wait_for(lambda: "waiting for a process of an earlier call" in (tmp_path / "stderr").read_text())
    time.sleep(1)
    assert second.poll() is None
    assert [len((run / "starts").read_text()) for run in running] == [1, 1]
    (tmp_path / "control").unlink()
    second.communicate(timeout=120)
    assert second.returncode == 0
    counts = starts(tmp_path)
    assert len(counts) == 9 and {counts[f"{name}/seed_0/run"] for name in ("dmd", "dpdmd")} == {2}
    assert all(count == 1 for place, count in counts.items() if not place.endswith("seed_0/run"))


def test_a_signal_reaches_the_runs_and_the_same_command_continues(values, tmp_path):
    (tmp_path / "control").write_text("wait")
    first = process(call(values, tmp_path))
    wait_for(lambda: (tmp_path / "out" / "runs" / "dmd" / "seed_0" / "run" / "starts").exists())
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)  # its trainings, which would wait forever, end too
    assert first.returncode == 143 and "run the same command to continue" in err
    (tmp_path / "control").unlink()
    assert main(call(values, tmp_path)) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"configurations": {"dmd": {"flags": {"method": "dmd", "k_anchor": 9}}}}, "k_anchor 5 (now 9)"),
        ({"launcher": "python other.py"}, "launcher"),
    ],
)
def test_existing_runs_must_have_the_same_configuration(values, tmp_path, capsys, change, says):
    assert main(call(values, tmp_path)) == 0
    before = starts(tmp_path)
    values["configurations"].update(change.pop("configurations", {}))
    assert main(call({**values, **change}, tmp_path)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert says in line and "give another --out" in line and starts(tmp_path) == before


def test_an_option_newer_than_a_record_counts_as_its_default(values, tmp_path):
    assert main(call(values, tmp_path)) == 0
    records = list((tmp_path / "out").rglob("train.json"))
    assert len(records) == 4
    for record in records:
        content = json.loads(record.read_text())
        del content["asked"]["dmd_t"]
        record.write_text(json.dumps(content))
    before = starts(tmp_path)
    assert main(call(values, tmp_path)) == 0 and starts(tmp_path) == before


@pytest.fixture
def own_teacher(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


def change(model: Path) -> None:
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: value * 2 for name, value in load_file(weights).items()}, weights)


def test_results_of_a_teacher_that_was_changed_in_place_are_not_kept(own_teacher, tmp_path, capsys):
    """Neither in the sweep's folder nor by --reuse, where the model is trained anew; a deleted teacher does no harm."""
    values, second = two_methods(tmp_path, own_teacher), ["--out", str(tmp_path / "second")]
    assert main(call(values, tmp_path, "--only", "dmd", "--seeds", "0")) == 0
    change(own_teacher)
    capsys.readouterr()
    assert main(call(values, tmp_path, "--only", "dmd", "--seeds", "0")) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"the content of {own_teacher} has changed since; give another --out" in line
    reused = [*call(values, tmp_path, "--only", "dmd", "--seeds", "0"), *second, "--reuse", str(tmp_path / "out")]
    assert main(reused) == 0 and (tmp_path / "second" / "runs" / "dmd" / "seed_0" / "run").exists()
    shutil.rmtree(own_teacher)
    assert main([*call(values, tmp_path, "--only", "dmd", "--seeds", "0"), *second]) == 0


def test_records_of_an_older_version_are_used_with_a_warning_and_not_by_reuse(values, tmp_path, capsys):
    assert main(call(values, tmp_path, "--only", "dmd", "--seeds", "0")) == 0
    for record in (tmp_path / "out").rglob("train.json"):
        record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "content"}))
    before = starts(tmp_path)
    assert main(call(values, tmp_path, "--only", "dmd", "--seeds", "0")) == 0 and starts(tmp_path) == before
    assert "warning: an older version made" in capsys.readouterr().err
    second = ["--out", str(tmp_path / "second"), "--reuse", str(tmp_path / "out")]
    assert main([*call(values, tmp_path, "--only", "dmd", "--seeds", "0"), *second]) == 0
    assert (tmp_path / "second" / "runs" / "dmd" / "seed_0" / "run").exists()
