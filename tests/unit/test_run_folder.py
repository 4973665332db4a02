"""The run folder: its paths, its lock, and when it counts as used."""

import os
from pathlib import Path

import pytest

from dpdmd.config import Config, write_yaml
from dpdmd.config.options import RunConfig
from dpdmd.run_folder import RunFolder, read_records


def test_a_file_system_without_locks_is_accepted(tmp_path, monkeypatch):
    folder = RunFolder.of(tmp_path / "run")
    folder.create()

    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("dpdmd.run_folder.fcntl.lockf", none)
    assert folder.lock() is None


def test_a_folder_with_a_configuration_is_used(tmp_path):
    (tmp_path / "config.yaml").write_text("k_anchor: 5")
    assert RunFolder.of(tmp_path).flag_in_use()
    assert not RunFolder.from_config(RunConfig(run_dir=str(tmp_path / "none"))).flag_in_use()


def test_programs_find_the_folders_that_the_configuration_names(tmp_path):
    """Folders that are gone or were given relative to another place do not count."""
    config = Config()
    config.run.ckpt_dir, config.run.eval_dir = str(tmp_path / "disk"), "nowhere/images"
    (tmp_path / "disk" / "step_000003").mkdir(parents=True)
    root = tmp_path / "run"
    write_yaml(config, root / "config.yaml")
    folder = RunFolder.of(root)
    assert folder.latest() == tmp_path / "disk" / "step_000003" and folder.eval_images == root / "eval_images"
    (root / "config.yaml").write_text("run: [")
    assert RunFolder.of(root).ckpts == root / "ckpts"


def test_the_folder_in_use_is_named_by_its_flag(tmp_path):
    (tmp_path / "shared" / "step_000003").mkdir(parents=True)
    (tmp_path / "shared" / "step_000003" / "manifest.json").write_text("{}")
    run = RunConfig(run_dir=str(tmp_path / "s2"), ckpt_dir=str(tmp_path / "shared"))
    assert RunFolder.from_config(run).flag_in_use() == "--ckpt_dir"
    (tmp_path / "s2").mkdir()
    (tmp_path / "s2" / "metrics.jsonl").write_text("{}")
    assert RunFolder.from_config(run).flag_in_use() == "--run_dir"


def test_a_folder_counts_as_used_at_its_first_file(tmp_path, monkeypatch):
    """A large tree is not walked to its end."""
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("mine")
    walked, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda folder: (walked.append(entry[0]) or entry for entry in walk(folder)))
    assert RunFolder.of(tmp_path).flag_in_use() == "--run_dir" and walked == [str(tmp_path)]


@pytest.mark.parametrize(
    ("files", "nothing"),
    [
        ([], False),
        (["config.yaml", "metrics.jsonl", "report.html"], False),
        ([".lock", "config.yaml", "metrics.jsonl", "report.html"], True),
        (["environment.json", "metrics.jsonl"], True),
        ([".lock", "metrics.jsonl", ".saved"], False),
        ([".lock", "metrics.jsonl", "ckpts/step_000006/manifest.json"], False),
    ],
)
def test_only_a_run_that_has_saved_nothing_has_nothing_to_lose(tmp_path, files, nothing):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert RunFolder.of(tmp_path).has_nothing_to_lose() == nothing


def test_a_run_owns_the_checkpoints_that_lie_or_are_linked_in_its_folder(tmp_path):
    one, other = RunFolder.of(tmp_path / "one"), RunFolder.of(tmp_path / "other")
    assert not other.owns(one.checkpoint(2))
    for folder in (one, other):
        folder.checkpoint(2).mkdir(parents=True)
    one.point("latest", one.checkpoint(2))
    (one.ckpts / "best").symlink_to("best")  # leads to itself
    assert one.owns(one.checkpoint(2)) and one.owns(one.ckpts / "latest") and not other.owns(one.checkpoint(2))
    other.checkpoint(3).symlink_to(one.checkpoint(2))
    assert other.owns(one.checkpoint(2)) and other.owns(other.checkpoint(3))


WHOLE = '{"step": 1, "turn": "fake", "loss_fake": 3.4e38, "grad_norm": null, "size": "64x64", "a": NaN, "b": -Infinity}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"loss": 1, "iter": 1}', "needs a turn, which is text, and a step"),
        ('{"step": 2, "turn": ["x"]}', "needs a turn"),
        ('{"step": 2, "turn": {}}', "needs a turn"),
        ('{"step": true, "turn": "fake"}', "needs a turn"),
        ('{"step": -1, "turn": "fake"}', "needs a turn"),
        (f'{{"step": {"9" * 400}, "turn": "fake"}}', "needs a turn"),
        (f'{{"step": {"9" * 5000}, "turn": "fake"}}', "Exceeds the limit"),
        ('{"step": 6, "turn": "eval", "eval/x": "0.3"}', "eval/x is no number"),
        ('{"step": 6, "turn": "student", "loss_student": "x"}', "loss_student is no number"),
        (f'{{"step": 6, "turn": "student", "loss_student": {"9" * 400}}}', "loss_student is no number"),
        ('{"step": 6, "turn": "student", "loss_student": 1e308}', "loss_student is no number in the range of fp32"),
        ('{"step": 6, "turn": "student", "loss_student": -1e39}', "loss_student is no number"),
        ("[1]", "not a JSON object"),
        ("mine", "Expecting value"),
    ],
)
def test_a_line_that_no_run_wrote_is_named_or_left_out(tmp_path, line, says):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{WHOLE}\n{line}\n\n{WHOLE}\n")
    with pytest.raises(
        ValueError, match=rf"{path}, line 2: no record of a run \({says}.*\); correct or delete the line"
    ):
        read_records(path)
    odd: list[str] = []
    assert len(read_records(path, odd)) == 2 and len(odd) == 1 and says in odd[0]


@pytest.mark.parametrize(("end", "count"), [("", 1), ('{"step": 2, "tu', 1), (WHOLE, 2)])
def test_a_last_line_that_a_kill_has_cut_is_skipped(tmp_path, end, count):
    (tmp_path / "metrics.jsonl").write_text(f"{WHOLE}\n{end}")
    assert len(read_records(tmp_path / "metrics.jsonl")) == count


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "metrics.jsonl", "log/log.txt", ".lock"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    RunFolder.of(tmp_path).check_files()
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{tmp_path / name}: is a folder, but the run writes a file there; move it"):
        RunFolder.of(tmp_path).check_files()


def test_a_log_that_cannot_be_continued_is_named(tmp_path, monkeypatch):
    folder = RunFolder.of(tmp_path)
    folder.log.mkdir()
    folder.log_file.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=f"{folder.log_file}: is not writable; make it writable"):
        folder.check_files()


def test_run_folder_derives_all_paths():
    folder = RunFolder.from_config(RunConfig(run_dir="r"))
    assert [folder.log, folder.ckpts, folder.eval_images, folder.process_vis, folder.div_vis] == [
        Path("r/log"), Path("r/ckpts"), Path("r/eval_images"), Path("r/process_vis"), Path("r/div_vis"),
    ]  # fmt: skip
    assert not folder.scattered()


def test_paths_as_in_the_release_share_a_root_and_others_are_reported():
    given = {"log_path": "o/x/log", "ckpt_dir": "o/x/ckpts", "eval_dir": "o/x/eval_images"}
    folder = RunFolder.from_config(RunConfig(**given, process_folder_name="o/x/p", diversity_folder_name="o/y/d"))
    assert folder.root == Path("o/x") and folder.metrics == Path("o/x/metrics.jsonl")
    assert folder.scattered() == [Path("o/y/d")]
