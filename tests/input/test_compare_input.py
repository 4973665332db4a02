"""`dpdmd.compare`: what a sweep, its trainings and its measures would refuse is told before anything starts."""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_sweep import call, starts, two_methods

from dpdmd import config
from dpdmd.compare import cli, measure_commands, preflight
from dpdmd.compare.jobs import plan_jobs
from dpdmd.compare.sweep import OUTPUT_FLAGS, OWN_FLAGS, options_of
from dpdmd.compare.sweep_file import read_sweep
from dpdmd.config.scorer_table import in_loop_files
from dpdmd.data.prompts import read_prompts
from dpdmd.evaluation import program

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "scripts" / "sweeps").glob("*.yaml"))
MEASURED = {"command": "x {out}", "result": "y", "metrics": ["a"]}
WORLD = "python -m dpdmd.shapes.measure --model {model} --out {out}/figures.json"
DIVERSITY = "python test_diversity.py --model {model} --output_dir {out}"
OURS = "--dino_path weights/tiny/dinov2 --clip_path weights/tiny/clip"


@pytest.fixture
def values(tmp_path: Path, tiny_pipeline: Path) -> dict:
    return two_methods(tmp_path, tiny_pipeline)


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
    assert cli.main(call({**values, **change}, tmp_path)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and str(tmp_path / "sweep.yaml") in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--out", "README.md"], "README.md is a file; give a folder"),
        (["--out", "README.md/foo"], "README.md is a file; give a folder"),
        (["--out", "x" * 300], "cannot be made (File name too long)"),
        (["--reuse", "data"], "--reuse data: no sweep has run there"),
    ],
)
def test_a_wrong_flag_gets_one_line(values, tmp_path, capsys, monkeypatch, extra, says):
    monkeypatch.chdir(ROOT)
    assert cli.main(call(values, tmp_path, *extra)) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "lacks 'done'"),
        ('{"done": true}', "lacks 'asked'"),
        ('{"done": true, "asked": 3}', "has unexpected values"),
    ],
)
def test_a_damaged_record_is_named_before_anything_runs(values, tmp_path, capsys, content, says):
    """Of this sweep's own stage, and of one that --reuse looks at."""
    own = tmp_path / "out" / "runs" / "teacher" / "oracle.json"
    theirs = tmp_path / "other" / "runs" / "dmd" / "seed_0" / "train.json"
    for record, extra in ((own, []), (theirs, ["--reuse", str(tmp_path / "other")])):
        record.parent.mkdir(parents=True)
        record.write_text(content)
        assert cli.main(call(values, tmp_path, *extra)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert str(record) in line and says in line and "delete it" in line
        record.unlink()
    assert starts(tmp_path) == {}


def test_a_wrong_sweep_is_told_without_torch(tmp_path):
    code = "import sys; from dpdmd.compare import cli; s = cli.main(['no.yaml']); sys.exit('torch' in sys.modules or s)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2 and "no.yaml: cannot be read" in result.stderr


def told(values: dict, folder: Path) -> list[str]:
    """What is wrong before anything starts."""
    call(values, folder)
    sweep = read_sweep(folder / "sweep.yaml")
    return preflight.check(sweep, plan_jobs(sweep, folder / "out"))


def test_what_the_trainings_lack_is_told_once_and_nothing_starts(values, tmp_path, capsys):
    values["flags"]["teacher_id"] = "nowhere"
    values["configurations"]["dmd"]["flags"]["prompt_txt"] = "no_prompts.txt"
    values["configurations"]["teacher"]["model"] = "no_model"
    assert cli.main(call(values, tmp_path)) == 2
    model, lines = capsys.readouterr().err.strip().splitlines()
    assert model.startswith(
        f"dpdmd.compare: error: {tmp_path / 'sweep.yaml'}: configuration teacher: model no_model: no"
    )
    assert "configurations dmd, dpdmd: --teacher_id nowhere: no such folder; get it from" in lines
    assert starts(tmp_path) == {} and not (tmp_path / "out").exists()


def test_a_prompt_file_is_told_of_its_row_alone(values, tmp_path):
    values["configurations"]["dmd"]["flags"]["prompt_txt"] = "no_prompts.txt"
    (line,) = told(values, tmp_path)
    assert "configuration dmd: " in line and "no_prompts.txt" in line


def test_what_is_finished_is_not_checked_again(values, tmp_path, capsys):
    """Its teacher may lie elsewhere by now; a table is still made of it."""
    assert cli.main(call(values, tmp_path)) == 0
    (tmp_path / "teacher").rename(tmp_path / "moved")
    assert cli.main(call(values, tmp_path)) == 0
    (tmp_path / "out" / "runs" / "teacher" / "oracle.json").unlink()
    capsys.readouterr()
    assert cli.main(call(values, tmp_path)) == 2
    assert "configuration teacher: model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launcher", "says"),
    [
        ("no_such_program", "configuration dmd: no_such_program: no such program"),
        (
            "python -m accelerate.commands.launch --config_file x.yaml",
            "configuration dmd: --config_file x.yaml: no such",
        ),
    ],
)
def test_a_launcher_is_there(values, tmp_path, launcher, says):
    values["configurations"]["dmd"]["launcher"] = launcher
    (line,) = told(values, tmp_path)
    assert says in line


