"""K from the teacher alone: `dpdmd.find_anchor`, and `dpdmd.train --k_anchor auto`, on small random models."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dpdmd import train
from dpdmd.config import read_yaml
from dpdmd.config.anchor_search import NUM_SEEDS, THRESHOLD
from dpdmd.find_anchor import __main__ as find_anchor
from dpdmd.find_anchor import measurement
from dpdmd.methods import decidedness, updates
from dpdmd.models.sd35.family import SD35
from dpdmd.training import anchor_choice
from dpdmd.utils.strict_yaml import read

DRIVERS = Path(__file__).parents[1] / "processes" / "drivers"
STEPS = 4
Find = Callable[..., dict]


@pytest.fixture
def find(short_run: list[str], tmp_path: Path) -> Find:
    """Return a function that runs the program with five prompts, and returns what it wrote."""

    def run(*more: str) -> dict:
        out = tmp_path / "found"
        assert find_anchor.main([*short_run, "--num_prompts", "5", "--out", str(out), *more]) == 0
        return json.loads((out / "anchor.json").read_text())

    return run


@pytest.fixture
def few_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor_choice, "NUM_SEEDS", 4)


@pytest.fixture
def auto(short_run: list[str]) -> list[str]:
    """Return a short run with --k_anchor auto, whose teacher takes STEPS steps."""
    return [*short_run, "--teacher_infer_steps", str(STEPS), "--k_anchor", "auto", "--vis_every", "0"]


def student_bytes(run: Path) -> bytes:
    return (run / "ckpts/latest/student/transformer/diffusion_pytorch_model.safetensors").read_bytes()


def test_the_program_reports_the_curve_the_cost_and_an_image(find, tmp_path, capsys):
    found = find("--num_seeds", "4", "--threshold", "0.9", "--teacher_infer_steps", "6")
    curve = found["curve"]
    assert [point["k"] for point in curve] == [1, 2, 3, 4, 5, 6] and curve[-1]["sigma"] == 0
    for name in ("decidedness", "spread"):
        assert curve[-1][name]["mean"] == 1 and all(point[name]["low"] <= point[name]["high"] for point in curve)
        mean = sum(prompt[name][0] for prompt in found["prompts"]) / 5
        assert curve[0][name]["mean"] == pytest.approx(mean)
    k = found["k_anchor"]
    assert next(point["k"] for point in curve if point["decidedness"]["mean"] >= 0.9) == k
    assert found["guided_calls_per_anchor"] == k and found["space"] == "pixels"
    first, last = found["k_interval"]
    assert first <= k <= last and curve[last - 1]["decidedness"]["low"] >= 0.9 > curve[first - 2]["decidedness"]["high"]
    assert f"--k_anchor {k}: the smallest with a decidedness of 0.9 or more in pixels" in capsys.readouterr().out
    with Image.open(tmp_path / "found" / "anchor.png") as image:
        assert image.width > 1000


def test_a_prompt_is_text_and_no_formula(find, tmp_path):
    (tmp_path / "prices.txt").write_text("".join(f"price $20% off ${count}0\n" for count in range(5)))
    assert find("--num_seeds", "2", "--prompt_txt", str(tmp_path / "prices.txt"))["curve"]


def test_pixels_and_latents_are_two_measures(find):
    pixels, latents = find("--num_seeds", "3"), find("--num_seeds", "3", "--space", "latents")
    assert latents["space"] == "latents"
    assert pixels["curve"][0]["decidedness"]["mean"] != latents["curve"][0]["decidedness"]["mean"]
    assert pixels["curve"][0]["sigma"] == latents["curve"][0]["sigma"]


def test_the_teacher_computes_attention_as_it_is_asked_to(find):
    found, plain = (find("--num_seeds", "2", *more) for more in (["--attention_backend", "native"], []))
    assert found["curve"] == plain["curve"] and found["k_anchor"] == plain["k_anchor"]


def test_the_images_are_as_large_as_pixels_may_be(monkeypatch, find):
    """Above this size the default is latents, and the result says so."""
    monkeypatch.setattr(decidedness, "MAX_DECODED", 64 * 64 - 1)
    assert find("--num_seeds", "2")["space"] == "latents"


def test_the_text_encoders_are_gone_before_the_teacher_loads(find, monkeypatch):
    """A preset's GPU need not hold both."""
    load_encoder, load_network, encoders = SD35.load_text_encoder, SD35.load_network, []

    def load_text_encoder(self, *given, **named):
        encoder = load_encoder(self, *given, **named)
        encoders.append(weakref.ref(encoder))
        return encoder

    def load_alone(self, *given):
        assert encoders and encoders[0]() is None
        return load_network(self, *given)

    monkeypatch.setattr(SD35, "load_text_encoder", load_text_encoder)
    monkeypatch.setattr(SD35, "load_network", load_alone)
    assert find("--num_seeds", "2")["curve"]


