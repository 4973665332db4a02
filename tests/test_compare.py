"""`dpdmd.compare`: sweeps are checked first, run once whatever happens meanwhile, and told in one table."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from small_sweep import call, starts, two_methods

from dpdmd import compare, config
from dpdmd.comparison.figures import read_figures
from dpdmd.comparison.sweep import OUTPUT_FLAGS, OWN_FLAGS, options_of
from dpdmd.comparison.sweep_file import read_sweep
from dpdmd.shapes import measure

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "scripts" / "sweeps").glob("*.yaml"))
MEASURED = {"command": "x {out}", "result": "y", "metrics": ["a"]}


@pytest.fixture
def values(tmp_path: Path, tiny_pipeline: Path) -> dict:
    return two_methods(tmp_path, tiny_pipeline)


def test_everything_runs_once_and_the_table_is_right(values, tmp_path, capsys):
    assert compare.main(call(values, tmp_path)) == 0
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
    assert compare.main(call(values, tmp_path)) == 0 and starts(tmp_path) == once


def test_the_plane_has_every_training_and_every_row(values, tmp_path, monkeypatch):
    """Small marks where the trainings are, large ones at the means, each named once; the teacher has no small ones."""
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k))
    values["plane"] = {"x": "entropy", "y": "accuracy"}
    assert compare.main(call(values, tmp_path)) == 0
    (figure,) = drawn
    lines = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "", "_", "|")]
    shown = {line.get_label(): line.get_xydata().tolist() for line in lines if not line.get_label().startswith("_")}
    assert shown == {
        name: [pytest.approx([y, y])] for name, y in {"teacher": 0.9, "dmd": 0.505, "dpdmd": 0.755}.items()
    }
    small = [line.get_xydata().tolist() for line in lines if line.get_label().startswith("_")]
    assert small == [[pytest.approx([y, y]) for y in pair] for pair in ((0.5, 0.51), (0.75, 0.76))]
    assert (tmp_path / "out" / "plane.png").is_file()


def test_a_failing_run_is_told_and_the_others_go_on(values, tmp_path, capsys):
    (tmp_path / "obey").write_text("fail dmd 1")
    assert compare.main(call(values, tmp_path)) == 1
    told = capsys.readouterr()
    assert "dmd, seed 1: train ended with status 1" in told.err and "this went wrong" in told.err
    assert "Not finished: dmd, seed 1." in told.out and "| dmd | 0.500 |" in told.out and "0.755" in told.out
    (tmp_path / "obey").unlink()
    assert compare.main(call(values, tmp_path)) == 0
    assert starts(tmp_path)["dmd/seed_1/run"] == 2 and starts(tmp_path)["dmd/seed_0/run"] == 1


def test_only_runs_what_it_names(values, tmp_path):
    assert compare.main(call(values, tmp_path, "--only", "teacher", "dmd")) == 0
    assert set(starts(tmp_path)) == {
        "teacher/oracle",
        *(f"dmd/seed_{seed}/{what}" for seed in (0, 1) for what in ("run", "oracle")),
    }
    assert compare.main(call(values, tmp_path, "--only", "nobody")) == 2


def test_a_part_of_a_sweep_is_a_command_whose_table_it_gives_again(values, tmp_path, capsys):
    """Whatever else was finished in the same folder, and without the baseline's column where that is not asked for."""
    part = ["--only", "teacher", "dpdmd", "--seeds", "1"]
    assert compare.main(call(values, tmp_path, *part)) == 0
    alone = capsys.readouterr().out
    assert set(starts(tmp_path)) == {"teacher/oracle", "dpdmd/seed_1/run", "dpdmd/seed_1/oracle"}
    assert "| dpdmd | 0.760 (paper" in alone and "dmd |" not in alone.replace("dpdmd |", "")
    assert "Not finished" not in alone and "Minus" not in alone and "--only teacher dpdmd --seeds 1`" in alone
    assert compare.main(call(values, tmp_path)) == 0
    assert "| dpdmd | 0.755 ± " in capsys.readouterr().out
    assert compare.main(call(values, tmp_path, *part)) == 0 and capsys.readouterr().out == alone
    assert compare.main(call(values, tmp_path, "--seeds", "2")) == 2
    assert "--seeds 2: not one of the sweep's seeds (0, 1)" in capsys.readouterr().err


def test_a_row_may_have_its_own_launcher(values, tmp_path, capsys):
    values["configurations"]["dmd"]["launcher"] = values.pop("launcher") + " --own"
    values["launcher"] = "false"
    assert compare.main(call(values, tmp_path)) == 1
    assert "Not finished: dpdmd, seed 0; dpdmd, seed 1." in capsys.readouterr().out
    assert (
        (tmp_path / "out/runs/dmd/seed_0/train.log").read_text().split("\n")[0].count("train.py --own -m dpdmd.train")
    )