def test_a_run_on_many_gpus_is_not_refused_for_the_checkpoints_of_one(values, tmp_path, monkeypatch):
    """How many steps its epochs have is not known here."""
    monkeypatch.setattr(preflight.preflight.shutil, "disk_usage", lambda path: argparse.Namespace(free=30_000_000))
    values["flags"] |= {"max_epoch": 9, "ckpt_every": 1}
    assert told(values, tmp_path) == []
    del values["launcher"]
    assert "--ckpt_dir" in told(values, tmp_path)[0]


@pytest.mark.parametrize(
    ("command", "result", "metrics", "says"),
    [
        (WORLD, "figures.json", ["accuracy", "spread", "accuracy/colour_shape"], ""),
        (f"{WORLD} --num_sedes 3", "figures.json", ["accuracy"], "unrecognized arguments: --num_sedes 3"),
        (f"{WORLD} --num_seeds 0", "figures.json", ["accuracy"], "--num_seeds 0: must be 1 to 100000"),
        (f"{WORLD} --prompt_txt x.txt", "figures.json", ["accuracy"], "x.txt"),
        (f"{WORLD} --prompt_txt data/prompts_eval.txt", "figures.json", ["accuracy"], "no caption of the small world"),
        (WORLD, "figure.json", ["accuracy"], "result figure.json: dpdmd.shapes.measure writes"),
        (WORLD, "figures.json", ["acuracy"], "gives no 'acuracy'; there are accuracy, unrecognised"),
        (f"{DIVERSITY} {OURS}", "summary.json", ["div_dino", "div_clip"], ""),
        (f"{DIVERSITY} {OURS} --num_sample 3", "summary.json", ["div_dino"], "unrecognized arguments: --num_sample 3"),
        (f"{DIVERSITY} {OURS} --prompts_txt x.txt", "summary.json", ["div_dino"], "--prompts_txt x.txt"),
        (f"{DIVERSITY} --dino_path x", "summary.json", ["div_dino"], "--dino_path x: no such folder; get it from"),
        (
            f"{DIVERSITY} {OURS}",
            "summary.json",
            ["vqr1"],
            "test_diversity.py gives no 'vqr1'; there are div_dino, div_clip",
        ),
        (f"{DIVERSITY} {OURS}", "sumary.json", ["div_dino"], "result sumary.json: test_diversity.py writes"),
        ("python x/test_quality.py --output_dir {out}", "summary.json", ["vqr1"], "x/test_quality.py: no such file"),
        (f"{DIVERSITY} {OURS} --images {{out}}/../oracle/pictures", "summary.json", ["div_dino"], ""),
        (f"{DIVERSITY} {OURS} --images elsewhere", "summary.json", ["div_dino"], "--images elsewhere: no such folder"),
        ("no_such_program {out}", "x", ["y"], "no_such_program: no such program"),
        ("true {out}", "x", ["y"], ""),
    ],
)
def test_a_measure_is_read_as_its_program_reads_it(values, tmp_path, monkeypatch, command, result, metrics, says):
    monkeypatch.chdir(ROOT)
    del values["configurations"]["teacher"], values["configurations"]["dpdmd"]["paper"]
    values["measure"] = {"m": {"command": command, "result": result, "metrics": metrics}}
    (tmp_path / "out" / "runs" / "dmd" / "seed_0" / "oracle" / "pictures").mkdir(parents=True)  # of a killed measure
    lines = told(values, tmp_path)  # once, for two rows of two seeds
    assert len(lines) == bool(says) and all("measure m: " in line and says in line for line in lines)


