"""Fixtures of small random models and short runs; nothing is downloaded.

Each process imports this file, so it imports torch but no model library. Fixtures import those.
"""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import pytest
import torch
from bad_input import broken, diversity, flags, no_model_loads, refused, refused_by  # noqa: F401
from chromium import browser  # noqa: F401
from hub_server import hub  # noqa: F401
from processes import LAUNCHER, cpu_environment, free_port, kill_all

ROOT = Path(__file__).parent.parent
WATCHED = str(ROOT / "tests" / "processes" / "drivers" / "watched.py")
PROMPTS = ["a red circle", "a shape on a grey background", "a small cross", "a large blue square", "a triangle"]
# What decides the bytes of the small models.
BUILDERS = ("tests/small_models.py", "dpdmd/shapes/*.py", "dpdmd/models/**/*.py", "dpdmd/evaluation/scorers/*.py")
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors")

os.environ["PYTHON"] = sys.executable  # a script that a test starts uses this Python and creates no environment
torch.set_num_threads(1)  # tiny matrices: threads cost more than they give, and the sums keep one order


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files: if one of them came last, the other workers would wait for it."""
    items.sort(key=lambda item: "processes" not in item.path.parts)


@pytest.fixture(scope="session")
def small_model(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from `save_x` of small_models.py to a copy of the folder x that this function writes.

    pytest's cache keeps the folder until its builders or their libraries change, or until --cache-clear.
    """
    digest = hashlib.sha256(" ".join(map(metadata.version, LIBRARIES)).encode())
    for path in sorted(path for pattern in BUILDERS for path in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    root = pytestconfig.cache.mkdir("small_models") if hasattr(pytestconfig, "cache") else tmp_path_factory.mktemp("c")

    def copy(save: str) -> Path:
        name = save.removeprefix("save_")
        kept = root / f"{name}-{digest.hexdigest()[:16]}"
        if not kept.exists():
            outdated = list(root.glob(f"{name}-*"))
            with tempfile.TemporaryDirectory(dir=root, prefix="new") as new:
                getattr(import_module("small_models"), save)(Path(new, name))
                try:
                    os.rename(Path(new, name), kept)
                except OSError:  # another worker was faster
                    assert kept.exists()
            for folder in outdated:
                shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(kept, tmp_path_factory.mktemp("weights") / name))

    return copy


@pytest.fixture(scope="session")
def tiny_folder(small_model: Callable[[str], Path]) -> Callable[[str], Path]:
    """Return a function from a family to a pipeline folder in its official layout: 64 x 64 images."""
    return cache(lambda family: small_model(f"save_tiny_{family}"))


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder: Callable[[str], Path]) -> Path:
    """Return a StableDiffusion3Pipeline folder: two blocks of width 32."""
    return tiny_folder("sd35")


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_folder: Callable[[str], Path]) -> Path:
    """Return a StableDiffusionXLPipeline folder."""
    return tiny_folder("sdxl")


@pytest.fixture(scope="session")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return SD3.5-Medium's folder without its weights: headers over files that hold nothing."""
    from dpdmd.models.hollow import write_hollow
    from dpdmd.models.registry import LAYOUTS

    folder = tmp_path_factory.mktemp("medium") / "sd35"
    write_hollow(LAYOUTS["sd35"], folder)
    return folder


@pytest.fixture(scope="session")
def tiny_scorers(small_model: Callable[[str], Path]) -> dict[str, str]:
    """Return flag -> path of random in-loop scorers in the official layouts."""
    root = small_model("save_scorers")
    return {
        "clip_path": str(root / "clip"),
        "clip_score_path": str(root / "clip"),
        "dino_path": str(root / "dinov2"),
        "pick_processor_path": str(root / "pickscore"),
        "pick_model_path": str(root / "pickscore"),
        "ir_model_path": str(root / "ImageReward" / "ImageReward.pt"),
        "ir_med_config": str(root / "ImageReward" / "med_config.json"),
    }


@pytest.fixture(scope="session")
def short_run(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command line of a short run, without a run folder."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return [
        *("--teacher_id", str(tiny_pipeline), "--prompt_txt", str(prompts), "--height", "64", "--width", "64"),
        *("--teacher_infer_steps", "4", "--k_anchor", "2", "--stu_inference_steps", "2", "--batch_size", "2"),
        *("--lr_student", "1e-3", "--lr_fake", "1e-3", "--report_to", "none", "--seed", "3"),
    ]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, short_run: list[str]) -> Path:
    """Return a run of six steps with three checkpoints. Tests copy it and never change it."""
    from dpdmd import train

    run = tmp_path_factory.mktemp("finished") / "run"
    more = ["--ckpt_every", "2", "--vis_every", "0", "--max_steps", "6"]
    assert train.main([*short_run, "--run_dir", str(run), *more]) == 0
    return run


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every file system the answer of exFAT, FUSE or SMB to a symbolic link."""

    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)


@pytest.fixture
def default_hangup() -> Iterator[None]:
    """Restore the default action of SIGHUP, which this process and its children ignore if the tests run under nohup."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.fixture(scope="session")
def run_processes() -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs a Python command line in one process group of CPU processes, from the checkout.

    With `check`, the command must end with status 0 and leave no gloo thread: such a thread can abort the process
    after its work is done.
    """

    def run(arguments: list[str], count: int = 2, *, check: bool = True) -> subprocess.CompletedProcess:
        launch = [sys.executable, "-m", *LAUNCHER, "--master_port", free_port(), "--nproc_per_node", str(count)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [*launch, WATCHED, *arguments]
        with subprocess.Popen(command, cwd=ROOT, env=cpu_environment(), start_new_session=True, **pipes) as process:
            try:
                out, err = process.communicate(timeout=500)
            except subprocess.TimeoutExpired:
                kill_all(process.pid)
                raise
        assert not check or (process.returncode == 0 and "threads left" not in err), err[-3000:]
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run
