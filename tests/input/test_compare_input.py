"""`dpdmd.compare`: wrong input of a sweep, its trainings and its measures is reported before anything starts."""

import argparse
import errno
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bad_input import LONG
from small_sweep import call, starts, two_methods

from dpdmd import config
from dpdmd.compare import measure_commands, preflight
from dpdmd.compare.__main__ import build_parser, check, default_jobs, main
from dpdmd.compare.jobs import build_jobs
from dpdmd.compare.sweep import OUTPUT_FLAGS, OWN_FLAGS, options_of
from dpdmd.compare.sweep_file import read_sweep
from dpdmd.config.scorer_table import in_loop_files
from dpdmd.data.prompt_files import read_prompts
from dpdmd.evaluation import program

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "scripts" / "sweeps").glob("*.yaml"))
PICTURE = {"prompts": ["a"], "rows": ["dmd"]}
MEASURED = {"command": "x {out}", "result": "y", "metrics": ["a"]}
ORACLE = "python -m dpdmd.shapes.measure --model {model} --out {out}/figures.json"
GIVEN = "python test_diversity.py --output_dir {out}"
DIVERSITY = "python test_diversity.py --model {model} --output_dir {out}"
OURS = "--dino_path weights/tiny/dinov2 --clip_path weights/tiny/clip"


@pytest.fixture
def values(tmp_path: Path, tiny_pipeline: Path) -> dict:
    return two_methods(tmp_path, tiny_pipeline)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": [0]}, "unknown key 'seed' (did you mean seeds?)"),
        ({"title": 3}, "title must be a string, not 3"),
        ({"measure": {}}, "measure is empty"),
        ({"seeds": [0, 0]}, "seeds: must be different integers"),
        ({"seeds": []}, "seeds: give at least one seed"),
        ({"baseline": "dmb"}, "baseline: no configuration is called 'dmb'"),
        ({"picture": {"prompts": ["a"], "rows": ["x"]}}, "picture: no configuration is called 'x'"),
        ({"config": "nowhere.yaml"}, "configuration dmd: --config nowhere.yaml: cannot be read"),
        ({"flags": {"kanchor": 3}}, "configuration dmd: unknown key 'kanchor' (did you mean k_anchor?)"),
        ({"flags": {"k_anchor": 31}}, "configuration dpdmd: --k_anchor 31: must be 1 to --teacher_infer_steps (30)"),
        ({"flags": {"seed": 3}}, "configuration dmd: seed is set by the sweep"),
        (
            {"flags": {"push_to_hub": True}},
            "configuration dmd: push_to_hub: each run would replace the last one's upload",
        ),
        ({"flags": {"k_anchor": [1]}}, "configuration dmd: k_anchor must be a number, a string, true or false"),
        ({"configurations": {"a/b": {}}}, "names are letters, digits"),
        ({"configurations": {5: {}}}, "configuration 5: YAML reads this name as int; put it in quotes"),
        (
            {"measure": {"train.log": {"command": "x {out}", "result": "r", "metrics": ["m"]}}},
            "measure train.log: a name may not end as the files of the measures do",
        ),
        ({"configurations": {"a": {"model": "m", "flags": {}}}}, "has model, so nothing is trained"),
        ({"configurations": {"a": {"model": "m", "launcher": "x"}}}, "nothing is trained; remove launcher"),
        ({"configurations": {"a": {"model": "m", "average": True}}}, "nothing is trained; remove average"),
        ({"configurations": {"a": {"average": "yes"}}}, "configuration a: average must be true or false, not 'yes'"),
        ({"configurations": {"a": {"average": True}}}, "average: nothing is averaged; give ema_decay in flags"),
        (
            {"configurations": {"a": {"launcher": "x '"}}},
            'configuration a: launcher: "x \'" cannot be split into words',
        ),
        ({"configurations": {"a": {"paper": {"accuracie": 1}}}}, "no column is called 'accuracie'"),
        ({"configurations": {"a": {"paper": {"accuracy": "x"}}}}, "accuracy must be a finite number, not 'x'"),
        ({"configurations": {"a": {"paper": {"accuracy": math.nan}}}}, "accuracy must be a finite number, not nan"),
        ({"configurations": {"a": {"model": " "}}}, "configuration a: model is empty"),
        ({"config": ""}, "config is empty"),
        ({"baseline": ""}, "baseline is empty"),
        ({"configurations": {"a": False}}, "configuration a: must be a mapping of keys to values"),
        ({"configurations": {"a": 0}}, "configuration a: must be a mapping of keys to values"),
        ({"configurations": {LONG: {}}}, "a name has at most 200 letters"),
        ({"picture": {**PICTURE, "num_images": 10**8}}, "picture: num_images must be 1 to 256, not 100000000"),
        ({"picture": {**PICTURE, "prompts": ["a" * 300_000]}}, "has 300,000 letters, and a prompt has at most"),
        ({"plane": {"x": "accuracy"}}, "plane: y is missing"),
        ({"plane": {"x": "accuracy", "y": "beauty"}}, "plane: no column is called 'beauty'; there are accuracy"),
        ({"plane": {"x": "accuracy", "y": "entropy", "size": "cost"}}, "plane: size must be calls, not 'cost'"),
        ({"measure": {"train": {}}}, "that name is reserved for the training"),
        ({"measure": {"m": {"command": "x {out}", "result": "y"}}}, "measure m: metrics is missing"),
        ({"measure": {"m": {"command": "x", "result": "y", "metrics": ["a"]}}}, "must write into {out}"),
        ({"measure": {"m": {"command": "x {o}", "result": "y", "metrics": ["a"]}}}, "unknown placeholder {o}"),
        ({"measure": {"m": {"command": "x '{out}", "result": "y", "metrics": ["a"]}}}, "cannot be split into words"),
        ({"measure": {"m": {**MEASURED, "metrics": ["a", "a"]}}}, "measure m: metrics must be different names"),
        ({"measure": {"m": {**MEASURED, "result": "../../x.json"}}}, "measure m: result: must be a file in {out}, rel"),
        ({"measure": {"m": {**MEASURED, "result": "/etc/passwd"}}}, "result: must be a file in {out}, relative to it"),
        ({"measure": {"m": {**MEASURED, "result": "a/.."}}}, "result: must be a file in {out}, relative to it, not a/"),
        ({"measure": {"m": MEASURED, "n": MEASURED}}, "two columns are called 'a'"),
    ],
)
def test_a_wrong_sweep_gets_one_line_before_anything_runs(values, tmp_path, capsys, change, says):
    assert main(call({**values, **change}, tmp_path)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and str(tmp_path / "sweep.yaml") in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["table.md", "table.csv", "table.tex", "plane.png", "picture.png"])
