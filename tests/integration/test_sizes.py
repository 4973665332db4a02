"""Runs of several image sizes: one size for each roll-out, the same on every rank and after a resume."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from small_distillation import method_flags
from trajectories import records

from dpdmd import config, doctor, export, generate, train
from dpdmd.config.image_sizes import ImageSize
from dpdmd.models.registry import LAYOUTS
from dpdmd.run_folder import RunFolder
from dpdmd.sampling.load_model import load_sampler
from dpdmd.training.batches import Batches
from dpdmd.utils.image_grid import to_pil

SIZES = "64x64,48x64,64x32:2"


def sized(flags: list[str], sizes: str = SIZES) -> list[str]:
    """Return a command line without --height and --width, with --sizes and a seed that draws all of SIZES early."""
    kept = list(flags)
    for name in ("--height", "--width", "--seed"):
        place = kept.index(name)
        del kept[place : place + 2]
    return [*kept, "--sizes", sizes, "--seed", "7"]


def weights_of(checkpoint: Path) -> dict[str, bytes]:
    """Return the bytes of everything that was trained, with the optimizers' moments."""
    trained = [
        path for part in ("student/transformer", "student/unet", "state") for path in (checkpoint / part).rglob("*")
    ]
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in trained if path.suffix == ".safetensors"}


@pytest.fixture(params=LAYOUTS)
def flags(request: pytest.FixtureRequest, short_run: list[str], tiny_folder: Callable[[str], Path]) -> list[str]:
    """Return the command line of a short run of each family with several sizes."""
    if request.param == "sd35":
        return sized(short_run)
    more = ["--family", request.param, "--teacher_id", str(tiny_folder(request.param)), "--student_sigmas", "trailing"]
    return [*sized(short_run), *more]


