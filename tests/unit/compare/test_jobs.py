"""Records of a sweep's stages."""

import json

import pytest
from small_sweep import call, two_methods

from dpdmd.compare.jobs import Stage, build_jobs
from dpdmd.compare.sweep import options_of
from dpdmd.compare.sweep_file import read_sweep
from dpdmd.config import parse


def test_a_stage_of_the_same_model_by_another_name_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stage(model: str, teacher: str) -> Stage:
        return Stage("oracle", tmp_path, [], {"model": model, "teacher_id": teacher, "k_anchor": 5}, True)

    stage("weights/sd35", "teacher").write_record(done=True)
    stage(str(tmp_path / "weights" / "sd35"), "./teacher/").check()
    for other in (stage("weights/sd36", "teacher"), stage("weights/sd35", "teacher2")):
        with pytest.raises(ValueError, match="was made with"):
            other.check()


def test_a_prompt_file_that_a_measure_reads_by_default_must_not_change(tmp_path, monkeypatch):
    """A record of an older version does not have it, and counts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    prompts, scorer = tmp_path / "data" / "shapes_eval.txt", tmp_path / "scorer.json"
    for path in (prompts, scorer):
        path.write_text("a red circle")
    command = ["python", "-m", "dpdmd.shapes.measure", "--model", "x", "--out", "y"]

    def stage() -> Stage:
        return Stage("oracle", tmp_path, command, {}, True, {"scorer": scorer})

    stage().write_record(done=True)
    prompts.write_text("a red square")
    with pytest.raises(ValueError, match=r"the content of data/shapes_eval\.txt has changed since"):
        stage().check()
    record = json.loads(stage().record.read_text())
    del record["content"]["--prompt_txt"]
    stage().record.write_text(json.dumps(record))
    assert stage().check() == ""


def test_the_options_of_a_configuration_are_those_of_its_training(tmp_path, tiny_pipeline, tiny_sdxl):
    """Those that its flags leave out are the family's, as the parser of `dpdmd.train` has them."""
    values = two_methods(tmp_path, tiny_pipeline)
    values["configurations"]["sdxl"] = {"flags": {"family": "sdxl", "teacher_id": str(tiny_sdxl)}}
    call(values, tmp_path)
    resolved = read_sweep(tmp_path / "sweep.yaml").configurations["sdxl"].resolved
    trained = options_of(parse(["--family", "sdxl", "--teacher_id", str(tiny_sdxl), "--height", "64", "--width", "64"]))
    sources = ("student_id", "fake_id")  # the teacher, if they are not given
    assert {**resolved, **dict.fromkeys(sources)} == {**trained, **dict.fromkeys(sources)}


def test_a_moving_average_is_measured_in_place_of_its_student(tmp_path, tiny_pipeline):
    """The measure names the average's export in the newest checkpoint; the training and its settings stay."""
    values = two_methods(tmp_path, tiny_pipeline)
    values["flags"]["ema_decay"] = 0.9
    values["configurations"] = {
        "student": {},
        "average": {"average": True},
        "lora": {"average": True, "flags": {"lora_rank": 2}},
    }
    values["baseline"], values["seeds"] = "student", [3]
    call(values, tmp_path)
    student, average, lora = build_jobs(read_sweep(tmp_path / "sweep.yaml"), tmp_path / "out")
    assert student.model == student.folder / "run"
    assert average.model == average.folder / "run" / "ckpts" / "latest" / "student_ema"
    assert lora.model == lora.folder / "run" / "ckpts" / "latest" / "lora_ema"
    (train, oracle), (same_train, same_oracle) = student.stages, average.stages
    assert train.settings == same_train.settings
    assert oracle.settings != same_oracle.settings and same_oracle.command[2] == str(average.model)


def test_each_run_of_a_sweep_has_its_name_in_wandb(tmp_path, tiny_pipeline):
    """Their folders are all named "run"; a long configuration's name is shortened to what W&B takes."""
    values = two_methods(tmp_path, tiny_pipeline)
    values["flags"]["report_to"] = "wandb"
    long = "a" * 200
    values["configurations"] = {"student": {}, long: {}, "named": {"flags": {"tracker_run_name": "mine"}}}
    values["baseline"], values["seeds"] = "student", [3]
    call(values, tmp_path)
    sweep = read_sweep(tmp_path / "sweep.yaml")
    commands = [sweep.train_command(name, 3, tmp_path / "run") for name in sweep.configurations]
    names = [parse(command[command.index("dpdmd.train") + 1 :]).run.tracker_run_name for command in commands]
    assert names == ["student_seed_3", "a" * 108 + "_seed_3", "mine"]


def test_a_measure_that_changed_costs_no_training(tmp_path):
    """Its record alone is to be deleted; one that failed begins anew with what is asked now."""

    def stage(command: str) -> Stage:
        return Stage("oracle", tmp_path, [], {"command": command}, True)

    stage("one").write_record(done=False)
    assert stage("two").check() == ""
    stage("one").write_record(done=True)
    with pytest.raises(ValueError, match="was made with command 'one'") as raised:
        stage("two").check()
    assert str(raised.value).startswith(f"{tmp_path / 'oracle'}: ")
    assert str(raised.value).endswith(f"delete {tmp_path / 'oracle.json'} and give the same command")
    train = Stage("train", tmp_path, [], {"command": "one"}, True)
    train.write_record(done=False)  # a training's settings count from its first step on
    with pytest.raises(ValueError, match="delete that folder"):
        Stage("train", tmp_path, [], {"command": "two"}, True).check()


def test_a_file_that_measures_write_in_common_is_no_input(tmp_path):
    log = tmp_path / "all_scores.csv"
    log.write_text("a")
    stage = Stage("oracle", tmp_path, ["mine"], {}, True, {str(log): log})
    stage.write_record(done=False)
    log.write_text("a, b")
    stage.write_record(done=True)
    log.write_text("a, b, c")
    assert Stage("oracle", tmp_path, ["mine"], {}, True, {str(log): log}).check() == ""


def test_home_folders_are_expanded_in_a_sweep(tmp_path, tiny_pipeline, monkeypatch):
    """A teacher or a prompt file that is not found has no content to compare."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("a red circle")
    values = two_methods(tmp_path, tiny_pipeline)
    values["flags"]["prompt_txt"] = "~/p.txt"
    call(values, tmp_path)
    jobs = build_jobs(read_sweep(tmp_path / "sweep.yaml"), tmp_path / "out")
    train = next(stage for job in jobs for stage in job.stages if stage.name == "train")
    assert train.settings["prompt_txt"] == str(tmp_path / "p.txt") and "prompt_txt" in train.content
    train.folder.mkdir(parents=True)
    train.write_record(done=True)  # one of an older version has the text of the file
    train.record.write_text(train.record.read_text().replace(str(tmp_path / "p.txt"), "~/p.txt"))
    train.check()