def test_a_sweep_replaces_only_its_own_files(values, tmp_path, capsys, name):
    """runs/, which is there before any table, says that they are its own."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    assert main(call(values, tmp_path)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"dpdmd.compare: error: --out {out}: {out / name} would be replaced, and nothing shows that")
    assert (out / name).read_text() == "mine"
    (out / "runs").mkdir()
    check(build_parser().parse_args(call(values, tmp_path)))
    (out / name).unlink()
    (out / name).mkdir()
    assert main(call(values, tmp_path)) == 2
    assert f"{name} is a folder, but a file is written there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--out", "README.md"], "README.md is a file; give a folder"),
        (["--out", "README.md/foo"], "README.md is a file; give a folder"),
        (["--out", "x" * 300], "cannot be made (File name too long)"),
        (["--reuse", "data"], "--reuse data: contains no runs/"),
        (["--reuse", LONG], f"--reuse {LONG}/runs: cannot be read (File name too long)"),
    ],
)
def test_a_wrong_flag_gets_one_line(values, tmp_path, capsys, monkeypatch, extra, says):
    monkeypatch.chdir(ROOT)
    assert main(call(values, tmp_path, *extra)) == 2
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
    """A record of this sweep's stage, and one of a sweep in --reuse."""
    own = tmp_path / "out" / "runs" / "teacher" / "oracle.json"
    theirs = tmp_path / "other" / "runs" / "dmd" / "seed_0" / "train.json"
    for record, extra in ((own, []), (theirs, ["--reuse", str(tmp_path / "other")])):
        record.parent.mkdir(parents=True)
        record.write_text(content)
        assert main(call(values, tmp_path, *extra)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert str(record) in line and says in line and "delete it" in line
        record.unlink()
    assert starts(tmp_path) == {}


def test_a_wrong_sweep_is_reported_without_torch(tmp_path):
    code = "import sys; from dpdmd.compare.__main__ import main; status = main(['no.yaml']); "
    code += "sys.exit('torch' in sys.modules or status)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2 and "no.yaml: cannot be read" in result.stderr


def problems(values: dict, folder: Path) -> list[str]:
    """Return the lines that are reported before anything starts."""
    call(values, folder)
    sweep = read_sweep(folder / "sweep.yaml")
    return preflight.check(sweep, build_jobs(sweep, folder / "out"))


def test_missing_inputs_are_reported_once_and_nothing_starts(values, tmp_path, capsys):
    values["flags"]["teacher_id"] = "nowhere"
    values["configurations"]["dmd"]["flags"]["prompt_txt"] = "no_prompts.txt"
    values["configurations"]["teacher"]["model"] = "no_model"
    assert main(call(values, tmp_path)) == 2
    model, lines = capsys.readouterr().err.strip().splitlines()
    assert model.startswith(
        f"dpdmd.compare: error: {tmp_path / 'sweep.yaml'}: configuration teacher: model no_model: no"
    )
    assert "configurations dmd, dpdmd: --teacher_id nowhere: no such folder; get it from" in lines
    assert starts(tmp_path) == {} and not (tmp_path / "out").exists()


def test_a_missing_prompt_file_is_reported_for_its_row_only(values, tmp_path):
    values["configurations"]["dmd"]["flags"]["prompt_txt"] = "no_prompts.txt"
    (line,) = problems(values, tmp_path)
    assert "configuration dmd: " in line and "no_prompts.txt" in line


def test_finished_work_is_not_checked_again(values, tmp_path, capsys):
    """Its model may have been moved; the table still shows it."""
    assert main(call(values, tmp_path)) == 0
    (tmp_path / "teacher").rename(tmp_path / "moved")
    assert main(call(values, tmp_path)) == 0
    (tmp_path / "out" / "runs" / "teacher" / "oracle.json").unlink()
    capsys.readouterr()
    assert main(call(values, tmp_path)) == 2
    assert "configuration teacher: model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launcher", "says"),
    [
        ("no_such_program", "configuration dmd: no_such_program: no such program"),
        (
            "python -m accelerate.commands.launch --config_file x.yaml",
            "configuration dmd: --config_file x.yaml: no such",
        ),
        (
            "python -m accelerate.commands.launch --config_file=x.yaml",
            "configuration dmd: --config_file x.yaml: no such",
        ),
        ("python -m", "configuration dmd: python -m -m: no such module"),
        ("python nowhere.py", "configuration dmd: python nowhere.py: no such file"),
    ],
)
def test_a_missing_launcher_is_an_error(values, tmp_path, launcher, says):
    values["configurations"]["dmd"]["launcher"] = launcher
    (line,) = problems(values, tmp_path)
    assert says in line