def test_a_resumed_run_is_bit_equal(flags, tmp_path):
    """Two cycles: 12 steps equal 7 + 5, also where fake-score updates share a roll-out, and process_vis has a size."""
    more = [*flags, "--ckpt_every", "7", "--fake_rollout_reuse", "2", "--vis_every", "6"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([*more, "--run_dir", str(whole), "--max_steps", "12"]) == 0
    assert train.main([*more, "--run_dir", str(parts), "--max_steps", "7"]) == 0
    assert train.main([*more, "--run_dir", str(parts), "--max_steps", "12", "--resume_from_checkpoint", "latest"]) == 0
    ours, theirs = (weights_of(run / "ckpts" / "step_000012") for run in (parts, whole))
    assert len(ours) == 4 and ours == theirs
    assert records(parts) == records(whole)
    found = [record["size"] for record in records(whole)]
    for cycle in (found[:6], found[6:]):
        assert cycle[0] == cycle[1] and cycle[2] == cycle[3]  # one roll-out
    assert set(found) == {"64x64", "48x64", "64x32"}
    settings = config.read_yaml(whole / "config.yaml")
    batches = Batches(settings, ["a", "b"], 2, 1, 0)
    assert found == [str(batches.image_size(step)) for step in range(12)]
    width, height = map(int, found[11].split("x"))
    image = Image.open(whole / "process_vis" / "latest.png")
    assert image.width >= 2 * width and image.height >= 3 * height
    assert f"size={found[9]}" in (whole / "log" / "log.txt").read_text()


def test_the_student_knows_its_sizes(flags, tmp_path, capsys):
    """dpdmd.json lists them, `dpdmd.generate` and `dpdmd.export` read them, and another size is a warning."""
    run, out = tmp_path / "run", tmp_path / "out"
    assert train.main([*flags, "--run_dir", str(run), "--max_steps", "6"]) == 0
    written = json.loads((run / "ckpts/latest/student/dpdmd.json").read_text())
    assert (written["height"], written["width"], written["sizes"]) == (64, 64, ["64x64", "48x64", "64x32"])
    assert export.main(["--model", str(run), "--out", str(tmp_path / "exported")]) == 0
    assert json.loads((tmp_path / "exported/dpdmd.json").read_text())["sizes"] == written["sizes"]
    command = ["--model", str(run), "--prompt", "a red circle", "--num_images", "1", "--out", str(out)]
    for more, size in (([], (64, 64)), (["--size", "64x32"], (64, 32)), (["--height", "32"], (64, 32))):
        assert generate.main([*command, *more]) == 0
        assert Image.open(out / "00000_000.png").size == size
    assert "the student was trained at" not in capsys.readouterr().err
    assert generate.main([*command, "--size", "32x64"]) == 0
    assert "size 32x64: the student was trained at 64x64, 48x64, 64x32" in capsys.readouterr().err


def test_without_sizes_nothing_changes(short_run, tmp_path):
    """One size in --sizes is --height and --width: the same bytes, and no size in any record."""
    plain, one = tmp_path / "plain", tmp_path / "one"
    assert train.main([*short_run, "--seed", "7", "--run_dir", str(plain), "--max_steps", "6"]) == 0
    assert train.main([*sized(short_run, "64x64"), "--run_dir", str(one), "--max_steps", "6"]) == 0
    assert weights_of(plain / "ckpts/step_000006") == weights_of(one / "ckpts/step_000006")
    assert records(plain) == records(one) and "size" not in records(plain)[0]
    assert json.loads((plain / "ckpts/latest/student/dpdmd.json").read_text())["sizes"] is None


@pytest.mark.parametrize("method", ["dmd_lpips", "dmd_gan"])
def test_methods_with_teacher_samples_have_them_at_each_size(short_run, tiny_scorers, tmp_path, method):
    """Stored teacher samples are those made anew, for images of every size; so with the text cache."""
    more = [*sized(short_run), *method_flags(method, tiny_scorers), "--per_train_fake_num", "1", "--max_steps", "8"]
    more += ["--teacher_cache_size", "3"]
    caches = ["--teacher_cache", str(tmp_path / "pool"), "--cache_text_embeddings", str(tmp_path / "text")]
    runs = [tmp_path / "anew", tmp_path / "stored"]
    for run, cache in zip(runs, ([], caches[:2]), strict=True):
        assert train.main([*more, *cache, "--run_dir", str(run)]) == 0
    assert records(runs[0]) == records(runs[1])
    assert len({record["size"] for record in records(runs[0]) if record["turn"] == "student"}) > 1
    assert len(list((tmp_path / "pool").glob("*.safetensors"))) == 3  # a file for each size
    assert train.main([*more, *caches, "--run_dir", str(tmp_path / "cached")]) == 0
    for ours, theirs in zip(records(tmp_path / "cached"), records(runs[0]), strict=True):
        assert ours["size"] == theirs["size"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)  # a text encoder's other batch size


@pytest.mark.parametrize("wanted", ["first", "all"])
def test_evaluation_at_the_first_size_or_at_all(short_run, tiny_scorers, tmp_path, wanted):
    """The scores of each size have a name of their own, for student and teacher, and the report shows them."""
    run, prompts = tmp_path / "run", short_run[short_run.index("--prompt_txt") + 1]
    command = [*sized(short_run, "64x64,48x64"), "--clip_path", tiny_scorers["clip_path"], "--eval_sizes", wanted]
    command += ["--div_prompts", prompts, "--eval_prompts_limit", "2", "--num_div_seeds", "2", "--run_dir", str(run)]
    assert train.main([*command, "--max_steps", "6"]) == 0
    last = [record for record in records(run) if record["turn"] == "eval"][-1]
    expected = {"eval/prompts_div_clip"} | ({"eval/prompts_48x64_div_clip"} if wanted == "all" else set())
    assert {name for name in last if name.endswith("div_clip")} == expected
    assert all(last[f"{name}_teacher"] is not None for name in expected)
    folder = RunFolder.of(run).eval_images
    assert Image.open(folder / "prompts" / "00000_000.png").size == (64, 64)
    if wanted == "all":
        assert Image.open(folder / "prompts_48x64" / "00000_000.png").size == (48, 64)
        assert Image.open(folder / "teacher" / "prompts_48x64" / "00000_000.png").size == (48, 64)
    assert ("48x64" in (run / "report.html").read_text()) and (run / "ckpts" / "best").exists()


def test_a_grid_that_depends_on_the_size_is_that_of_each_size(short_run, tiny_folder, tiny_scorers, tmp_path):
    """Evaluation in the loop, the run's student here and its export in diffusers make one image at each size."""
    run, prompts, folder = tmp_path / "run", short_run[short_run.index("--prompt_txt") + 1], tiny_folder("flux2_klein")
    command = [*sized(short_run, "64x64,48x64"), "--clip_path", tiny_scorers["clip_path"], "--eval_sizes", "all"]
    command += ["--family", "flux2_klein", "--teacher_id", str(folder), "--student_sigmas", "default"]
    command += ["--div_prompts", prompts, "--eval_prompts_limit", "1", "--num_div_seeds", "2", "--run_dir", str(run)]
    assert train.main([*command, "--max_steps", "6", "--eval_every", "6"]) == 0
    pipe = Flux2KleinPipeline.from_pretrained(run / "ckpts/latest/student")
    pipe.set_progress_bar_config(disable=True)
    grids, schedule = [], LAYOUTS["flux2_klein"].read_schedule(folder)
    for width, name in ((64, "prompts"), (48, "prompts_48x64")):
        sampler, encoder = load_sampler(run, torch.device("cpu"), height=64, width=width)
        text, eps = encoder.encode([Path(prompts).read_text().splitlines()[0]]), sampler.start_noise([(0, 0)], 0)
        ours = sampler.images(text, [(0, 0)], 0)
        in_the_loop = Image.open(RunFolder.of(run).eval_images / name / "00000_000.png")
        assert np.abs(np.asarray(in_the_loop).astype(int) - np.asarray(to_pil(ours)[0]).astype(int)).max() <= 1
        more = {"num_inference_steps": len(sampler.settings.sigmas) - 1, "guidance_scale": 1.0, "output_type": "pt"}
        theirs = pipe(prompt_embeds=text.context, latents=eps, height=64, width=width, **more).images
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
        assert torch.equal(
            sampler.settings.sigmas, schedule.at_size(64, width).default_sigmas(len(pipe.scheduler.sigmas) - 1)
        )
        grids.append(sampler.settings.sigmas)
    assert not torch.equal(*grids)


def test_two_processes_are_one(short_run, tmp_path, run_processes: Callable):
    """Both ranks of a step have one size, and the losses are those of one process."""
    more = [*sized(short_run), "--max_steps", "6"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main([*more, "--run_dir", str(one)]) == 0
    run_processes(["-m", "dpdmd.train", *more, "--batch_size", "1", "--run_dir", str(two)])
    for ours, theirs in zip(records(two), records(one), strict=True):
        assert (ours["size"], ours["turn"]) == (theirs["size"], theirs["turn"])
        for name in ("loss_fake", "loss_student", "grad_norm"):
            assert ours.get(name, 0) == pytest.approx(theirs.get(name, 0), rel=1e-4)


def test_the_doctor_says_ok(flags, tmp_path, capsys):
    assert doctor.main([*flags, "--out", str(tmp_path / "doctor")]) == 0, capsys.readouterr().out
    assert " at 64x64; no GPU" in (tmp_path / "doctor" / "memory.txt").read_text()


def test_a_resumed_run_needs_its_sizes(short_run, tmp_path, capsys):
    run = ["--run_dir", str(tmp_path / "run"), "--max_steps", "1"]
    assert train.main([*sized(short_run, "64x64, 48x64:1.0"), *run]) == 0
    resumed = [*run, "--resume_from_checkpoint", "latest"]
    assert train.main([*sized(short_run, "64x64,48x64"), *resumed]) == 0  # the same sizes in another form
    assert train.main([*sized(short_run, "64x64,48x64:2"), *resumed]) == 2
    assert "of another configuration (sizes: '64x64,48x64:2' here, '64x64,48x64' there)" in capsys.readouterr().err
    saved = str(tmp_path / "run" / "config.yaml")
    assert config.parse(["--config", saved]).data.image_sizes == {ImageSize(64, 64): 1, ImageSize(64, 48): 1}


def test_a_loaded_student_of_a_lora_has_the_sizes(short_run, tmp_path):
    run = tmp_path / "run"
    assert (
        train.main([*sized(short_run, "48x64,64x64"), "--lora_rank", "2", "--run_dir", str(run), "--max_steps", "6"])
        == 0
    )
    sampler, _ = load_sampler(run, torch.device("cpu"))
    assert (sampler.settings.height, sampler.settings.width) == (64, 48)
