"""Wrong flags of `dpdmd.demo` get one line before any model loads."""

import importlib.util
import shutil
import socket
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from bad_input import ROOT

from dpdmd.demo import __main__ as demo
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults

pytestmark = pytest.mark.usefixtures("no_model_loads")


@pytest.fixture
def refuse(refused_by, tiny_pipeline):
    """Return a function that calls `dpdmd.demo` with a model, a teacher and more, and returns the error it prints."""

    def message(*more: object, model: Path = tiny_pipeline, teacher: Path | None = tiny_pipeline) -> str:
        command = ["--model", str(model), "--port", "0", *map(str, more)]
        return refused_by("dpdmd.demo", demo.main, command + (["--teacher", str(teacher)] if teacher else []))

    return message


@pytest.fixture(autouse=True)
def gradio_is_installed(monkeypatch):
    """Let `dpdmd.demo` find gradio, which it imports only after all flags are checked."""
    find = importlib.util.find_spec
    found = {"gradio": ModuleSpec("gradio", None)}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: found.get(name) or find(name, *more))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--port", "70000"], "--port 70000: must be 0 to 65535"),
        (["--port", "-1"], "--port -1: must be 0 to 65535"),
        (["--host", "203.0.113.7"], "--host 203.0.113.7: is no address of this machine"),
        (["--host", "no such host"], "--host no such host: is no address of this machine"),
        (["--batch_size", "0"], "--batch_size 0: must be 1 to"),
        (["--height", "63"], "--height 63: must be a multiple of"),
        (["--dino_path", "no/such"], "--dino_path no/such: no such folder; get it from"),
        (["--dino_path", "no/such/folder"], "--dino_path no/such/folder: "),
        (["--size", "64"], "--size '64': must be WIDTHxHEIGHT"),
        (["--size", "64x64", "--height", "64"], "--size 64x64: leave out --height and --width"),
        (["--revision", "v1"], "--revision v1: --teacher "),
        (["--variant", "fp16"], "has no weights of --variant fp16 (it has: no variant); leave the flag out"),
        (["--clip_path", str(ROOT / "README.md")], "--clip_path"),
        (["--prompt", "a"], "unrecognized arguments: --prompt a"),
    ],
)
def test_a_wrong_flag_gets_one_line(refuse, more, says):
    assert says in refuse(*more)


def test_a_port_in_use(refuse):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"--port {port}: Address already in use; give another, or 0 for any" in refuse("--port", port)


def test_a_port_that_another_demo_has_bound():
    """Also while that one still loads its models."""
    with demo.bind("127.0.0.1", 0) as first, pytest.raises(ValueError, match="Address already in use; give another"):
        demo.bind("127.0.0.1", first.getsockname()[1])


def test_gradio_is_missing(refuse, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "gradio" else find(name, *more)
    )
    assert refuse() == "the page needs gradio: pip install -e '.[demo]' first"


def test_wrong_models(refuse, tiny_pipeline, tiny_sdxl, broken, tmp_path):
    assert "--model no/such/run: neither a pipeline folder" in refuse(model=Path("no/such/run"))
    assert "--model no/such: no such folder; get it from" in refuse(model=Path("no/such"))
    (tmp_path / "loop").symlink_to("loop")
    assert f"--model {tmp_path / 'loop'}: neither a pipeline folder" in refuse(model=tmp_path / "loop")
    again = tiny_pipeline.parent / "." / tiny_pipeline.name
    assert f"--model {again}: is given twice" in refuse("--model", again)
    shutil.rmtree(broken / "transformer")
    assert "--model " in refuse(model=broken) and "transformer" in refuse(model=broken)
    line = refuse(model=tiny_sdxl)
    assert f"--model {tiny_sdxl}: its latents are [4, 8, 8], and the teacher's [8, 8, 8]" in line


def test_wrong_teachers(refuse, tiny_pipeline, tmp_path, finished):
    line = refuse(teacher=None)
    assert line == f"--teacher: {tiny_pipeline} has no config.yaml that names its teacher; give the pipeline folder"
    assert "--teacher no/such: no such folder; get it from" in refuse(teacher=Path("no/such"))
    assert "--teacher no/such/one: no such folder" in refuse(teacher=Path("no/such/one"))
    assert "--revision v1: is that of --teacher, which is not given" in refuse("--revision", "v1", teacher=None)
    run = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    assert f"--teacher {run}: is a run or a checkpoint; give the model in it, {run}/ckpts/" in refuse(teacher=run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"teacher_id: {tiny_pipeline}", "teacher_id: gone"))
    assert "--teacher gone: no such folder" in refuse(model=run, teacher=None)
    config.write_text("model: {teacher_id: 3")
    assert "config.yaml" in refuse(model=run, teacher=None)


def test_students_of_different_sizes(refuse, tiny_pipeline, tmp_path):
    other = Path(shutil.copytree(tiny_pipeline, tmp_path / "other"))
    replace(read_sampling_defaults(other, SamplingDefaults()), height=32, width=32).write(other)
    line = refuse("--model", other)
    assert "different sizes" in line and f"{other} 32 x 32" in line and "give --height and --width" in line
