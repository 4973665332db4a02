"""Uploads to the Hub by the real client, against a server on the loopback interface."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_upload_server import USER, UploadHub, serve
from huggingface_hub import constants

from dpdmd import export, train
from dpdmd.training import publish
from dpdmd.training.checkpointer import Checkpointer
from dpdmd.utils.hub_upload import upload
from dpdmd.utils.manifest import MANIFEST

TOKEN = "hf_verysecretverysecret"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with serve(TOKEN) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # plain HTTP, as without hf_xet
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_is_uploaded_as_it_lies_there(hub, finished, tmp_path, capsys):
    out = tmp_path / "my-student"
    assert export.main(["--model", str(finished), "--out", str(out), "--push_to_hub", "--private"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/{USER}/my-student"
    assert hub.files[f"{USER}/my-student"] == files_of(out) and "README.md" in files_of(out)
    assert hub.private == {f"{USER}/my-student": True}
    assert f'student = "{USER}/my-student"  #' in (out / "README.md").read_text()  # the name that diffusers needs
    assert not any(TOKEN.encode() in content for content in files_of(out).values())


def test_a_public_repository_gets_nothing_private(hub, finished, tmp_path, capsys):
    """The Hub leaves a repository that exists as it is, whatever is asked of a new one."""
    hub.private[f"{USER}/my-student"], hub.files[f"{USER}/my-student"] = False, {}
    given = ["--model", str(finished), "--push_to_hub", "--private", "--out", str(tmp_path / "my-student")]
    assert export.main(given) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--private: {USER}/my-student exists and is public, so nothing was uploaded" in line
    assert "hf upload" not in line  # which would publish it
    assert hub.files[f"{USER}/my-student"] == {}


def test_a_run_uploads_its_last_student_with_scores(hub, short_run, tiny_scorers, tmp_path):
    scorers = [
        part for name in ("clip_score_path", "clip_path", "dino_path") for part in (f"--{name}", tiny_scorers[name])
    ]
    run = tmp_path / "run"
    more = ["--eval_prompts_limit", "2", "--num_div_seeds", "2", "--max_steps", "6", "--push_to_hub"]
    assert train.main([*short_run, *scorers, *more, "--hub_model_id", "lab/fast", "--run_dir", str(run)]) == 0
    assert hub.files["lab/fast"] == files_of(run / "hub") and hub.private == {"lab/fast": False}
    card = hub.files["lab/fast"]["README.md"].decode()
    assert '"lab/fast"' in card and "## Scores" in card and "images/00_student.webp" in card
    for path in [run / "config.yaml", run / "log" / "log.txt", *(run / "hub").glob("*.md")]:
        assert TOKEN not in path.read_text()
    again = [*short_run, *scorers, *more, "--hub_model_id", "lab/again", "--resume_from_checkpoint", "latest"]
    assert train.main([*again, "--run_dir", str(run)]) == 0  # a run that is done uploads too
    assert hub.files["lab/again"].keys() == hub.files["lab/fast"].keys()


def test_a_run_without_a_step_of_its_own_has_nothing_to_upload(hub, finished, short_run, tmp_path, capsys):
    last, run = finished / "ckpts" / "latest", tmp_path / "run"
    steps = ["--max_steps", str(json.loads((last / MANIFEST).read_text())["progress"]["step"])]
    flags = [*short_run, "--resume_from_checkpoint", str(last.resolve()), *steps, "--run_dir", str(run)]
    assert train.main([*flags, "--push_to_hub"]) == 1
    assert capsys.readouterr().err.endswith(f"stopped: {run}/ckpts has no checkpoint to upload\n") and not hub.files


@pytest.mark.parametrize("where", ["/api/repos/create", "/preupload/", "/large/", "/commit/"])
def test_a_failed_upload_loses_nothing_and_says_how_to_try_again(hub, finished, tmp_path, capsys, where):
    hub.broken[where] = 403
    out = tmp_path / "my student"
    command = ["--model", str(finished), "--out", str(out), "--push_to_hub", "--hub_model_id", "lab/fast", "--private"]
    assert export.main(command) == 1
    memory, line = capsys.readouterr().err.strip().splitlines()
    assert memory.startswith("memory: ")
    assert line.startswith("dpdmd.export: stopped: the upload to lab/fast failed (") and TOKEN not in line
    assert line.endswith(f"to try again: hf upload lab/fast '{out}' . --private")
    assert (out / "README.md").is_file() and (out / "model_index.json").is_file()
    hub.broken.clear()
    upload(out, "lab/fast", private=True, message="again")
    assert hub.files["lab/fast"] == files_of(out)


def test_a_wrong_token_is_not_shown(hub, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    assert export.main(["--model", str(finished), "--out", str(tmp_path / "out"), "--push_to_hub"]) == 1
    said = capsys.readouterr()
    assert "hf_wrongwrongwrong" not in said.err + said.out and (tmp_path / "out" / "README.md").is_file()


def test_a_signal_in_the_last_step_leaves_the_upload_to_a_command(hub, short_run, tmp_path, monkeypatch, capsys):
    """While it uploads, a signal ends the program at once: the handlers are those from before the training."""
    run, save, before = tmp_path / "run", Checkpointer.save, signal.getsignal(signal.SIGTERM)
    command = [*short_run, "--max_steps", "2", "--run_dir", str(run), "--push_to_hub"]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), save(*args)))
        assert train.main(command) == 143
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.endswith(f"stopped before the upload: the run is complete; hf upload run {run / 'hub'} .")
    assert not hub.files and (run / "hub" / "README.md").is_file()
    handlers = []
    monkeypatch.setattr(publish, "upload", lambda *_, **__: handlers.append(signal.getsignal(signal.SIGTERM)))
    assert train.main([*command, "--resume_from_checkpoint", "latest"]) == 0 and handlers == [before]


def test_a_run_whose_upload_fails_is_whole(hub, short_run, tmp_path, capsys):
    hub.broken["/commit/"] = 403
    run = tmp_path / "run"
    assert train.main([*short_run, "--max_steps", "2", "--run_dir", str(run), "--push_to_hub"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dpdmd.train: stopped: the upload to run failed (")
    assert line.endswith(f"to try again: hf upload run {run / 'hub'} .")
    assert (run / "ckpts" / "step_000002" / "manifest.json").is_file() and (run / "hub" / "README.md").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push_to_hub", "--hub_model_id", "a/b/c"], "--hub_model_id a/b/c: is no name of a repository"),
        (["--hub_model_id", "lab/fast"], "--hub_model_id lab/fast: give --push_to_hub too"),
        (["--push_to_hub"], "--push_to_hub: no token of the Hub is here; run `hf auth login`, or set HF_TOKEN"),
    ],
)
@pytest.mark.parametrize("program", ["export", "train"])
def test_an_upload_that_cannot_be_is_an_error_before_any_work(
    hub, finished, short_run, tmp_path, capsys, monkeypatch, program, flags, message
):
    monkeypatch.delenv("HF_TOKEN")
    out = tmp_path / "out"
    given = (
        ["--model", str(finished), "--out", str(out)] if program == "export" else [*short_run, "--run_dir", str(out)]
    )
    assert {"export": export, "train": train}[program].main([*given, *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"dpdmd.{program}: error: {message}") and not out.exists()