def test_a_picture_that_fails_costs_no_measurement(short_run, tmp_path, monkeypatch, capsys):
    """The decoder may first run for it, after hours of calls in latents."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measurement, "_sample", full)
    out = tmp_path / "out"
    given = [*short_run, "--num_prompts", "2", "--num_seeds", "2", "--out", str(out), "--space", "latents"]
    assert find_anchor.main(given) == 0
    assert json.loads((out / "anchor.json").read_text())["curve"] and not (out / "anchor.png").exists()
    assert "without anchor.png (OutOfMemoryError: CUDA out of memory)" in capsys.readouterr().out


def test_an_epsilon_model(tiny_sdxl, find):
    """SDXL: at the anchor there is one more call, except where the teacher ends."""
    sdxl = ["--family", "sdxl", "--teacher_id", str(tiny_sdxl), "--num_seeds", "3"]
    found = find(*sdxl, "--threshold", "1e-9")
    assert found["k_anchor"] == 1 and found["guided_calls_per_anchor"] == 2
    assert found["curve"][-1]["decidedness"]["mean"] == 1


def test_training_takes_the_k_that_the_program_finds(find, auto, tmp_path):
    """config.yaml has the number, and the run equals one with this number, to the bit."""
    k = find("--num_seeds", str(NUM_SEEDS), "--teacher_infer_steps", str(STEPS))["k_anchor"]
    found, given = tmp_path / "found_run", tmp_path / "given_run"
    assert train.main([*auto, "--run_dir", str(found), "--max_steps", "6"]) == 0
    assert read(found / "config.yaml", "it")["method"]["k_anchor"] == k
    log = (found / "log" / "log.txt").read_text()
    assert f"--k_anchor auto: {k} of 4 steps, the first with decidedness {THRESHOLD:.2f} or more (5 prompts" in log
    assert train.main([*auto, "--k_anchor", str(k), "--run_dir", str(given), "--max_steps", "6"]) == 0
    assert student_bytes(found) == student_bytes(given)


@pytest.mark.usefixtures("few_seeds")
def test_a_resumed_run_keeps_the_k_of_its_checkpoint(auto, tmp_path, monkeypatch):
    """It does not measure again, and ends as the uninterrupted run, started with auto or with its own config.yaml."""
    whole, parts, again = tmp_path / "whole", tmp_path / "parts", ["--resume_from_checkpoint", "latest"]
    assert train.main([*auto, "--run_dir", str(whole), "--max_steps", "7"]) == 0
    assert train.main([*auto, "--run_dir", str(parts), "--max_steps", "5"]) == 0
    k = read_yaml(parts / "config.yaml").method.k_anchor
    monkeypatch.delattr(anchor_choice, "measure_curves")
    assert train.main([*auto, "--run_dir", str(parts), "--max_steps", "6", *again]) == 0
    assert train.main(["--config", str(parts / "config.yaml"), "--max_steps", "7", *again]) == 0
    assert read_yaml(parts / "config.yaml").method.k_anchor == k
    assert student_bytes(whole) == student_bytes(parts)
    other = [*auto, "--k_anchor", str(k % STEPS + 1), "--run_dir", str(parts), "--max_steps", "8", *again]
    assert train.main(other) == 2


@pytest.mark.usefixtures("few_seeds")
def test_a_run_that_is_stopped_before_its_first_checkpoint_keeps_its_k(auto, tmp_path, monkeypatch):
    """Measured again only if something that it depends on has changed, such as the teacher's guidance."""
    measured, measure = [], anchor_choice.measure_curves

    def counting(*given, **more):
        measured.append(1)
        return measure(*given, **more)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(anchor_choice, "measure_curves", counting)
    run = [*auto, "--run_dir", str(tmp_path / "run"), "--max_steps", "6", "--resume_from_checkpoint", "latest"]
    for more, count in (([], 1), ([], 1), (["--teacher_guidance_scale", "2"], 2)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(updates, "fake_score_loss", killed)
            train.main([*run, *more])
        assert len(measured) == count
    assert train.main([*run, *more]) == 0 and len(measured) == 2


@pytest.mark.usefixtures("few_seeds")
def test_k_is_no_less_than_the_steps_that_are_taken_in_any_case(auto, tmp_path, monkeypatch):
    monkeypatch.setattr(anchor_choice, "THRESHOLD", 1e-9)
    assert train.main([*auto, "--anchor_steps", "3", "--run_dir", str(tmp_path / "run"), "--max_steps", "6"]) == 0
    assert read_yaml(tmp_path / "run" / "config.yaml").method.k_anchor == 3


def test_a_method_without_an_anchor_measures_nothing(auto, tmp_path, monkeypatch):
    monkeypatch.delattr(anchor_choice, "measure_curves")
    assert train.main([*auto, "--method", "dmd", "--run_dir", str(tmp_path / "run"), "--max_steps", "2"]) == 0


@pytest.mark.usefixtures("few_seeds")
@pytest.mark.parametrize("more", [["--lora_rank", "4"], ["--cache_text_embeddings", "CACHE"], ["--offload_vae"]])
def test_other_ways_to_hold_the_networks_find_the_same_k(auto, tmp_path, more):
    more = [str(tmp_path / "cache") if part == "CACHE" else part for part in more]
    ks = set()
    for name, flags in (("plain", []), ("other", more)):
        assert train.main([*auto, *flags, "--run_dir", str(tmp_path / name), "--max_steps", "1"]) == 0
        ks.add(read_yaml(tmp_path / name / "config.yaml").method.k_anchor)
    assert len(ks) == 1


def test_two_processes_find_the_k_of_one(auto, find, tmp_path, run_processes, monkeypatch):
    """Each measures its share of the prompts, and both train with the same K."""
    k = find("--num_seeds", str(NUM_SEEDS), "--teacher_infer_steps", str(STEPS))["k_anchor"]
    monkeypatch.setenv("FOUND", str(tmp_path / "ranks"))
    run, short = tmp_path / "run", ["--max_steps", "2"]
    run_processes([str(DRIVERS / "found_anchor.py"), *auto, *short, "--run_dir", str(run)])
    assert sorted((tmp_path / "ranks").read_text().splitlines()) == [f"0 {k}", f"1 {k}"]
    assert read_yaml(run / "config.yaml").method.k_anchor == k
    sharded, lora = tmp_path / "sharded", tmp_path / "lora"
    flags = [*auto, *short, "--shard_teacher", "--run_dir", str(sharded)]
    flags += ["+FSDP2", *auto, *short, "--lora_rank", "2", "--run_dir", str(lora)]
    run_processes([str(DRIVERS / "fsdp_cpu.py"), *flags])  # five prompts: rank 1 repeats one, since ranks call together
    assert {read_yaml(each / "config.yaml").method.k_anchor for each in (sharded, lora)} == {k}


@pytest.mark.usefixtures("few_seeds")
def test_a_teacher_without_variety_is_one_line(auto, tmp_path, monkeypatch, capsys):
    """The run ends as for wrong input, and its folder can be used again."""
    same = decidedness.compare_ends
    monkeypatch.setattr(decidedness, "compare_ends", lambda ends, finals: same(ends, finals * 0))
    command = [*auto, "--run_dir", str(tmp_path / "run"), "--max_steps", "2"]
    assert train.main(command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dpdmd.train: error: --k_anchor auto: --teacher_id ") and "samples of all seeds are" in line
    assert find_anchor.main([*auto, "--num_prompts", "2", "--num_seeds", "2", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out" / "anchor.json").exists()
    monkeypatch.undo()
    assert train.main([*command, "--k_anchor", "2"]) == 0
