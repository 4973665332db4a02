"""What a stored model says about itself is used by every program: text length, steps, image size, base, type."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dpdmd import export, generate, train
from dpdmd.sampling.load_model import load_sampler

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def image_of(model: Path, base: Path | None = None, **options: float) -> Tensor:
    sampler, encoder = load_sampler(model, CPU, base_model=base, **options)
    return sampler.images(encoder.encode(["a red circle"]), [(0, 0)], seed=0)


def save_network(pipeline: Path, path: Path) -> Path:
    torch.save(load_file(pipeline / "transformer" / WEIGHTS), path)
    return path


@pytest.mark.parametrize("beside_the_base", [False, True])
def test_a_network_alone_reads_prompts_as_its_base(tiny_pipeline, tmp_path, beside_the_base):
    """The teacher has 10 text tokens, and its family 256. It samples as a student, in 4 steps without guidance."""
    base = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
    network = save_network(base, (base if beside_the_base else tmp_path) / "s.pt")
    assert torch.equal(image_of(network, base), image_of(base, steps=4, guidance_scale=1.0))


def test_a_network_of_a_base_without_t5_needs_none(tiny_pipeline, tmp_path):
    base = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
    defaults = json.loads((base / "dpdmd.json").read_text())
    (base / "dpdmd.json").write_text(json.dumps({**defaults, "no_t5": True}))
    shutil.rmtree(base / "text_encoder_3")
    assert image_of(save_network(base, tmp_path / "s.pt"), base).isfinite().all()


@pytest.mark.parametrize("place", ["", "ckpts/step_000006", "ckpts/step_000006/student", "kept"])
def test_a_network_in_a_run_samples_as_the_run(finished, tiny_pipeline, tmp_path, place):
    run = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    (run / place).mkdir(exist_ok=True)
    network = save_network(run / "ckpts" / "latest" / "student", run / place / "s.pt")
    assert torch.equal(image_of(network, tiny_pipeline), image_of(run))


def test_a_student_keeps_the_size_that_it_was_trained_at(short_run, tmp_path):
    run, size = tmp_path / "run", ["--height", "32", "--width", "48"]
    assert train.main([*short_run, *size, "--max_steps", "1", "--vis_every", "0", "--run_dir", str(run)]) == 0
    assert image_of(run).shape == (1, 3, 32, 48)
    assert image_of(run, height=64).shape == (1, 3, 64, 48)
    assert export.main(["--model", str(run), "--out", str(tmp_path / "whole")]) == 0
    command = ["--model", str(tmp_path / "whole"), "--prompt", "a", "--num_images", "1", "--out", str(tmp_path / "out")]
    assert generate.main(command) == 0
    with Image.open(tmp_path / "out" / "00000_000.png") as image:
        assert image.size == (48, 32)
    path = tmp_path / "whole" / "dpdmd.json"
    older = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("height", "width")}
    path.write_text(json.dumps(older))
    assert image_of(tmp_path / "whole").shape == (1, 3, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_student_of_a_16_bit_teacher_loads_in_plain_diffusers(tiny_pipeline, short_run, tmp_path, dtype):
    """In a checkpoint with links to the teacher, and in the last one, which is whole."""
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline, dtype=dtype)
    pipe.save_pretrained(teacher)
    shutil.copy(tiny_pipeline / "dpdmd.json", teacher)
    command = [*short_run, "--teacher_id", str(teacher), "--max_steps", "2", "--ckpt_every", "1", "--vis_every", "0"]
    assert train.main([*command, "--run_dir", str(run)]) == 0
    for step in ("step_000001", "step_000002"):
        student = run / "ckpts" / step / "student"
        assert (student / "text_encoder_3" / "model.safetensors").is_symlink() == (step == "step_000001")
        pipe = StableDiffusion3Pipeline.from_pretrained(student)
        pipe.set_progress_bar_config(disable=True)
        image = pipe(
            "a red circle", num_inference_steps=2, guidance_scale=1.0, max_sequence_length=10, output_type="pt"
        )
        assert image.images.dtype == torch.float32 and image.images.isfinite().all()
    assert image_of(run).isfinite().all()