def test_disk_space_is_not_checked_for_epochs_on_many_gpus(values, tmp_path, monkeypatch):
    """The number of steps per epoch is unknown there."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: argparse.Namespace(free=30_000_000))
    values["flags"] |= {"max_epoch": 9, "ckpt_every": 1}
    assert problems(values, tmp_path) == []
    del values["launcher"]
    assert "--ckpt_dir" in problems(values, tmp_path)[0]


def test_the_checkpoints_of_all_trainings_must_fit_the_disk(values, tmp_path, monkeypatch):
    """Each alone would."""
    values["flags"] |= {"max_steps": 6}
    monkeypatch.setattr("shutil.disk_usage", lambda path: argparse.Namespace(free=30_000_000))
    (line,) = problems(values, tmp_path)
    assert ": flags: 0.03 GB are free, but the checkpoints of 4 trainings will take about" in line
    monkeypatch.setattr("shutil.disk_usage", lambda path: argparse.Namespace(free=10**9))
    assert problems(values, tmp_path) == []


@pytest.mark.parametrize(
    ("command", "result", "metrics", "says"),
    [
        (ORACLE, "figures.json", ["accuracy", "spread", "accuracy/colour_shape"], ""),
        (f"{ORACLE} --num_sedes 3", "figures.json", ["accuracy"], "unrecognized arguments: --num_sedes 3"),
        (
            f"{ORACLE} --help",
            "figures.json",
            ["accuracy"],
            "dpdmd.shapes.measure: with -h or --help it measures nothing",
        ),
        (
            ORACLE.replace("{model}", "{model} weights/tiny/sd35"),
            "figures.json",
            ["accuracy"],
            "--model: a measure is of one model; give {model} alone",
        ),
        ("python -m dpdmd.shapes.mesure {out}", "x", ["y"], "python -m dpdmd.shapes.mesure: no such module"),
        ("python -m nowhere.else {out}", "x", ["y"], "python -m nowhere.else: no such module"),
        ("python nowhere.py {out}", "x", ["y"], "python nowhere.py: no such file"),
        (f"true {LONG} {{out}}", "x", ["y"], ""),
        (f"{DIVERSITY} -h", "summary.json", ["div_dino"], "test_diversity.py: with -h or --help it measures nothing"),
        (f"{ORACLE} --num_seeds 0", "figures.json", ["accuracy"], "--num_seeds 0: must be 1 to 100000"),
        (f"{ORACLE} --num_seeds 100000 --prompt_txt data/shapes_train.txt", "figures.json", ["accuracy"], "give fewer"),
        (f"{ORACLE} --prompt_txt x.txt", "figures.json", ["accuracy"], "x.txt"),
        (
            f"{ORACLE} --prompt_txt data/prompts_eval.txt",
            "figures.json",
            ["accuracy"],
            "not a caption of the small world",
        ),
        (ORACLE, "figure.json", ["accuracy"], "result figure.json: dpdmd.shapes.measure writes {out}/figures.json"),
        (ORACLE, "figures.json", ["acuracy"], "gives no 'acuracy'; there are accuracy, unrecognised"),
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
        (
            f"{DIVERSITY} {OURS}",
            "sumary.json",
            ["div_dino"],
            "result sumary.json: test_diversity.py writes {out}/summary.json",
        ),
        ("python x/test_quality.py --output_dir {out}", "summary.json", ["vqr1"], "x/test_quality.py: no such file"),
        (f"{GIVEN} {OURS} --images {{out}}/../oracle/pictures", "summary.json", ["div_dino"], ""),
        (f"{GIVEN} {OURS} --images {{out}}/../oracle/pictures --steps 2", "summary.json", ["div_dino"], "--steps 2"),
        (f"{GIVEN} {OURS} --images elsewhere", "summary.json", ["div_dino"], "--images elsewhere: no such folder"),
        ("no_such_program {out}", "x", ["y"], "no_such_program: no such program"),
        ("true {out}", "x", ["y"], ""),
    ],
)
def test_a_measure_is_parsed_by_its_own_program(values, tmp_path, monkeypatch, command, result, metrics, says):
    monkeypatch.chdir(ROOT)
    del values["configurations"]["teacher"], values["configurations"]["dpdmd"]["paper"]
    values["measure"] = {"m": {"command": command, "result": result, "metrics": metrics}}
    (tmp_path / "out" / "runs" / "dmd" / "seed_0" / "oracle" / "pictures").mkdir(
        parents=True
    )  # left by a killed measure
    lines = problems(values, tmp_path)  # one line for two rows of two seeds
    assert len(lines) == bool(says) and all("measure m: " in line and says in line for line in lines)


def test_images_that_the_oracle_does_not_read_are_named_before_the_training(values, tmp_path):
    command = "python -m dpdmd.shapes.measure --model {model} --out {out}/figures.json"
    values["measure"] = {"oracle": {"command": command, "result": "figures.json", "metrics": ["accuracy"]}}
    values["flags"] |= {"height": 128, "width": 128}
    assert any(
        "measure oracle: --height 128 --width 128: the oracle of the small world reads 64 x 64" in line
        for line in problems(values, tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "import pathlib; pathlib.Path(__file__).with_name('ran').touch()",
            "",
        ),  # of this name, but another program: it is not run
        ("from dpdmd.evaluation.program import Program\nMODEL = 'a", "is broken (SyntaxError: unterminated string"),
        ("from dpdmd.evaluation.program import Program\nimport nowhere", "is broken (ModuleNotFoundError: No module"),
        ("from dpdmd.evaluation.program import Program", "is broken (it defines no PROGRAM); mend it"),
    ],
)
def test_a_broken_root_program_is_an_error(values, tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "test_diversity.py"
    path.write_text(content)
    values["measure"]["oracle"]["command"] = DIVERSITY.replace("test_diversity.py", str(path))
    lines = problems(values, tmp_path)
    assert len(lines) == bool(says) and all(f"measure oracle: {path}: {says}" in line for line in lines)
    assert not (tmp_path / "ran").exists()


def test_what_may_not_be_read_gets_one_line(values, tmp_path, capsys, monkeypatch):
    """A folder of --reuse, a record of the sweep, and the model of a row."""
    monkeypatch.chdir(ROOT)
    stat, closed = os.stat, []

    def refuse(path, *args, **kwargs):
        if Path(str(path)).name in closed[-1:]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr("os.stat", refuse)
    (tmp_path / "other" / "runs").mkdir(parents=True)
    given = call(values, tmp_path, "--reuse", str(tmp_path / "other"))
    for name, says in (
        ("runs", f"--reuse {tmp_path / 'other' / 'runs'}: "),
        ("oracle.json", "oracle.json: "),
        ("teacher", f"configuration teacher: {tmp_path / 'teacher'}: "),
    ):
        closed.append(name)
        assert main(given) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{says}cannot be read (Permission denied)" in line


def test_a_model_that_the_measure_cannot_load_is_an_error(values, tmp_path, monkeypatch, tiny_pipeline):
    monkeypatch.chdir(ROOT)
    values["configurations"] = {"there": {"model": str(tiny_pipeline)}, "empty": {"model": str(tmp_path / "teacher")}}
    values["measure"] = {"m": {"command": ORACLE, "result": "figures.json", "metrics": ["accuracy"]}}
    del values["baseline"], values["launcher"], values["flags"]
    (line,) = problems(values, tmp_path)
    assert "measure m: --model " in line and "teacher: neither a pipeline folder" in line


def test_jobs_run_one_at_a_time_on_a_gpu(values, tmp_path, monkeypatch):
    """They would share its memory. On CPU each job has a core, unless a launcher is given."""
    call(values, tmp_path)
    launched = read_sweep(tmp_path / "sweep.yaml")
    plain = replace(launched, on_cores=True)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(7)))
    for devices, expected in ((0, (7, 1)), (2, (1, 1))):
        monkeypatch.setattr("torch.cuda.device_count", lambda devices=devices: devices)
        assert (default_jobs(plain), default_jobs(launched)) == expected


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_of_the_repository_is_valid(path, monkeypatch):
    """The options that are checked are those that the parser of `dpdmd.train` gets from the commands."""
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


def test_the_repository_has_a_sweep_per_table_of_the_paper():
    papers = {f"{name}_{world}" for name in ("table1", "table3", "table4", "figure5") for world in ("tiny", "sd35")}
    assert {path.stem for path in SWEEPS} - {
        "defaults_tiny",
        "geneval_tiny",
        "anchor_tiny",
        "anchor_pairs_tiny",
        "recipe_tiny",
        "compared_tiny",
    } == papers
    assert set(OWN_FLAGS) & set(OUTPUT_FLAGS) == {"run_dir"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_measures_of_every_sweep_give_its_columns(path, monkeypatch):
    """Flags and metrics are checked without the paper's scorers and prompts, which are not in the repository."""
    monkeypatch.chdir(ROOT)
    for module in (measure_commands, program):
        monkeypatch.setattr(module, "check_scorer_paths", lambda flags, names: dict.fromkeys(names))
    monkeypatch.setattr(program, "read_prompts", lambda path, *_: read_prompts(path) if path.exists() else ["a"])
    sweep = read_sweep(path)
    for job in build_jobs(sweep, Path("nowhere")):
        for stage in job.stages:
            if stage.name in sweep.measures:
                preflight.check_measure(sweep, job, stage, model_exists=False)


def test_the_four_sweeps_of_sd35_share_a_training():
    """--reuse takes it over, as the comments in the files say."""
    rows = {"table1": "dpdmd", "table3": "k_5", "table4": "lambda_0.05", "figure5": "detach"}
    read = {name: read_sweep(ROOT / "scripts" / "sweeps" / f"{name}_sd35.yaml") for name in rows}
    first, *others = [read[name].configurations[row] for name, row in rows.items()]
    assert all((other.resolved, other.launcher) == (first.resolved, first.launcher) for other in others)
    assert all("--reuse" in sweep.path.read_text() for sweep in read.values())
    # Each keeps one checkpoint: nothing is scored in the loop, so there is no best checkpoint to keep.
    assert not any(first.resolved[file.flag] for file in in_loop_files())


def test_a_list_may_be_given_in_parts():
    words = [
        "sweep.yaml",
        "--only",
        "a",
        "--only",
        "b",
        "c",
        "--seeds",
        "1",
        "--seeds",
        "2",
        "--reuse",
        "x",
        "--reuse",
        "y",
    ]
    args = build_parser().parse_args(words)
    assert (args.only, args.seeds, args.reuse) == (["a", "b", "c"], [1, 2], [Path("x"), Path("y")])
