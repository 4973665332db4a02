"""A process that is killed between two writes leaves a run folder that the next process can repair."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from processes import LAUNCHER, cpu_environment, free_port

from dpdmd import export, generate, train
from dpdmd.config import Config, parse
from dpdmd.evaluation import in_loop
from dpdmd.run_folder import BEST, RunFolder, read_records, step_of
from dpdmd.training import resume
from dpdmd.training.checkpointer import Checkpointer
from dpdmd.training.trainer import Trainer
from dpdmd.utils.manifest import MANIFEST, read_manifest, write_manifest

ROOT = Path(__file__).parents[2]
DRIVER = str(ROOT / "tests" / "processes" / "drivers" / "killed_rank.py")


class Killed(BaseException):
    """An exception that no code of the package catches."""


@pytest.fixture
def flags(short_run: list[str], tmp_path: Path) -> list[str]:
    return [*short_run, "--run_dir", str(tmp_path / "run"), "--ckpt_every", "2", "--vis_every", "0"]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    return RunFolder.of(Path(shutil.copytree(finished, tmp_path / "run", symlinks=True)))


def steps(run: RunFolder) -> list[int]:
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]


def test_best_is_moved_by_the_next_process(flags, tiny_scorers, tmp_path, monkeypatch):
    """The run is killed after the record of an evaluation and before the link `best` is moved.

    The evaluation is not repeated, so without the link the limit would delete the best checkpoint.
    """
    flags = [*flags, "--max_steps", "6", "--dino_path", tiny_scorers["dino_path"], "--checkpoints_total_limit", "1"]
    run, point = RunFolder.of(tmp_path / "run"), RunFolder.point
    monkeypatch.setattr(in_loop, "best_step", lambda records, available, *_: 2 if 2 in available else None)

    def killed(self, name, target):
        if name == BEST:
            raise Killed
        point(self, name, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "point", killed)
        train.main(flags)
    assert run.best() is None and steps(run)[-1] == 2
    assert train.main([*flags, "--resume_from_checkpoint", "latest"]) == 0
    assert run.best() == run.checkpoint(2) and run.checkpoints() == [run.checkpoint(2), run.checkpoint(6)]
    assert sorted(path.name for path in run.ckpts.iterdir()) == ["best", "latest", "step_000002", "step_000006"]


def read_config(run: RunFolder) -> Config:
    """Return a run's configuration as a run that continues it has it, after the checks of the teacher."""
    config = parse(["--config", str(run.config)])
    config.data.max_sequence_length = 10  # as in the teacher's dpdmd.json
    return config


def test_a_checkpoint_newer_than_latest_is_found(run):
    """It is not, if the run has since gone back to an earlier checkpoint, or if it is incomplete."""
    config = read_config(run)
    run.point("latest", run.checkpoint(4))
    assert resume.find(run, "latest", config).path == run.checkpoint(6)
    os.utime(run.checkpoint(6) / MANIFEST, (0, 0))
    assert resume.find(run, "latest", config).path == run.checkpoint(4)
    (run.checkpoint(4) / MANIFEST).unlink()
    assert resume.find(run, "latest", config).path == run.checkpoint(2)


def test_a_run_that_is_killed_after_it_went_back_resumes_from_there(flags, run, monkeypatch):
    """Otherwise `latest` would be ahead of metrics.jsonl, which would lack the steps between."""

    def killed(self, step):
        raise Killed

    back = [*flags, "--max_steps", "6", "--resume_from_checkpoint", str(run.checkpoint(2))]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "start_step", killed)
        train.main(back)
    assert run.latest() == run.checkpoint(2)
    assert train.main([*back[:-1], "latest"]) == 0
    assert steps(run) == [1, 2, 3, 4, 5, 6] and run.latest() == run.checkpoint(6)