def test_a_model_is_one_that_its_measure_can_load(values, tmp_path, monkeypatch, tiny_pipeline):
    monkeypatch.chdir(ROOT)
    values["configurations"] = {"there": {"model": str(tiny_pipeline)}, "empty": {"model": str(tmp_path / "teacher")}}
    values["measure"] = {"m": {"command": WORLD, "result": "figures.json", "metrics": ["accuracy"]}}
    del values["baseline"], values["launcher"], values["flags"]
    (line,) = told(values, tmp_path)
    assert "measure m: --model " in line and "teacher: neither a pipeline folder" in line


def test_jobs_are_one_at_a_time_on_a_gpu(values, tmp_path, monkeypatch):
    """They would share its memory; without one each has a core, unless a launcher spreads it."""
    call(values, tmp_path)
    launched = read_sweep(tmp_path / "sweep.yaml")
    plain = replace(launched, on_cores=True)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    for devices, expected in ((0, (7, 1)), (2, (1, 1))):
        monkeypatch.setattr("torch.cuda.device_count", lambda devices=devices: devices)
        assert (cli.default_jobs(plain), cli.default_jobs(launched)) == expected


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
    assert {path.stem for path in SWEEPS} - {"defaults_tiny", "geneval_tiny"} == papers
    assert set(OWN_FLAGS) & set(OUTPUT_FLAGS) == {"run_dir"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_measures_of_every_sweep_give_what_it_shows(path, monkeypatch):
    """Flags and metrics, without the papers' scorers and prompts, which are not here."""
    monkeypatch.chdir(ROOT)
    for module in (measure_commands, program):
        monkeypatch.setattr(module, "check_scorer_paths", lambda flags, names: dict.fromkeys(names))
    monkeypatch.setattr(program, "read_prompts", lambda path, flag: read_prompts(path) if path.exists() else ["a"])
    sweep = read_sweep(path)
    for job in plan_jobs(sweep, Path("nowhere")):
        for stage in job.stages:
            if stage.name in sweep.measures:
                preflight._check_measure(sweep, job, stage, to_be_made=True)


def test_the_four_sweeps_of_sd35_share_a_training():
    """What --reuse takes over, as their headers say."""
    rows = {"table1": "dpdmd", "table3": "k_5", "table4": "lambda_0.05", "figure5": "detach"}
    read = {name: read_sweep(ROOT / "scripts" / "sweeps" / f"{name}_sd35.yaml") for name in rows}
    first, *others = [read[name].configurations[row] for name, row in rows.items()]
    assert all((other.resolved, other.launcher) == (first.resolved, first.launcher) for other in others)
    assert all("--reuse" in sweep.path.read_text() for sweep in read.values())
    # One checkpoint a training, as they say too: none is kept for being the best, since nothing is scored in the loop.
    assert not any(first.resolved[file.flag] for file in in_loop_files())