def test_what_another_sweep_trained_is_measured_only(values, tmp_path, capsys):
    """Whatever it is called there; and what was measured so is not taken for a model of the sweep's own."""
    first, second = tmp_path / "out", tmp_path / "second"
    assert compare.main(call(values, tmp_path, "--only", "dpdmd")) == 0
    values["configurations"] = {"ours": {"flags": {"method": "dpdmd"}}, "dmd": {"flags": {"method": "dmd"}}}
    arguments = [*call(values, tmp_path), "--out", str(second)]
    assert compare.main([*arguments, "--reuse", str(first)]) == 0
    assert not (second / "runs/ours/seed_0/run").exists() and (second / "runs/dmd/seed_0/run/value").is_file()
    assert "| ours | 0.755" in capsys.readouterr().out
    assert compare.main(arguments) == 2
    assert f"was made with model '{first}/runs/dpdmd/seed_0/run'" in capsys.readouterr().err


def process(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dpdmd.compare", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
    second = process(call(values, tmp_path))
    time.sleep(3)
    assert second.poll() is None
    assert [len((run / "starts").read_text()) for run in running] == [1, 1]
    (tmp_path / "obey").unlink()
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0 and "waiting for a process of an earlier call" in out + err
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
    assert compare.main(call(values, tmp_path)) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"configurations": {"dmd": {"flags": {"method": "dmd", "k_anchor": 9}}}}, "k_anchor 5 (now 9)"),
        ({"launcher": "python other.py"}, "launcher"),
    ],
)
def test_what_is_there_must_be_of_the_same_configuration(values, tmp_path, capsys, change, says):
    assert compare.main(call(values, tmp_path)) == 0
    before = starts(tmp_path)
    values["configurations"].update(change.pop("configurations", {}))
    assert compare.main(call({**values, **change}, tmp_path)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert says in line and "give another --out" in line and starts(tmp_path) == before


def test_an_option_that_came_later_counts_as_its_default(values, tmp_path):
    assert compare.main(call(values, tmp_path)) == 0
    for record in (tmp_path / "out").rglob("train.json"):
        there = json.loads(record.read_text())
        del there["asked"]["dmd_t"]
        record.write_text(json.dumps(there))
    before = starts(tmp_path)
    assert compare.main(call(values, tmp_path)) == 0 and starts(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": [0]}, "unknown key 'seed' (did you mean seeds?)"),
        ({"title": 3}, "title must be a text, not 3"),
        ({"measure": {}}, "measure is empty"),
        ({"seeds": [0, 0]}, "seeds: must be different whole numbers"),
        ({"seeds": []}, "seeds: give at least one"),
        ({"baseline": "dmb"}, "baseline: no configuration is called 'dmb'"),
        ({"picture": {"prompts": ["a"], "rows": ["x"]}}, "picture: no configuration is called 'x'"),
        ({"config": "nowhere.yaml"}, "configuration dmd: --config nowhere.yaml: cannot be read"),
        ({"flags": {"kanchor": 3}}, "configuration dmd: unknown key 'kanchor' (did you mean k_anchor?)"),
        ({"flags": {"k_anchor": 31}}, "configuration dmd: --k_anchor 31: must be 1 to --teacher_infer_steps (30)"),
        ({"flags": {"seed": 3}}, "configuration dmd: seed is the sweep's own to give"),
        ({"flags": {"k_anchor": [1]}}, "configuration dmd: k_anchor must be a number, a text, true or false"),
        ({"configurations": {"a/b": {}}}, "names are letters, digits"),
        ({"configurations": {"a": {"model": "m", "flags": {}}}}, "has model, so nothing is trained"),
        ({"configurations": {"a": {"model": "m", "launcher": "x"}}}, "nothing is trained; leave launcher out"),
        ({"configurations": {"a": {"launcher": "x '"}}}, 'configuration a: launcher: "x \'" is no command line'),
        ({"configurations": {"a": {"paper": {"accuracie": 1}}}}, "no column is called 'accuracie'"),
        ({"configurations": {"a": {"paper": {"accuracy": "x"}}}}, "accuracy must be a number"),
        ({"plane": {"x": "accuracy"}}, "plane: y is missing"),
        ({"plane": {"x": "accuracy", "y": "beauty"}}, "plane: no column is called 'beauty'; there are accuracy"),
        ({"measure": {"train": {}}}, "that name is the training's own"),
        ({"measure": {"m": {"command": "x {out}", "result": "y"}}}, "measure m: metrics is missing"),
        ({"measure": {"m": {"command": "x", "result": "y", "metrics": ["a"]}}}, "must write into {out}"),
        ({"measure": {"m": {"command": "x {o}", "result": "y", "metrics": ["a"]}}}, "{o} stands for nothing"),
        ({"measure": {"m": {"command": "x '{out}", "result": "y", "metrics": ["a"]}}}, "is no command line"),
        ({"measure": {"m": {**MEASURED, "metrics": ["a", "a"]}}}, "measure m: metrics must be different names"),
        ({"measure": {"m": MEASURED, "n": MEASURED}}, "two columns are called 'a'"),
    ],
)
def test_a_wrong_sweep_gets_one_line_before_anything_runs(values, tmp_path, capsys, change, says):
    assert compare.main(call({**values, **change}, tmp_path)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and str(tmp_path / "sweep.yaml") in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--out", "README.md"], "is a file"),
        (["--reuse", "data"], "--reuse data: no sweep has run there"),
    ],
)
def test_a_wrong_flag_gets_one_line(values, tmp_path, capsys, monkeypatch, extra, says):
    monkeypatch.chdir(ROOT)
    assert compare.main(call(values, tmp_path, *extra)) == 2
    assert says in capsys.readouterr().err