def test_a_checkpoint_stays_until_its_replacement_is_in_place(flags, run, monkeypatch):
    """The old checkpoint is deleted last, since deleting a large one takes time."""
    seen, healthy = [], shutil.rmtree

    def watched(path, **options):
        if Path(path).name == ".step_000004.old.tmp" and Path(path).exists():
            seen.append((run.checkpoint(4) / MANIFEST).is_file() and run.latest() == run.checkpoint(4))
        healthy(path, **options)

    monkeypatch.setattr("dpdmd.utils.folders.shutil.rmtree", watched)
    back = ["--max_steps", "4", "--resume_from_checkpoint", str(run.checkpoint(2))]
    assert train.main([*flags, *back]) == 0
    assert seen == [True]


def test_a_checkpoint_returns_if_its_replacement_cannot_take_its_place(flags, run, monkeypatch, capsys):
    healthy, old = os.replace, (run.checkpoint(4) / MANIFEST).read_bytes()

    def failing(source, target):
        if Path(source).name == ".step_000004.tmp":
            raise OSError(errno.EIO, "Input/output error", str(target))
        healthy(source, target)

    monkeypatch.setattr(os, "replace", failing)
    back = ["--max_steps", "4", "--resume_from_checkpoint", str(run.checkpoint(2))]
    assert train.main([*flags, *back]) == 1
    assert "step_000004 could not be written" in capsys.readouterr().err
    assert (run.checkpoint(4) / MANIFEST).read_bytes() == old


@pytest.mark.parametrize("only", [True, False])
def test_a_kill_between_two_renames_loses_no_checkpoint(flags, run, monkeypatch, only):
    """The new checkpoint is taken if it is whole, else the old one; also if the run has no other."""
    new, old = run.ckpts / ".step_000006.tmp", run.ckpts / ".step_000006.old.tmp"
    for step in (2, 4) if only else ():
        shutil.rmtree(run.checkpoint(step))
    shutil.copytree(run.checkpoint(6), new, symlinks=True)
    os.replace(run.checkpoint(6), old)
    (new / "new").touch()
    last = (new / MANIFEST).read_bytes()
    run.restore_checkpoints()
    assert (run.checkpoint(6) / "new").is_file() and old.is_dir() and not new.exists()
    os.replace(run.checkpoint(6), new)
    (new / MANIFEST).unlink()
    assert train.main([*flags, "--max_steps", "6", "--resume_from_checkpoint", "latest"]) == 0
    assert (run.checkpoint(6) / MANIFEST).read_bytes() == last and run.half_written() == []
    assert not (run.checkpoint(6) / "new").exists() and "left to train: step 6 of 6" in run.log_file.read_text()


def test_checkpoints_are_not_renamed_while_a_process_trains(run, monkeypatch):
    """It may be about to do so itself."""
    left = run.ckpts / ".step_000006.tmp"
    os.replace(run.checkpoint(6), left)
    for lock in (Mock(side_effect=ValueError("--run_dir: another process is training there")), Mock(return_value=None)):
        monkeypatch.setattr(RunFolder, "lock", lock)
        run.restore_checkpoints()
        assert left.is_dir() and not run.checkpoint(6).exists() and lock.called


def test_a_resumed_run_deletes_leftovers(flags, run):
    """It also deletes checkpoints beyond the limit, even if no step is left to train."""
    (run.ckpts / ".step_000002.old.tmp" / "state").mkdir(parents=True)
    (run.ckpts / ".latest.tmp").symlink_to("step_000002")
    (run.ckpts / "best").symlink_to("step_000001")
    (run.seed_grids / ".step_000002.tmp").mkdir(parents=True)
    for half in (
        *(run.root / ".metrics.jsonl.123.tmp", run.root / ".report.html.123.tmp"),
        *(run.eval_images / "pick" / ".00000_000.png.123.tmp", run.process_vis / ".latest.png.123.tmp"),
    ):
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_text("half")
    resumed = ["--max_steps", "6", "--resume_from_checkpoint", "latest", "--checkpoints_total_limit", "1"]
    assert train.main([*flags, *resumed]) == 0
    assert list(run.root.rglob(".*.tmp")) == []
    assert sorted(path.name for path in run.ckpts.iterdir()) == ["latest", "step_000006"]


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".config.yaml.123.tmp"], [".lock", "config.yaml"]])
def test_a_run_that_was_killed_before_it_began_leaves_its_folder_unused(flags, tmp_path, left):
    """The same command works again."""
    run = RunFolder.of(tmp_path / "run")
    run.create()
    for name in left:
        (run.root / name).write_text("")
    assert not run.flag_in_use()
    assert train.main([*flags, "--max_steps", "1"]) == 0


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(flags, tmp_path, monkeypatch, capsys):
    """The same command works again until a checkpoint is whole. From then on, missing checkpoints are an error."""
    flags, run = [*flags, "--max_steps", "4", "--resume_from_checkpoint", "latest"], RunFolder.of(tmp_path / "run")

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpointer, "save", killed)
        train.main(flags)
    assert steps(run)[-1] >= 2 and not run.checkpoints()
    assert train.main(flags) == 0 and steps(run) == [1, 2, 3, 4]
    for path in run.ckpts.iterdir():
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    assert train.main(flags) == 2 and "has no checkpoint to continue" in capsys.readouterr().err
    assert steps(run) == [1, 2, 3, 4]


