"""Wrong input: one line that names the flag or file, exit status 2, before any model loads, and nothing is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpdmd import generate, preflight, train
from dpdmd.families import sd35
from dpdmd.manifest import write_manifest


@pytest.fixture
def flags(tiny_pipeline: Path, tmp_path: Path) -> dict[str, str]:
    """A command line that would run, as flag -> value."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    return {
        "--teacher_id": str(tiny_pipeline),
        "--prompt_txt": str(prompts),
        "--height": "64",
        "--width": "64",
        "--run_dir": str(tmp_path / "run"),
    }


@pytest.fixture(autouse=True)
def no_model_loads(monkeypatch):
    """Loading anything fails the test: wrong input is told before."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded before the input was refused")

    for name in ("load_network", "load_text_encoder", "load_image_decoder"):
        monkeypatch.setattr(sd35.SD35, name, refuse)


def refused(flags: dict[str, str], capsys) -> str:
    """The one line that this command line gets."""
    command = [part for flag, value in flags.items() for part in (flag, value)]
    try:
        status = train.main(command)
    except SystemExit as error:  # argparse
        status = error.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(("dpdmd.train: error: ", "usage: "))
    assert sum("error:" in line for line in lines) == 1
    return lines[-1]


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--teacher_id", "nowhere", "--teacher_id nowhere: no such folder"),
        ("--student_id", "nowhere", "--student_id nowhere: no such folder"),
        ("--fake_id", "nowhere", "--fake_id nowhere: no such folder"),
        ("--prompt_txt", "nowhere.txt", "--prompt_txt nowhere.txt: cannot be read"),
        ("--k_anchor", "0", "--k_anchor 0: must be 1 to --teacher_infer_steps (30)"),
        ("--k_anchor", "31", "--k_anchor 31"),
        ("--height", "68", "--height 68: must be a multiple of 8"),
        ("--width", "0", "--width 0"),
        ("--width", "100000", "--width 100000: this model has positions for"),
        ("--method", "sgd", "--method"),
        ("--dmd_normalizer", "x", "--dmd_normalizer"),
        ("--student_sigmas", "1.0,0.5", "--student_sigmas: '1.0,0.5' has 2 sigmas, but the student takes 4 steps"),
        ("--student_sigmas", "fast", "--student_sigmas: 'fast' is neither"),
        ("--student_sigmas", "1.0,0.5,0.7,0.2", "--student_sigmas"),
        ("--batch_size", "0", "--batch_size 0"),
        ("--batch_size", "two", "--batch_size"),
        ("--lr_student", "-1e-5", "--lr_student"),
        ("--lr_fake", "nan", "--lr_fake nan"),
        ("--div_weight", "inf", "--div_weight inf"),
        ("--stu_inference_steps", "1", "--stu_inference_steps 1: dpdmd trains the steps after the first"),
        ("--max_steps", "0", "--max_steps 0"),
        ("--clip_path", "nowhere", "--clip_path nowhere: no such folder"),
        ("--resume_from_checkpoint", "nowhere", "--resume_from_checkpoint nowhere"),
        ("--config", "nowhere.yaml", "--config nowhere.yaml: cannot be read"),
        ("--kanchor", "5", "unrecognized arguments: --kanchor 5"),
        ("--k_anch", "5", "unrecognized arguments: --k_anch 5"),
        ("--run_dir", __file__, "is a file; give a folder"),
    ],
)
def test_a_wrong_value_gets_one_line(flags, capsys, flag, value, says):
    assert says in refused({**flags, flag: value}, capsys)
    assert not Path(flags["--run_dir"]).exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kanchor: 3", "unknown key 'kanchor' (did you mean k_anchor?)"),
        ("k_anchor: many", "k_anchor must be int, not 'many'"),
        ("bf16: 1", "bf16 must be bool"),
        ("- 1", "must hold keys and values"),
        ("a: [", "no YAML"),
        ("method: {method: sgd}", "--method sgd: choose one of dpdmd, dmd"),
        ("k_anchor: null", "k_anchor must be int"),
    ],
)
def test_a_wrong_configuration_file_gets_one_line(flags, tmp_path, capsys, text, says):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert says in refused({**flags, "--config": str(path)}, capsys)


def broken(tmp_path: Path, source: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "broken"))


@pytest.mark.parametrize(
    ("part", "content", "says"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", None, "diffusion_pytorch_model.safetensors is missing"),
        ("transformer/diffusion_pytorch_model.safetensors", b"version https://git-lfs", "is no safetensors file"),
        ("transformer/config.json", None, "config.json is missing"),
        ("transformer/config.json", b"{", "cannot be read as JSON"),
        ("vae/config.json", None, "config.json is missing"),
        ("model_index.json", None, "model_index.json is missing"),
        ("model_index.json", b'{"_class_name": "FluxPipeline"}', "is of a FluxPipeline"),
        ("tokenizer/tokenizer.json", None, "holds no tokenizer"),
        ("scheduler/scheduler_config.json", b'{"_class_name": "DDIMScheduler"}', "is of a DDIMScheduler"),
    ],
)
def test_an_incomplete_weight_folder_names_the_file(flags, tmp_path, tiny_pipeline, capsys, part, content, says):
    folder = broken(tmp_path, tiny_pipeline)
    (folder / part).unlink()
    if content is not None:
        (folder / part).write_bytes(content)
    line = refused({**flags, "--teacher_id": str(folder)}, capsys)
    assert says in line and "stabilityai/stable-diffusion-3.5-medium" in line and "--teacher_id" in line


def test_truncated_weights_are_told(flags, tmp_path, tiny_pipeline, capsys):
    folder = broken(tmp_path, tiny_pipeline)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is truncated" in refused({**flags, "--fake_id": str(folder)}, capsys)


def test_another_architecture_is_told(flags, tmp_path, tiny_pipeline, capsys):
    folder = broken(tmp_path, tiny_pipeline)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 99}))
    assert "(num_layers differ)" in refused({**flags, "--student_id": str(folder)}, capsys)


def test_a_scheduler_that_bends_its_sigmas_is_told(flags, tmp_path, tiny_pipeline, capsys):
    folder = broken(tmp_path, tiny_pipeline)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_karras_sigmas": True}))
    assert "use_karras_sigmas" in refused({**flags, "--teacher_id": str(folder)}, capsys)


def test_a_used_run_folder_needs_resume(flags, capsys):
    run = Path(flags["--run_dir"])
    run.mkdir()
    (run / "metrics.jsonl").write_text("{}\n")
    assert "--resume_from_checkpoint latest" in refused(flags, capsys)
    assert (run / "metrics.jsonl").read_text() == "{}\n"


def saved(run: str, about: dict) -> None:
    """A checkpoint with nothing in it but a manifest."""
    checkpoint = Path(run) / "ckpts" / "step_000010"
    checkpoint.mkdir(parents=True)
    write_manifest(checkpoint, about)


def test_a_resume_of_another_configuration_says_what_differs(flags, capsys):
    progress = {"step": 10, "student_updates": 1, "fake_updates": 9, "global_batch_size": 4}
    theirs = {"k_anchor": 7, "teacher_id": flags["--teacher_id"], "student_id": flags["--teacher_id"]}
    saved(flags["--run_dir"], {"progress": progress, "config": theirs})
    line = refused({**flags, "--resume_from_checkpoint": "latest"}, capsys)
    assert "another configuration" in line and "k_anchor: 5 here, 7 there" in line


def test_a_checkpoint_of_another_version_is_told(flags, capsys):
    saved(flags["--run_dir"], {"progress": {"iteration": 3}, "config": {}})
    assert "not of this version" in refused({**flags, "--resume_from_checkpoint": "latest"}, capsys)


def test_bf16_where_the_device_cannot(flags, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "an old card")
    command = [part for flag, value in flags.items() for part in (flag, value)]
    assert train.main([*command, "--bf16"]) == 2
    assert "--bf16: an old card has no bf16" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed(flags, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    assert "--report_to wandb: the package is not installed" in refused({**flags, "--report_to": "wandb"}, capsys)


def test_wrong_flags_are_told_before_anything_heavy_is_imported():
    """A wrong path costs the import of torch at most, not that of diffusers."""
    code = """
import sys
from dpdmd import train
status = train.main(["--teacher_id", "nowhere"])
sys.exit(3 if "diffusers" in sys.modules else status)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "no such folder" in result.stderr


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--num_images", "0", "--prompt", "a"], "--num_images 0"),
        ([], "--prompt or --prompt_txt: give one of them"),
        (["--prompt", " "], "--prompt: is empty"),
        (["--prompt", "a", "--height", "44"], "--height 44: must be a multiple of 8"),
    ],
)
def test_generate_refuses_wrong_input(tiny_pipeline, tmp_path, capsys, extra, says):
    assert generate.main(["--model", str(tiny_pipeline), "--out", str(tmp_path / "out"), *extra]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_generate_refuses_a_folder_that_is_no_model(tmp_path, capsys):
    assert generate.main(["--model", str(tmp_path), "--out", str(tmp_path / "out"), "--prompt", "a"]) == 2
    assert "neither a pipeline folder" in capsys.readouterr().err
