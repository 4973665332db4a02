"""A small SD3.5 of random weights for every test that needs a model; nothing is downloaded."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import broken, diversity, flags, no_model_loads, refused, refused_by  # noqa: F401
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from processes import LAUNCHER, cpu_environment, free_port, kill_all
from small_distillation import batch, decoder, embedded, make, trio  # noqa: F401
from torch import nn
from transformers import CLIPTextModel

from dpdmd import train
from dpdmd.families.notes import Note
from dpdmd.shapes import scorer_models, world
from dpdmd.shapes.autoencoder import build_autoencoder
from dpdmd.shapes.teacher import build_pipeline
from dpdmd.shapes.text import CLIP_WIDTH, MAX_LENGTH, build_clip_encoder, build_clip_tokenizer

ROOT = Path(__file__).parent.parent
WATCHED = str(ROOT / "tests" / "drivers" / "watched.py")
PROMPTS = ["a red circle", "a shape on a grey background", "a small cross", "a large blue square", "a triangle"]

torch.set_num_threads(1)  # tiny matrices: threads cost more than they give, and the sums keep one order


def _strengthen(transformer: nn.Module) -> None:
    """Double the weights through which time and text modulate the blocks.

    With torch's initial weights the output changes by only 5% between prompts and times: a test in which a wrong
    time or a wrong prompt is fed would pass too easily.
    """
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.startswith(("time_text_embed", "norm_out")) or ".norm1." in name or ".norm1_context." in name:
                parameter.mul_(2)


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
    """A StableDiffusion3Pipeline folder in the official layout: 64 x 64 pictures, two blocks of width 32."""
    folder = tmp_path_factory.mktemp("weights") / "tiny_sd35"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_autoencoder()
        vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
        pipe = build_pipeline(vae, world)
        smaller = {
            "num_layers": 2,
            "dual_attention_layers": (0,),
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "caption_projection_dim": 32,
        }
        pipe.register_modules(transformer=SD3Transformer2DModel.from_config({**pipe.transformer.config, **smaller}))
    _strengthen(pipe.transformer)
    pipe.save_pretrained(folder)
    Note(steps=30, guidance_scale=3.5, max_sequence_length=MAX_LENGTH).write(folder)
    return folder


def _build_unet() -> UNet2DConditionModel:
    """SDXL's UNet in small: two levels in place of three, attention in the lower one, its two conditions."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        cross_attention_dim=2 * CLIP_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + CLIP_WIDTH,
    )


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionXLPipeline folder in the official layout: 64 x 64 pictures, random weights."""
    folder = tmp_path_factory.mktemp("weights") / "tiny_sdxl"
    tokenizer, tokenizer_2 = (build_clip_tokenizer(pad, world) for pad in ("<|endoftext|>", "!"))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=64,
            scaling_factor=0.13025,
            force_upcast=True,
        )
        unet, text_encoder_2 = _build_unet(), build_clip_encoder(tokenizer_2)
        text_encoder = CLIPTextModel(build_clip_encoder(tokenizer).config)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():  # see _strengthen
            if name.startswith(("time_embedding", "add_embedding")) or "time_emb_proj" in name or "attn2" in name:
                parameter.mul_(2)
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Flag -> path of random in-loop scorers in the official layouts."""
    root = tmp_path_factory.mktemp("scorers")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        scorer_models.save_model(root / "clip", *scorer_models.build_clip())
        scorer_models.save_model(root / "pickscore", *scorer_models.build_clip())
        scorer_models.save_model(root / "dinov2", *scorer_models.build_dinov2())
        network, med_config, tokenizer = scorer_models.build_imagereward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))  # as initialised, it hardly looks at its input
        scorer_models.save_imagereward(root / "ImageReward", network, med_config, tokenizer)
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