def test_a_run_that_starts_anew_keeps_no_scores_of_other_flags(flags, tiny_scorers, tmp_path, monkeypatch):
    """It was killed after its first evaluation, and starts with another grid: no record is of the grid before."""
    scorer = ["--dino_path", tiny_scorers["dino_path"], "--num_div_seeds", "2", "--eval_every", "2"]
    flags, other = [*flags, *scorer, "--max_steps", "2"], ["--student_sigmas", "1.0,0.3"]
    run, whole = RunFolder.of(tmp_path / "run"), RunFolder.of(tmp_path / "whole")

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpointer, "save", killed)
        train.main(flags)
    assert steps(run)[0] == 0 and not run.checkpoints()
    run.wandb.write_text("{}")
    assert train.main([*flags, *other, "--resume_from_checkpoint", "latest"]) == 0
    assert train.main([*flags, *other, "--run_dir", str(whole.root)]) == 0
    scores = [
        [record["eval/prompts_eval_div_dino"] for record in read_records(each.metrics) if record["turn"] == "eval"]
        for each in (run, whole)
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 2 and not run.wandb.exists()


@pytest.mark.parametrize(
    "progress",
    [{"step": "6"}, {"step": -6}, {"updates": {"student": 7, "fake": 5}}, {"updates": {"student": 1.0, "fake": 5}}],
)
def test_a_checkpoint_with_impossible_counts_is_skipped(run, progress):
    """A checkpoint with impossible counts is skipped with one line, even if the manifest's checksum is right."""
    manifest = read_manifest(run.checkpoint(6))
    manifest["progress"].update(progress)
    write_manifest(run.checkpoint(6), manifest)
    found = resume.find(run, "latest", read_config(run))
    assert found.path == run.checkpoint(4)
    (message,) = found.passed_over
    assert f"{run.checkpoint(6)} is not whole (manifest.json" in message and message.endswith("passed over")


def test_a_link_to_nowhere_in_place_of_a_checkpoint_is_replaced(run, short_run):
    """A checkpoint was moved to a disk that is gone, and the run reaches its step again."""
    moved = run.checkpoint(6)
    shutil.rmtree(moved)
    moved.symlink_to(run.root / "gone")
    again = ["--resume_from_checkpoint", str(run.checkpoint(4)), "--run_dir", str(run.root), "--vis_every", "0"]
    assert train.main([*short_run, *again, "--ckpt_every", "2", "--max_steps", "6"]) == 0
    assert moved.is_dir() and not moved.is_symlink() and run.latest() == moved


def test_a_moved_teacher_is_named(short_run, tiny_pipeline, tmp_path, capsys):
    """Export, generation and resuming name the old path of a teacher that a checkpoint links to."""
    teacher, moved = tmp_path / "teacher", tmp_path / "moved"
    shutil.copytree(tiny_pipeline, teacher)
    run = RunFolder.of(tmp_path / "run")
    flags = [*short_run, "--run_dir", str(run.root), "--ckpt_every", "1", "--vis_every", "0", "--max_steps", "2"]
    assert train.main([*flags, "--teacher_id", str(teacher)]) == 0
    teacher.rename(moved)
    for main, arguments, part in (
        (export.main, ["--model", str(run.checkpoint(1)), "--out", str(tmp_path / "out")], "text_encoder"),
        (generate.main, ["--model", str(run.checkpoint(1)), "--out", str(tmp_path / "out"), "--prompt", "a"], "text_"),
        (train.main, [*flags, "--teacher_id", str(moved), "--resume_from_checkpoint", "latest"], ""),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert str(teacher / part) in line and "moved? Put it back, or a link to it" in line and "http" not in line
    assert export.main(["--model", str(run.root), "--out", str(tmp_path / "out")]) == 0  # the last export is whole


def test_generate_deletes_leftovers(tiny_pipeline, tmp_path):
    """In both layouts; in GenEval's, a half-written record is no error."""
    entries = tmp_path / "entries.jsonl"
    entries.write_text(json.dumps({"tag": "single_object", "prompt": "a red circle"}) + "\n")
    made = ["--model", str(tiny_pipeline), "--num_images", "1", "--steps", "1"]
    plain, laid_out = tmp_path / "plain", tmp_path / "laid_out"
    for half in (plain / ".00000_000.png.123.tmp", laid_out / ".pictures.json.123.tmp"):
        half.parent.mkdir()
        half.write_text("half")
    assert generate.main([*made, "--prompt", "a red circle", "--out", str(plain)]) == 0
    assert generate.main([*made, "--geneval", str(entries), "--out", str(laid_out)]) == 0
    (laid_out / "00000" / "samples" / ".0000.png.123.tmp").write_text("half")
    assert generate.main([*made, "--geneval", str(entries), "--out", str(laid_out)]) == 0
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_others_end_when_a_rank_is_killed(flags, tmp_path, run_processes, monkeypatch, rank):
    """Each prints one line. If rank 1 is killed, rank 0 completes the checkpoint that it has begun."""
    monkeypatch.setenv("KILLED", rank)
    result = run_processes([DRIVER, "train", *flags, "--max_steps", "60"], check=False)
    run = RunFolder.of(tmp_path / "run")
    assert result.returncode != 0
    assert result.stderr.count("dpdmd.train: stopped: another process of this run is gone (") == 1
    assert result.stderr.count("Traceback") <= 1  # the launcher's
    if rank == "1":
        assert resume.find(run, "latest", read_config(run)).path == run.checkpoint(2)


def test_the_ranks_of_a_killed_launcher_save_and_end(flags, tmp_path):
    """The system sends them a signal. Otherwise they would train on and lock the folder for the resumed run."""
    run = RunFolder.of(tmp_path / "run")
    launch = [sys.executable, "-m", *LAUNCHER, "--master_port", free_port(), "--nproc_per_node", "2", "-m"]
    command = [*launch, "dpdmd.train", *flags, "--max_steps", "2000", "--ckpt_every", "1000"]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(command, cwd=ROOT, env=cpu_environment(), stdout=log, stderr=log)
        until = time.monotonic() + 300
        while not (run.metrics.is_file() and steps(run)) and launcher.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait()
    message = "dpdmd.train: stopped: SIGTERM: saved at step"
    while (lines := (tmp_path / "log").read_text()).count(message) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert lines.count(message) == 2 and "Traceback" not in lines
    assert 0 < step_of(run.latest()) < 1000


def test_a_root_program_ends_when_a_rank_is_killed(tiny_pipeline, tiny_scorers, tmp_path, run_processes, monkeypatch):
    monkeypatch.setenv("KILLED", "1")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na small cross\n")
    paths = ["--model", str(tiny_pipeline), "--prompts_txt", str(prompts), "--output_dir", str(tmp_path / "out")]
    scorers = ["--pick_model_path", "", "--ir_model_path", "", "--clip_score_path", tiny_scorers["clip_score_path"]]
    result = run_processes(
        [DRIVER, "test_preference.py", *paths, *scorers, "--steps", "2", "--gen_batch_size", "1"], check=False
    )
    assert result.returncode != 0
    assert result.stderr.count("test_preference.py: stopped: another process of this call is gone (") == 1
    assert result.stderr.count("Traceback") <= 1
