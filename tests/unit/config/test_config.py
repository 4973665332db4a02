"""Configuration: defaults, flags, YAML, and the flags that users of the method know."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from dpdmd import config
from dpdmd.config import options
from dpdmd.utils import strict_yaml

ROOT = Path(__file__).parents[3]
SEED_FLAGS = (
    "teacher_id",
    "student_id",
    "fake_id",
    "prompt_txt",
    "height",
    "width",
    "teacher_infer_steps",
    "stu_inference_steps",
    "per_train_fake_num",
    "k_anchor",
    "batch_size",
    "grad_accum",
    "lr_student",
    "lr_fake",
    "div_weight",
    "weight_decay",
    "max_epoch",
    "log_every",
    "ckpt_every",
    "teacher_guidance_scale",
    "bf16",
    "seed",
    "pick_processor_path",
    "pick_model_path",
    "ir_model_path",
    "ir_med_config",
    "dino_path",
    "clip_path",
    "log_path",
    "ckpt_dir",
    "eval_dir",
    "process_folder_name",
    "diversity_folder_name",
)


def test_defaults_are_the_papers():
    c = config.parse([])
    m, o, d = c.method, c.optim, c.data
    assert (m.method, m.teacher_infer_steps, m.stu_inference_steps, m.per_train_fake_num) == ("dpdmd", 30, 4, 5)
    assert (m.k_anchor, m.div_weight, m.teacher_guidance_scale, m.dmd_normalizer) == (5, 0.05, 3.5, "z_t")
    assert (o.lr_student, o.lr_fake, o.weight_decay, o.max_grad_norm, o.batch_size) == (1e-5, 1e-5, 0.0, 1.0, 4)
    assert (d.height, d.width) == (1024, 1024) and options.DEFAULT_MAX_STEPS == 6000
    assert c.model.student_id == c.model.fake_id == c.model.teacher_id


@pytest.mark.parametrize("name", SEED_FLAGS)
def test_every_flag_of_the_release_is_known(name):
    value = [] if name == "bf16" else ["4"]
    parsed = config.build_parser().parse_args([f"--{name}", *value])
    assert float(getattr(parsed, name)) == (1 if name == "bf16" else 4)


def test_help_names_every_flag_and_every_source():
    text = re.sub(r"\s+", " ", config.build_parser().format_help())
    for group in vars(config.Config()).values():
        assert type(group).__doc__.splitlines()[0] in text
        for item in fields(group):
            assert re.search(f"--{item.name}[ ,]", text)
            assert item.metadata["source"] in text
    assert "--no-no_t5" not in text and text.startswith("usage: dpdmd.train [--config FILE ...]")


def test_a_flag_that_begins_with_no_can_be_negated():
    assert config.parse(["--no_t5"]).model.no_t5
    assert not config.parse(["--no_t5", "--no-no_t5"]).model.no_t5


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("method:\n  k_anchor: 7\n  div_weight: 1e-1\nseed: 9\nbf16: true\n")
    c = config.parse(["--config", str(path), "--k_anchor", "3", "--no-bf16"])
    assert (c.method.k_anchor, c.method.div_weight, c.run.seed, c.optim.bf16) == (3, 0.1, 9, False)


def test_of_several_files_the_later_wins_and_lists_and_empty_groups_are_understood(tmp_path):
    texts = ["k_anchor: 7\nseed: 9\ndata:\nmethod: {}", "method:\n  k_anchor: 4\nstudent_sigmas: [1.0, 0.9, 0.75, 0.5]"]
    paths = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    c = config.parse([part for path in paths for part in ("--config", str(path))])
    assert (c.method.k_anchor, c.run.seed, c.method.student_sigmas) == (4, 9, "1.0,0.9,0.75,0.5")


def test_a_file_nested_too_deeply_and_one_with_a_merge_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("[" * 3000)
    with pytest.raises(ValueError, match="nested too deeply"):
        config.read_yaml(path)
    path.write_text("method: &m {k_anchor: 4, div_weight: 1}\n")
    assert config.read_yaml(path).method.k_anchor == 4
    path.write_text("a: &m {x: 1}\nb: {<<: *m, x: 2}")
    assert strict_yaml.read(path, "") == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("revision: 0123456", "revision", "0123456"),
        ("revision: 00123", "revision", "00123"),
        ("revision: 1234567", "revision", "1234567"),
        ("run_dir: 007", "run_dir", "007"),
        ("run_dir: 0x1F", "run_dir", "0x1F"),
        ("run_dir: 1:30.5", "run_dir", "1:30.5"),
        ("run_dir: 1_000", "run_dir", "1_000"),
        ("max_steps: 010", "max_steps", 10),
        ("max_steps: 1_000", "max_steps", 1000),
        ("seed: -0", "seed", 0),
        ("lr_student: 1e-5", "lr_student", 1e-5),
        ("lr_student: 1.0e-05", "lr_student", 1e-5),
        ("student_sigmas: 1.0", "student_sigmas", "1.0"),
        ("eval_prompts_limit: 16", "eval_prompts_limit", "16"),
        ("lora_targets: [to_q, to_k]", "lora_targets", "to_q,to_k"),
        ("sizes: [64x64, '64x32:2']", "sizes", "64x64,64x32:2"),
    ],
)
def test_a_value_of_a_file_is_what_was_written(tmp_path, text, name, value):
    """YAML 1.1 reads leading zeros as octal, and colons as minutes. A file and a flag give the same value."""
    (tmp_path / "c.yaml").write_text(text)
    given = config.read_yaml(tmp_path / "c.yaml")
    found = getattr(getattr(given, config.schema.group_of_each_option()[name]), name)
    assert found == value and type(found) is type(value)


def test_a_list_of_numbers_keeps_what_is_no_plain_number(tmp_path):
    """So that a sweep with such a seed gets an error."""
    (tmp_path / "sweep.yaml").write_text("seeds: [010, 1, 1:30]")
    assert strict_yaml.read(tmp_path / "sweep.yaml", "") == {"seeds": ["010", 1, "1:30"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tracker_run_name: 1.10", "tracker_run_name must be str, not 1.1; put a text in quotes"),
        ("revision: 12.50", "revision must be str, not 12.5; put a text in quotes"),
        ("run_dir: 2026-11-29", "run_dir must be str, not datetime.date(2026, 11, 29); put a text in quotes"),
        ("run_dir: yes", "run_dir must be str, not True; put a text in quotes"),
        ("run_dir: [a, b]", "run_dir must be str, not ['a', 'b']"),
        ("prompt_txt: [a.txt]", "prompt_txt must be str, not ['a.txt']"),
        ("seed: 1:30", "seed must be int, not '1:30'"),
        ("bf16: 1", "bf16 must be bool, not 1"),
        ("k_anchor: true", "k_anchor must be int, not True; or give auto"),
        ("seed: 2.5", "seed must be int, not 2.5"),
    ],
)
def test_a_value_of_another_type_is_not_turned_into_text(tmp_path, text, says):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"--config {tmp_path / 'c.yaml'}: {says}") + "$"):
        config.read_yaml(tmp_path / "c.yaml")


def test_the_written_file_gives_the_same_configuration_back(tmp_path):
    c = config.parse(["--lr_student", "3e-7", "--run_dir", "a: b #c", "--student_sigmas", "1.0,0.9,0.75,0.5", "--bf16"])
    config.write_yaml(c, tmp_path / "c.yaml")
    assert config.parse(["--config", str(tmp_path / "c.yaml")]) == c


def test_a_written_file_does_not_start_another_run_from_a_checkpoint(tmp_path):
    """Where this run started is a comment; `latest` stays, since without checkpoints it starts anew."""
    path = tmp_path / "c.yaml"
    config.write_yaml(config.parse(["--resume_from_checkpoint", "a/ckpts/step_000600"]), path)
    assert path.read_text().startswith('# started from "a/ckpts/step_000600"\n')
    assert config.parse(["--config", str(path)]).run.resume_from_checkpoint is None
    config.write_yaml(config.parse(["--resume_from_checkpoint", "latest"]), path)
    assert config.parse(["--config", str(path)]).run.resume_from_checkpoint == "latest"


def test_a_written_file_keeps_no_value_that_was_derived(tmp_path):
    """With a new --teacher_id the student and the fake score start from it, unless a flag names another model."""
    path = tmp_path / "c.yaml"
    c = config.parse(["--teacher_id", "old", "--fake_id", "own"])
    c.derive("data", "max_sequence_length", 10)
    c.derive("data", "max_sequence_length", 12)  # the first value is what the user gave
    config.write_yaml(c, path)
    assert path.read_text().startswith("# derived from other options or from the machine:\n# max_sequence_length: 12\n")
    again = config.parse(["--config", str(path), "--teacher_id", "new"])
    assert (again.model.student_id, again.model.fake_id, again.data.max_sequence_length) == ("new", "own", None)
    assert c.as_dict()["data"]["max_sequence_length"] == 12  # what a checkpoint's manifest holds


def test_a_file_of_an_older_version_names_the_teacher_three_times(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("teacher_id: old\nstudent_id: old\nfake_id: old\n")
    assert config.parse(["--config", str(path)]).model.fake_id == "old"
    model = config.parse(["--config", str(path), "--teacher_id", "new"]).model
    assert (model.student_id, model.fake_id) == ("new", "new")


def test_a_file_that_names_a_student_alone_means_it(tmp_path):
    """Even if it names the default teacher, while a flag names another one."""
    path = tmp_path / "c.yaml"
    path.write_text(f"student_id: {options.ModelConfig.teacher_id}\n")
    model = config.parse(["--config", str(path), "--teacher_id", "new"]).model
    assert (model.teacher_id, model.student_id, model.fake_id) == ("new", options.ModelConfig.teacher_id, "new")


def test_one_place_by_two_names_is_one_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("teacher")
    ours, names = (
        config.parse(["--teacher_id", "teacher"]),
        ("teacher/", "./teacher", "link", str(tmp_path / "teacher")),
    )
    for name in names:
        theirs = config.parse(["--teacher_id", name])
        assert ours.differences(theirs) == [] and theirs.model.teacher_id == name
        config.parse(["--teacher_id", "teacher", "--student_id", name, "--lora_rank", "4"])
    assert len(ours.differences(config.parse(["--teacher_id", "teacher2"]))) == 3
    assert not config.equal_values("method", "./dmd", "dmd")


def test_the_papers_way_on_the_small_world_lacks_what_the_search_changed_alone():
    ours, paper = (
        strict_yaml.read(ROOT / "scripts" / "configs" / f"{name}.yaml", name) for name in ("tiny", "paper_tiny")
    )
    paper["optim"] |= {"lr_scheduler": "cosine", "adam_beta2": 0.95}
    paper["method"] |= {"dmd_normalizer": "x_student"}
    assert ours.pop("run") != paper.pop("run") and ours == paper


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    config.validate(config.read_yaml(path))


def test_release_preset_differs_from_ours_only_in_choices():
    """Ours draws a score time per sample; in all else the preset is what the paper and the release agree on."""
    preset, ours = config.read_yaml(ROOT / "scripts/configs/release.yaml"), config.Config()
    assert preset.method.dmd_t == "per_batch" != ours.method.dmd_t
    preset.method.dmd_t = ours.method.dmd_t
    assert preset.method == ours.method


def test_what_may_change_on_resume():
    ours = config.parse(["--max_steps", "10", "--k_anchor", "5"])
    assert ours.differences(config.parse(["--max_steps", "20", "--run_dir", "x", "--prompt_txt", "y.txt"])) == []
    assert ours.differences(config.parse(["--k_anchor", "6"])) == ["k_anchor: 5 here, 6 there"]


def test_a_word_in_place_of_a_number_is_replaced_by_what_another_run_found(tmp_path):
    ours = config.parse(["--k_anchor", "auto", "--anchor_steps", "8"])
    assert ours.method.k_anchor == "auto"
    config.write_yaml(ours, tmp_path / "auto.yaml")
    assert config.read_yaml(tmp_path / "auto.yaml").method.k_anchor == "auto"
    theirs = config.parse(["--k_anchor", "9", "--teacher_infer_steps", "20", "--anchor_steps", "8"])
    assert "k_anchor: 'auto' here, 9 there" in ours.differences(theirs)
    ours.take_found(theirs)
    assert (ours.method.k_anchor, ours.method.teacher_infer_steps) == (9, 30)  # only the word
    theirs.method.k_anchor = 12
    ours.take_found(theirs)
    assert ours.method.k_anchor == 9  # a number stays
