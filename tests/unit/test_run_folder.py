"""The run folder: its paths, its lock, and when it counts as used."""

from pathlib import Path

from dpdmd.config.options import RunConfig
from dpdmd.run_folder import RunFolder


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


def test_the_folder_in_use_is_named_by_its_flag(tmp_path):
    (tmp_path / "shared" / "step_000003").mkdir(parents=True)
    (tmp_path / "shared" / "step_000003" / "manifest.json").write_text("{}")
    run = RunConfig(run_dir=str(tmp_path / "s2"), ckpt_dir=str(tmp_path / "shared"))
    assert RunFolder.from_config(run).flag_in_use() == "--ckpt_dir"
    (tmp_path / "s2").mkdir()
    (tmp_path / "s2" / "metrics.jsonl").write_text("{}")
    assert RunFolder.from_config(run).flag_in_use() == "--run_dir"


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
