"""`--no_t5`: training, checkpoints and the exported student without the third text encoder, as in diffusers."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dpdmd import export, generate, train
from dpdmd.data.text_embedding_cache import EmbeddingSettings, embedding_cache
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.lora import Adapter
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.models.sd35.family import SD35
from dpdmd.models.sd35.layout import LAYOUT
from dpdmd.sampling.load_model import load_sampler
from dpdmd.utils.rng import normal_per_sample
from dpdmd.utils.text_files import read_json

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a small cross on a white background"]
T5 = ("text_encoder_3", "tokenizer_3")


@pytest.fixture(scope="module")
def without_files(tiny_pipeline, tmp_path_factory) -> Path:
    """The teacher without the files of the T5. Its model_index.json still lists it."""
    folder = tmp_path_factory.mktemp("weights") / "sd35"
    return Path(shutil.copytree(tiny_pipeline, folder, ignore=shutil.ignore_patterns(*T5)))


@pytest.fixture(scope="module")
def run(without_files, short_run, tmp_path_factory) -> Path:
    """A run without the T5."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--teacher_id", str(without_files), "--no_t5", "--max_steps", "7", "--vis_every", "0"]
    assert train.main([*short_run, *flags, "--run_dir", str(folder)]) == 0
    return folder


def test_embeddings_are_those_of_diffusers_without_it(tiny_pipeline):
    """The CLIP tokens are unchanged, and the T5 tokens are zeros."""
    family = SD35(CPU, torch.float32)
    ours = family.load_text_encoder(tiny_pipeline, 10, no_t5=True).encode(PROMPTS)
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline, text_encoder_3=None, tokenizer_3=None)
    context, _, pooled, _ = pipe.encode_prompt(
        PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=10
    )
    assert torch.equal(ours.context, context) and torch.equal(ours.pooled, pooled)
    whole = family.load_text_encoder(tiny_pipeline, 10).encode(PROMPTS)
    clip = whole.context.shape[1] - 10
    assert torch.equal(ours.context[:, :clip], whole.context[:, :clip]) and torch.equal(ours.pooled, whole.pooled)
    assert not ours.context[:, clip:].any() and whole.context[:, clip:].any()


def test_the_student_is_complete_without_it_and_samples_as_diffusers_does(run, tmp_path):
    """The last export has no T5 and says so. Our sampler, dpdmd.generate and diffusers' pipeline agree."""
    student = run / "ckpts" / "latest" / "student"
    assert read_sampling_defaults(student, LAYOUTS["sd35"].defaults).no_t5 and not any(
        (student / part).exists() for part in T5
    )
    index = read_json(student / "model_index.json")
    assert all(index[part] == [None, None] for part in T5)
    sampler, encoder = load_sampler(run, CPU)
    eps = normal_per_sample((8, 8, 8), 0, "picture", 0, [0, 1])
    pipe = StableDiffusion3Pipeline.from_pretrained(student, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    call = {"latents": eps, "num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 10}
    theirs = pipe(PROMPTS, output_type="latent", **call).images
    assert (sampler.latents(encoder.encode(PROMPTS), eps) - theirs).abs().max() < 1e-4
    flags = ["--model", str(run), "--prompt", *PROMPTS, "--num_images", "1", "--out", str(tmp_path / "out")]
    assert generate.main(flags) == 0 and len(list((tmp_path / "out").glob("0*.png"))) == 2


def test_checkpoints_during_training_leave_it_out_and_resume(run, without_files, short_run, tmp_path, capsys):
    """All links to the teacher's parts lead to files. A resumed run with the T5 is an error."""
    flags = [*short_run, "--teacher_id", str(without_files), "--vis_every", "0", "--run_dir", str(tmp_path / "run")]
    more = ["--max_steps", "7", "--ckpt_every", "4", "--resume_from_checkpoint", "latest"]
    assert train.main([*flags, "--no_t5", *more]) == 0
    student = tmp_path / "run" / "ckpts" / "step_000004" / "student"
    assert (student / "text_encoder").is_symlink() and all(path.exists() for path in student.iterdir())
    weights = "transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = (folder / "ckpts/step_000007/student" / weights for folder in (tmp_path / "run", run))
    assert ours.read_bytes() == theirs.read_bytes()
    assert train.main([*flags, *more]) == 2
    assert "text_encoder_3 is missing" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--dtype", "bf16"]])
def test_a_lora_is_exported_with_a_base_without_it(without_files, tmp_path, more):
    layer = "transformer_blocks.0.attn.to_q"
    state = {f"{layer}.lora_A.weight": torch.ones(2, 32), f"{layer}.lora_B.weight": torch.ones(32, 2)}
    defaults = replace(LAYOUT.defaults, no_t5=True)
    SD35(CPU, torch.float32).export_lora(tmp_path / "lora", state, Adapter(2, 2, ("to_q",)), without_files, defaults)
    assert export.main(["--model", str(tmp_path / "lora"), "--out", str(tmp_path / "whole"), *more]) == 0
    assert (tmp_path / "whole" / "text_encoder").is_dir() and not (tmp_path / "whole" / "text_encoder_3").exists()


def test_the_cache_has_other_files_with_and_without_it(short_run, tmp_path):
    settings = EmbeddingSettings("model", 10, "torch.float32")
    names = {embedding_cache(tmp_path, ["a"], s).files[0].path.name for s in (settings, replace(settings, no_t5=True))}
    assert len(names) == 2
    for name, more in (("with", []), ("without", ["--no_t5"])):
        flags = ["--max_steps", "1", "--vis_every", "0", "--cache_text_embeddings", str(tmp_path / "cache"), *more]
        assert train.main([*short_run, *flags, "--run_dir", str(tmp_path / name)]) == 0
    assert len(list((tmp_path / "cache").glob("shard_*"))) == 2


def test_a_family_without_t5_rejects_the_flag(tiny_pipeline):
    with pytest.raises(ValueError, match="--no_t5: a StableDiffusion3Pipeline has no T5 to leave out"):
        check_folder(replace(LAYOUT, t5=()), tiny_pipeline, "--teacher_id", no_t5=True)