def test_a_wrong_sweep_is_told_without_torch(tmp_path):
    code = "import sys; from dpdmd import compare; s = compare.main(['no.yaml']); sys.exit('torch' in sys.modules or s)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2 and "no.yaml: cannot be read" in result.stderr


def test_a_metric_that_the_result_lacks_is_told(values, tmp_path, capsys):
    values["measure"]["oracle"]["metrics"] = ["accuracy", "beauty"]
    assert compare.main(call(values, tmp_path)) == 1
    assert "no 'beauty' in" in capsys.readouterr().err


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_of_the_repository_is_right(path, monkeypatch):
    """And what it checks is what its commands run: the trainer's own parser gives the same options."""
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(path)
    assert sweep.baseline and len(sweep.configurations) >= 3
    for name, configuration in sweep.configurations.items():
        if configuration.model is None:
            command = sweep.train_command(name, 7, Path("some/run"))
            parsed = config.parse(command[command.index("dpdmd.train") + 1 :])
            ours = {**configuration.resolved, "student_id": parsed.model.student_id, "fake_id": parsed.model.fake_id}
            assert options_of(parsed) == ours
            assert (parsed.run.seed, parsed.run.run_dir) == (7, "some/run")


def test_the_sweeps_of_the_repository_are_the_papers():
    papers = {f"{name}_{world}" for name in ("table1", "table3", "table4", "figure5") for world in ("tiny", "sd35")}
    assert {path.stem for path in SWEEPS} - {"defaults_tiny"} == papers
    assert set(OWN_FLAGS) & set(OUTPUT_FLAGS) == {"run_dir"}


def test_the_figures_of_a_root_program_are_read_with_their_pictures(tmp_path):
    """Missing pictures leave the prompt's mean over the others; a prompt without any is not there."""
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": {"div_dino": {"mean": 0.4}, "vqr1": {"mean": None}}}))
    rows = ["prompt_index,sample_index,file,prompt,div_dino,vqr1,notes", "0,0,a,cat,0.2,,", "0,1,b,cat,0.4,,"]
    rows += ["1,0,c,dog,0.5,,", "2,0,d,owl,,,"]
    (tmp_path / "per_image.csv").write_text("\n".join(rows) + "\n")
    found = read_figures(tmp_path / "summary.json")
    assert found["div_dino"].mean == 0.4 and found["vqr1"].mean is None and found["vqr1"].by_prompt == {}
    assert found["div_dino"].by_prompt == pytest.approx({"0 cat": 0.3, "1 dog": 0.5})
    with pytest.raises(ValueError, match=r"neither a summary\.json"):
        read_figures(tmp_path / "per_image.csv")


def test_the_figures_of_the_small_world_are_those_it_prints(tiny_pipeline, tmp_path):
    """Means as `dpdmd.shapes.measure` has them, from its prompts; and a picture of the sweep's models."""
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
    assert compare.main(call(sweep, tmp_path)) == 0
    path = tmp_path / "out" / "runs" / "teacher" / "oracle" / "figures.json"
    found, (theirs,) = read_figures(path), json.loads(path.read_text()).values()
    for name in measure.COLUMNS:
        assert found[name].mean == pytest.approx(theirs["mean"][name])
    assert len(found["accuracy"].by_prompt) == 3 and len(found["entropy"].by_prompt) == 2
    assert set(found) > {"accuracy/colour_shape", "accuracy/single_attribute", "accuracy/all_attributes"}
    assert set(theirs["categories"]) == {"single_attribute", "colour_shape", "all_attributes"}
    assert (tmp_path / "out" / "picture.png").is_file()
