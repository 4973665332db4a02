"""Wrong input of `dpdmd.find_anchor` and of `--k_anchor auto`: one line that names the flag, before any model loads."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpdmd.find_anchor import __main__ as find_anchor

pytestmark = pytest.mark.usefixtures("no_model_loads")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def refused_search(flags, refused_by, tmp_path):
    """Return a function that calls the program with changed flags and returns the error that it prints."""

    def message(changes: dict[str, str]) -> str:
        out = tmp_path / "out"
        given = {**flags, "--num_prompts": "1", "--out": str(out), **changes}
        says = refused_by("dpdmd.find_anchor", find_anchor.main, [part for pair in given.items() for part in pair])
        assert not out.exists() and not Path(flags["--run_dir"]).exists()
        return says

    return message


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--num_prompts", "0", "--num_prompts 0: must be 1 to 1000000000"),
        ("--num_prompts", "2", "has 1; give fewer"),
        ("--num_prompts", "some", "argument --num_prompts: invalid int value: 'some'"),
        ("--num_seeds", "1", "--num_seeds 1: give at least 2"),
        ("--num_seeds", "100001", "--num_seeds 100001: must be 1 to 100000"),
        ("--threshold", "0", "--threshold 0.0: must be above 0 and below 1"),
        ("--threshold", "1", "--threshold 1.0: must be above 0 and below 1"),
        ("--threshold", "nan", "--threshold nan: must be above 0 and below 1"),
        ("--space", "dino", "argument --space: invalid choice: 'dino'"),
        ("--out", "README.md/out", "--out README.md/out"),
        ("--teacher_id", "nowhere", "--teacher_id nowhere: no such folder"),
        ("--prompt_txt", "nowhere.txt", "--prompt_txt nowhere.txt: cannot be read"),
        ("--height", "68", "--height 68: must be a multiple of 8"),
        ("--teacher_infer_steps", "0", "--teacher_infer_steps 0"),
        ("--family", "sdxl", "(it is of --family sd35)"),
        ("--batch_size", "0", "--batch_size 0: must be 1 to"),
        ("--kanchor", "5", "unrecognized arguments: --kanchor 5 (did you mean --k_anchor?)"),
        ("--num_images", "5", "unrecognized arguments: --num_images 5"),
    ],
)
def test_a_wrong_flag_of_the_search(refused_search, flag, value, says):
    assert says in refused_search({flag: value})


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"metrics.jsonl": "", "anchor.json": '{"k_anchor": 5, "of": {}}'}, "is the folder of a run, whose files it"),
        ({".lock": "", "anchor.json": '{"k_anchor": 5, "of": {}}'}, "is the folder of a run, whose files it"),
        ({"anchor.json": '{"k_anchor": 5, "of": {}}'}, "anchor.json would be replaced, and nothing shows that"),
        ({"anchor.png": "mine"}, "anchor.png would be replaced, and nothing shows that"),
        ({"anchor.json/file": "mine"}, "anchor.json is a folder, but a file is written there"),
    ],
)
def test_the_search_replaces_only_its_own_files(refused_by, flags, tmp_path, files, says):
    out = tmp_path / "found"
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    given = [part for pair in {**flags, "--num_prompts": "1", "--out": str(out)}.items() for part in pair]
    line = refused_by("dpdmd.find_anchor", find_anchor.main, given)
    assert line.startswith(f"--out {out}: ") and says in line
    assert {name: (out / name).read_text() for name in files} == files


def test_several_processes(refused_search, monkeypatch):
    ours = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ours, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert refused_search({}).startswith("2 processes were launched: start it on one process")


def test_a_broken_teacher(refused_search, broken):
    """The content of the weights is checked before they are loaded."""
    weights = load_file(broken / WEIGHTS)
    name = min(weights)
    save_file({**weights, name: torch.full_like(weights[name], math.nan)}, broken / WEIGHTS)
    config = json.loads((broken / "transformer/config.json").read_text())
    (broken / "transformer/config.json").write_text(json.dumps({**config, "num_layers": 3}))
    assert str(broken) in refused_search({"--teacher_id": str(broken)})


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--k_anchor": "Auto"}, "argument --k_anchor: invalid int or auto value: 'Auto'"),
        ({"--k_anchor": "5.5"}, "argument --k_anchor: invalid int or auto value: '5.5'"),
        (
            {"--k_anchor": "auto", "--anchor_steps": "31"},
            "--anchor_steps 31: must be 1 to --teacher_infer_steps (30)",
        ),
        ({"--k_anchor": "auto", "--anchor_steps": "0"}, "--anchor_steps 0: must be 1 to --teacher_infer_steps (30)"),
        ({"--anchor_steps": "auto"}, "argument --anchor_steps: invalid int value: 'auto'"),
    ],
)
def test_a_wrong_flag_of_training(refused, monkeypatch, rank, changes, says):
    monkeypatch.setenv("RANK", rank)
    assert says in refused(changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("k_anchor: automatic", "k_anchor must be int, not 'automatic'; or give auto"),
        ("k_anchor: [auto]", "k_anchor must be int"),
        ("anchor_steps: auto", "anchor_steps must be int, not 'auto'"),
    ],
)
def test_a_wrong_value_in_a_file(refused, tmp_path, text, says):
    (tmp_path / "wrong.yaml").write_text(text)
    assert says in refused({"--config": str(tmp_path / "wrong.yaml")})
