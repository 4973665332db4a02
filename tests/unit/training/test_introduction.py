"""What a run says at its beginning and at its end."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpdmd.config import Config
from dpdmd.run_folder import RunFolder
from dpdmd.training import introduction
from dpdmd.training.checkpoint import Progress
from dpdmd.training.preflight import RunSetup
from dpdmd.training.resume import ResumePoint

CPU = torch.device("cpu")


@pytest.fixture
def setup(tmp_path: Path) -> RunSetup:
    config = Config()
    config.data.prompt_txt, config.optim.batch_size, config.optim.grad_accum = "my.txt", 2, 3
    prompts = ["a red circle", "it's \x1b[31mred", "a cross"]
    folder = RunFolder.of(tmp_path / "a run")
    return RunSetup(config, folder, prompts, None, ResumePoint(), None, 12, 60, [])


def facts(text: str) -> dict[str, str]:
    lines = [line.strip() for line in text.splitlines()[1:]]
    names = ("run folder", *(line.split()[0] for line in lines))
    found = (next(name for name in names if line.startswith(name)) for line in lines)
    return {name: line.removeprefix(name).strip() for name, line in zip(found, lines, strict=True)}


def test_a_run_introduces_itself(setup):
    """The two updates of a step's batch, and the passes over the prompts, are counted as the trainer counts them."""
    said = facts(introduction.opening(setup, 2, CPU))
    assert said["prompts"] == '3 in my.txt: "a red circle", "it\'s [31mred", ...'
    assert said["batch"] == "2 x 3 accumulation x 2 processes = 12 prompts a step; 240 passes over the prompts"
    assert said["steps"] == "60 steps = 50 fake-score + 10 student updates; a checkpoint every 600"
    assert said["start"] == "new, at step 0"
    assert said["device"].startswith("2 processes, each on cpu, ") and said["device"].endswith("; fp32")
    assert said["method"].startswith("dpdmd: a student of 4 sampling steps (all weights) from weights/")
    assert "30 sampling steps at guidance 3.5, 1024x1024 pixels" in said["method"]


def test_updates_that_share_prompts_count_once(setup):
    setup.config.method.fake_rollout_reuse, setup.config.model.lora_rank = 5, 8
    said = facts(introduction.opening(setup, 2, CPU))
    assert "80 passes" in said["batch"]  # one roll-out for five fake-score updates, and one for the student's
    assert "(LoRA of rank 8)" in said["method"]


def test_a_resumed_run_says_where_it_starts(setup):
    point = ResumePoint(Path("ckpts/step_000040"), Progress(40, {}, 12, "", None))
    said = facts(introduction.opening(replace(setup, resume=point), 1, CPU))
    assert said["start"] == "resumed from ckpts/step_000040, at step 40; 20 steps left"


@pytest.mark.parametrize("scattered", [False, True])
def test_a_run_closes_with_the_command_that_uses_its_student(setup, scattered, tmp_path):
    """A run whose checkpoints lie elsewhere names the student's folder, since the run folder does not lead there."""
    if scattered:
        setup = replace(setup, folder=replace(setup.folder, ckpts=tmp_path / "elsewhere"))
    assert "without a checkpoint" in introduction.closing(setup)
    student = setup.folder.checkpoint(60) / "student"
    student.mkdir(parents=True)
    said = facts(introduction.closing(setup))
    root = tmp_path / "a run"
    assert said["student"] == str(student) and said["report"] == str(root / "report.html")
    model = student if scattered else root
    given = ["--model", str(model), "--prompt", "a red circle", "--num_images", "9", "--out", str(root / "images")]
    assert shlex.split(said["generate"]) == ["python", "-m", "dpdmd.generate", *given]


def test_a_run_closes_with_what_it_looks_like(setup):
    (setup.folder.checkpoint(60) / "student").mkdir(parents=True)
    assert "health" not in facts(introduction.closing(setup))
    records = [{"step": step, "turn": "student", "latent_saturated": 0.5} for step in range(1, 41)]
    setup.folder.metrics.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert "learning rate" in facts(introduction.closing(setup))["health"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("--a 'red' $(circle)", ["--prompt=--a 'red' $(circle)"]),
        ("word " * 40, ["--prompt", ("word " * 16).strip()]),
        ("x" * 200, ["--prompt", "x" * 80]),
    ],
)
def test_the_command_is_one_for_any_prompt(setup, prompt, words):
    (setup.folder.checkpoint(60) / "student").mkdir(parents=True)
    said = facts(introduction.closing(replace(setup, prompts=[prompt])))
    given = shlex.split(said["generate"])
    assert given[given.index(words[0]) :][: len(words)] == words
