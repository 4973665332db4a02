"""Several processes that need a model of the Hub: one fetches it, and an error reaches all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_models import DIFFUSION, MODEL
from hub_server import Hub, serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a Hub, and point the processes of the test to it by the variables that users set."""
    with serve() as hub:
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "XDG_CACHE_HOME": str(tmp_path / "xdg"),
            "HF_TOKEN": "hf_secretsecretsecret",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def command(short_run: list[str], tmp_path: Path) -> list[str]:
    given = [*short_run, "--run_dir", str(tmp_path / "run"), "--max_steps", "2", "--vis_every", "0"]
    return ["-m", "dpdmd.train", *given, "--teacher_id", "org/small"]


def test_one_of_two_processes_fetches_and_both_train(hub, tiny_pipeline, command, run_processes, tmp_path):
    """Each file is asked for once. Without --download the same run sends no request."""
    hub.add("org/small", tiny_pipeline)
    done = run_processes([*command, "--download"])
    assert sorted(hub.fetched()) == sorted([DIFFUSION] * 2 + [MODEL] * 3)
    assert done.stderr.count("downloading org/small at") == 1
    assert "hf_secret" not in done.stderr + done.stdout
    assert (tmp_path / "home" / "hub" / "models--org--small" / "refs" / "main").read_text() == "a" * 40
    hub.requests.clear()
    run_processes([*command, "--resume_from_checkpoint", "latest", "--max_steps", "3"])
    assert hub.requests == []


@pytest.mark.parametrize("download", [True, False])
def test_an_error_is_raised_on_every_rank(hub, tiny_pipeline, command, run_processes, tmp_path, download):
    hub.add("org/small", tiny_pipeline, gated=True)
    done = run_processes([*command, *["--download"] * download], check=False)
    says = "is gated: accept its licence" if download else "no such folder; get it from"
    lines = [line for line in done.stderr.splitlines() if "dpdmd.train: error: --teacher_id org/small: " in line]
    assert done.returncode != 0 and lines and all(says in line for line in lines)
    assert len(hub.requests) == int(download) and not (tmp_path / "run").exists()


def test_a_root_program_on_two_processes(hub, tiny_pipeline, tiny_scorers, run_processes, tmp_path):
    hub.add("org/small", tiny_pipeline)
    hub.add("org/dinov2", Path(tiny_scorers["dino_path"]))
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n")
    given = ["--model", "org/small", "--dino_path", "org/dinov2", "--clip_path", "", "--num_samples", "2"]
    paths = ["--prompts_txt", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "out"), "--steps", "2"]
    done = run_processes(["test_diversity.py", *given, *paths, "--download"])
    assert done.stderr.count("downloading org/") == 2 and len(hub.fetched()) == 6
    assert (tmp_path / "out" / "table.txt").exists()
