"""The model card of exports and checkpoints: the printed code samples the student, and the facts are the run's."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import Flux2KleinPipeline, QwenImagePipeline

from dpdmd import export, train
from dpdmd.models.registry import LAYOUTS, family_class
from dpdmd.report.card_facts import CARD
from dpdmd.sampling.load_model import load_sampler
from dpdmd.utils.rng import normal_per_sample

CPU = torch.device("cpu")
SIGMAS = "1.0,0.86,0.6,0.3"  # no scheduler of diffusers makes them
# flags of the run, flags of the export (None: the checkpoint's own folder), what the code must and must not have
CASES = {
    "default grid": (["--student_sigmas", "default"], None, "num_inference_steps=2"),
    "trailing grid": (["--student_sigmas", "trailing"], None, "num_inference_steps=2"),
    "numbers": (["--student_sigmas", SIGMAS, "--stu_inference_steps", "4"], None, "sigmas=[1.0, 0.86, 0.6, 0.3]"),
    "lora": (
        ["--student_sigmas", "trailing", "--lora_rank", "2", "--lora_alpha", "6"],
        None,
        "load_lora_weights(student)",
    ),
    "lora on numbers, merged": (
        ["--student_sigmas", SIGMAS, "--stu_inference_steps", "4", "--lora_rank", "2"],
        ["--dtype", "fp32"],
        "sigmas=[1.0, 0.86, 0.6, 0.3]",
    ),
    "without T5": (["--no_t5", "--lora_rank", "2"], None, "text_encoder_3=None, tokenizer_3=None"),
    "bf16": (["--student_sigmas", "trailing"], ["--dtype", "bf16"], "dtype=torch.bfloat16"),
}


def head_of(card: Path) -> dict:
    return yaml.safe_load(card.read_text().split("---\n")[1])


def code_of(card: Path) -> str:
    (code,) = re.findall(r"```python\n(.+?)```", card.read_text(), re.DOTALL)
    return code


def sampled_by_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch, eps: torch.Tensor) -> np.ndarray:
    """Run the printed code beside the folder, from our start noise, as a user would, and return its image."""
    monkeypatch.chdir(folder.resolve().parent)
    packed, whole = QwenImagePipeline._pack_latents(eps, *eps.shape), Flux2KleinPipeline.prepare_latents
    for kind in (family_class(name).pipeline_class for name in LAYOUTS):
        start = packed if kind is QwenImagePipeline else eps
        monkeypatch.setattr(
            kind,
            "prepare_latents",
            lambda self, *given, start=start: start.to(given[4]) * getattr(self.scheduler, "init_noise_sigma", 1),
        )
    monkeypatch.setattr(
        Flux2KleinPipeline, "prepare_latents", lambda self, **given: whole(self, **given | {"latents": eps})
    )
    names: dict = {}
    exec(code_of(folder / CARD), names)
    assert (folder.resolve().parent / "image.png").is_file()
    return np.asarray(names["image"]).astype(int)


def ours(model: Path, eps: torch.Tensor, prompt: str) -> np.ndarray:
    sampler, encoder = load_sampler(model, CPU)
    image = sampler.decoder.decode(sampler.latents(encoder.encode([prompt]), eps))[0]
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(int)


@pytest.mark.parametrize("case", CASES)
def test_the_code_of_a_card_samples_the_student(case, short_run, tmp_path, monkeypatch):
    flags, exported, expected = CASES[case]
    run = tmp_path / "run"
    assert train.main([*short_run, "--lr_student", "1e-2", *flags, "--run_dir", str(run), "--max_steps", "6"]) == 0
    folder = run / "ckpts" / "latest" / ("lora" if "--lora_rank" in flags else "student")
    if exported is not None:
        folder = tmp_path / "my-student"
        assert export.main(["--model", str(run), "--out", str(folder), *exported]) == 0
    code = code_of(folder / CARD)
    assert expected in code and ("sigmas=" in code) == (SIGMAS in flags)
    assert ("**Keep `sigmas=`.**" in (folder / CARD).read_text()) == (SIGMAS in flags)
    eps = normal_per_sample((8, 8, 8), 0, "picture", 0, [0])
    difference = np.abs(sampled_by_the_card(folder, monkeypatch, eps) - ours(run, eps, "a red circle"))
    assert difference.mean() < 3 if case == "bf16" else difference.max() <= 1
    another = np.abs(ours(run, eps, "a red circle") - ours(Path(short_run[1]), eps, "a red circle"))
    assert another.max() > 10  # the teacher's image is another one


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", [name for name in LAYOUTS if name != "sd35"])
def test_the_code_of_another_familys_card_samples_the_student(
    family, lora, short_run, tiny_folder, tmp_path, monkeypatch
):
    run, folder = tmp_path / "run", tiny_folder(family)
    more = ["--family", family, "--teacher_id", str(folder), "--student_sigmas", "trailing", "--lr_student", "1e-2"]
    more += ["--lora_rank", "2"] if lora else []
    assert train.main([*short_run, *more, "--run_dir", str(run), "--max_steps", "6"]) == 0
    shape = family_class(family)(CPU, torch.float32).load_image_decoder(folder).latent_shape(64, 64)
    student, eps = run / "ckpts" / "latest" / ("lora" if lora else "student"), normal_per_sample(shape, 0, "p", 0, [0])
    code = code_of(student / CARD)
    assert ("max_sequence_length" in code) != LAYOUTS[family].fixed_text_length and "sigmas=" not in code
    guidance = LAYOUTS[family].guidance
    assert f"{guidance.argument}={guidance.off}" in code
    assert ("In ComfyUI, load" in (student / CARD).read_text()) == (lora and family != "lumina2")
    assert np.abs(sampled_by_the_card(student, monkeypatch, eps) - ours(run, eps, "a red circle")).max() <= 1


def test_a_card_has_the_runs_scores_images_and_settings(short_run, tiny_scorers, tmp_path):
    scorers = [part for name in ("clip_path", "dino_path") for part in (f"--{name}", tiny_scorers[name])]
    run, out = tmp_path / "run", tmp_path / "mine"
    more = ["--eval_prompts_limit", "2", "--num_div_seeds", "2", "--max_steps", "6", "--ckpt_every", "3"]
    more += ["--real_guidance_scale", "5"]
    assert train.main([*short_run, *scorers, *more, "--run_dir", str(run)]) == 0
    assert export.main(["--model", str(run), "--out", str(out)]) == 0
    text = (out / CARD).read_text()
    linked = set(re.findall(r"\]\((images/[^)]+)\)", text))
    assert len(linked) == 4 and all((out / name).stat().st_size > 100 for name in linked)
    assert {path.name for path in (out / "images").iterdir()} == {Path(name).name for name in linked}
    last = (run / "metrics.jsonl").read_text().strip().splitlines()[-1]
    mean = float(re.search(r'"eval/[^"]*_div_dino": ([\d.e-]+)', last)[1])
    assert re.search(rf"\| {mean:#.4g} \([\d.]+ – [\d.]+\) \|", text)
    for row in (
        "| method | dpdmd |",
        "| teacher | 4 steps, guidance 3.5, 5.0 in the DMD loss |",
        "| teacher steps to the anchor, K | 2 |",
        "| updates, student and fake score together | 6 |",
    ):
        assert row in text
    assert "| prompts (no images were used) | 5 |" in text
    assert str(tmp_path) not in text
    earlier = run / "ckpts" / "step_000003" / "student"
    assert export.main(["--model", str(earlier), "--out", str(tmp_path / "earlier")]) == 0
    assert "| updates, student and fake score together | 3 |" in (tmp_path / "earlier" / CARD).read_text()
    assert (tmp_path / "earlier" / "images").is_dir() and not (earlier / "images").exists()
    copied = Path(shutil.copytree(earlier.parent, tmp_path / "copied" / "step_000003", symlinks=True))
    assert export.main(["--model", str(copied / "student"), "--out", str(tmp_path / "unknown")]) == 0
    text = (tmp_path / "unknown" / CARD).read_text()  # in the folder where it was trained may be another run now
    assert "student and fake score together | 3 |" in text and "## Scores" not in text
    assert not (tmp_path / "unknown" / "images").exists()


def test_the_head_names_the_base_and_its_licence_where_they_are_known(short_run, tiny_pipeline, tmp_path):
    official = tmp_path / "weights" / "stabilityai" / "stable-diffusion-3.5-medium"
    shutil.copytree(tiny_pipeline, official)
    assert export.main(["--model", str(official), "--out", str(tmp_path / "a")]) == 0
    head = head_of(tmp_path / "a" / CARD)
    assert (head["license"], head["license_name"]) == ("other", "stabilityai-ai-community")
    assert (head["library_name"], head["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert "base_model" not in head and head["tags"] == ["text-to-image"]  # a copy, which nobody distilled
    text = (tmp_path / "a" / CARD).read_text()
    assert "A copy of [stabilityai/stable-diffusion-3.5-medium](" in text
    assert "distilled" not in text and "sampled in 30 steps with guidance 3.5." in text
    (official / CARD).write_text("---\nlicense: other\nlicense_link: LICENSE.md\nother: 1\n---\n# Base\n")
    run = tmp_path / "run"
    command = [*short_run, "--teacher_id", str(official), "--max_steps", "1", "--run_dir", str(run), "--vis_every", "0"]
    assert train.main(command) == 0
    assert export.main(["--model", str(run), "--out", str(tmp_path / "b")]) == 0
    head = head_of(tmp_path / "b" / CARD)
    name = "stabilityai/stable-diffusion-3.5-medium"
    assert (head["base_model"], head["license"]) == (name, "other")
    assert head["license_link"] == f"https://huggingface.co/{name}/blob/main/LICENSE.md"  # where it leads to
    assert "arxiv:2602.03139" in head["tags"] and "dp-dmd" in head["tags"]
    assert export.main(["--model", str(tiny_pipeline), "--out", str(tmp_path / "c")]) == 0
    assert not {"license", "base_model"} & head_of(tmp_path / "c" / CARD).keys()
