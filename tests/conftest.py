"""A small SD3.5 of random weights for every test that needs a model; nothing is downloaded."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import broken, diversity, flags, no_model_loads, refused, refused_by  # noqa: F401
from processes import LAUNCHER, cpu_environment, free_port, kill_all
from small_distillation import batch, decoder, embedded, make, trio  # noqa: F401

from dpdmd import train
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.shapes.text import MAX_LENGTH

ROOT = Path(__file__).parent.parent
WATCHED = str(ROOT / "tests" / "processes" / "drivers" / "watched.py")
PROMPTS = ["a red circle", "a shape on a grey background", "a small cross", "a large blue square", "a triangle"]

torch.set_num_threads(1)  # tiny matrices: threads cost more than they give, and the sums keep one order


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: begun last, one worker would be at it while the others have nothing left to do."""
    items.sort(key=lambda item: item.path.stem != "test_topologies")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker takes a whole file, whose fixtures it shares; and all of which docs/errors.md is made."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "errors" if Path(file).name.startswith(("test_bad_", "test_errors_table")) else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusion3Pipeline folder in the official layout: 64 x 64 images, two blocks of width 32."""
    from small_models import build_sd35_pipeline

    folder = tmp_path_factory.mktemp("weights") / "tiny_sd35"
    build_sd35_pipeline().save_pretrained(folder)
    SamplingDefaults(steps=30, guidance_scale=3.5, max_sequence_length=MAX_LENGTH).write(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionXLPipeline folder in the official layout: 64 x 64 images, random weights."""
    from small_models import build_sdxl_pipeline

    folder = tmp_path_factory.mktemp("weights") / "tiny_sdxl"
    build_sdxl_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Flag -> path of random in-loop scorers in the official layouts."""
    from small_models import save_scorers

    root = tmp_path_factory.mktemp("scorers")
    save_scorers(root)
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
    """A short run's command line, without a run folder."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return [
        *("--teacher_id", str(tiny_pipeline), "--prompt_txt", str(prompts), "--height", "64", "--width", "64"),
        *("--teacher_infer_steps", "4", "--k_anchor", "2", "--stu_inference_steps", "2", "--batch_size", "2"),
        *("--lr_student", "1e-3", "--lr_fake", "1e-3", "--report_to", "none", "--seed", "3"),
    ]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, short_run: list[str]) -> Path:
    """A run of six steps with three checkpoints; copied, never changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    more = ["--ckpt_every", "2", "--vis_every", "0", "--max_steps", "6"]
    assert train.main([*short_run, "--run_dir", str(run), *more]) == 0
    return run


@pytest.fixture
def run_processes() -> Callable[..., subprocess.CompletedProcess]:
    """Run a Python command line on a number of CPU processes that see each other, from the checkout.

    A checked one also leaves none of gloo's threads behind: they can abort a process that has done its work.
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
