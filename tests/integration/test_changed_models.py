"""Models that are changed in place: nothing that was kept of the old content is used for the new."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpdmd import generate, train
from dpdmd.evaluation.in_loop import InLoopEvaluation
from dpdmd.utils.manifest import read_manifest, write_manifest

ROOT = Path(__file__).parents[2]
NETWORK = "transformer/diffusion_pytorch_model.safetensors"
GAN = ["--method", "dmd_gan", "--gan_weight", "0.1", "--per_train_fake_num", "2", "--teacher_cache_size", "4"]


@pytest.fixture
def teacher(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "teacher"))


@pytest.fixture
def run(short_run: list[str], teacher: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains three steps from `teacher` into a folder of tmp_path."""

    def train_into(name: str, *more: str, status: int = 0) -> Path:
        command = [*short_run, "--teacher_id", str(teacher), "--vis_every", "0", "--run_dir", str(tmp_path / name)]
        assert train.main([*command, "--max_steps", "3", *more]) == status
        return tmp_path / name

    return train_into


def scale(weights: Path, factor: float = 1.5) -> None:
    """Change weights in place; size and names stay."""
    save_file({name: value * factor for name, value in load_file(weights).items()}, weights)


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss_fake"] for record in records if "loss_fake" in record]


def test_embeddings_of_changed_text_encoders_are_made_anew(run, teacher, tmp_path):
    """They are those of a run without the cache; before, the old ones served, with other losses."""
    cache = ["--per_train_fake_num", "2", "--cache_text_embeddings", str(tmp_path / "cache")]
    old = losses(run("old", *cache))
    for encoder in ("text_encoder", "text_encoder_3"):
        scale(teacher / encoder / "model.safetensors")
    new, right = losses(run("new", *cache)), losses(run("right", *cache[:2]))
    assert new == pytest.approx(right, rel=1e-3) and new != pytest.approx(old, rel=1e-2)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    scale(teacher / NETWORK)  # does not concern the text
    run("other", *cache)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_samples_of_a_changed_teacher_are_made_anew(run, teacher, tmp_path):
    cache = [*GAN, "--teacher_cache", str(tmp_path / "cache")]
    run("old", *cache)
    (old,) = (tmp_path / "cache").iterdir()
    run("same", *cache)
    scale(teacher / NETWORK)
    run("new", *cache)
    (new,) = set((tmp_path / "cache").iterdir()) - {old}
    assert not torch.equal(load_file(old)["x"], load_file(new)["x"])
    scale(teacher / "vae" / "diffusion_pytorch_model.safetensors", 1.01)  # latents do not depend on it
    run("other", *cache)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.fixture
def score(tiny_scorers: dict[str, str], tmp_path: Path) -> Callable[..., int]:
    """Return a function that scores a model with test_diversity.py into one output folder."""
    (tmp_path / "eval.txt").write_text("a red circle\na cross\n")
    flags = ["--prompts_txt", str(tmp_path / "eval.txt"), "--clip_path", tiny_scorers["clip_path"], "--dino_path", ""]
    flags += ["--steps", "2", "--num_samples", "2"]

    def run_program(*model: object, out: str = "out") -> int:
        program = runpy.run_path(str(ROOT / "test_diversity.py"))["PROGRAM"]
        return program.main([*flags, "--output_dir", str(tmp_path / out), "--model", *map(str, model)])

    return run_program


def clip(out: Path) -> float:
    return json.loads((out / "summary.json").read_text())["metrics"]["div_clip"]["mean"]


def test_images_of_an_earlier_model_are_not_scored(score, teacher, tmp_path, capsys):
    """Also if the new one was trained into the same folder; the message says how to go on."""
    assert score(teacher) == 0
    before = clip(tmp_path / "out")
    assert score(teacher) == 0 and clip(tmp_path / "out") == before
    scale(teacher / NETWORK, -1.0)
    capsys.readouterr()
    assert score(teacher) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"test_diversity.py: error: --output_dir {tmp_path / 'out' / 'pictures'}: holds images of")
    assert "(the model has other content in transformer)" in line and "delete this one to generate" in line
    assert clip(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out" / "pictures")
    assert score(teacher) == 0 and score(teacher, out="fresh") == 0
    assert clip(tmp_path / "out") == clip(tmp_path / "fresh") != before


def test_the_same_model_may_have_moved(score, teacher, tmp_path):
    assert score(teacher) == 0
    before = clip(tmp_path / "out")
    teacher.rename(tmp_path / "moved")
    assert score(tmp_path / "moved") == 0 and clip(tmp_path / "out") == before
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]["model"] == str(tmp_path / "moved")


def test_an_overwritten_network_and_another_base_are_other_models(score, teacher, tmp_path, capsys):
    """The network of a .pt file is one thing, the pipeline around it another."""
    network, base = tmp_path / "network.pt", Path(shutil.copytree(teacher, tmp_path / "base"))
    torch.save(load_file(teacher / NETWORK), network)
    assert score(network, "--base_model", teacher) == 0
    assert score(network, "--base_model", base) == 0  # a copy
    scale(base / "vae" / "diffusion_pytorch_model.safetensors", 1.1)
    assert score(network, "--base_model", base) == 2
    assert "the model has other content in vae" in capsys.readouterr().err.splitlines()[-1]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"]["content"]["vae"] and summary["settings"]["base_model"] == str(tmp_path / "base")
    torch.save({name: value * 1.1 for name, value in load_file(teacher / NETWORK).items()}, network)
    assert score(network, "--base_model", teacher) == 2
    assert "the model has other content in state_dict" in capsys.readouterr().err.splitlines()[-1]


def test_images_of_an_older_version_are_not_scored(score, teacher, tmp_path, capsys):
    """Their settings do not say which content made them."""
    assert score(teacher) == 0
    file = tmp_path / "out" / "pictures" / "pictures.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in settings.items() if name != "content"}))
    assert score(teacher) == 2
    assert "an older version made them, which did not record the content" in capsys.readouterr().err.splitlines()[-1]


def test_other_libraries_make_other_images(score, teacher, tmp_path, capsys):
    assert score(teacher) == 0
    file = tmp_path / "out" / "pictures" / "pictures.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"libraries": settings["libraries"] | {"torch": "1.0"}}))
    assert score(teacher) == 2 and "'torch': '1.0'" in capsys.readouterr().err.splitlines()[-1]


def test_geneval_images_of_a_changed_lora_are_not_kept(run, tmp_path, capsys):
    """An adapter trained again into the same folder."""
    lora = run("lora", "--lora_rank", "2") / "ckpts" / "step_000003" / "lora"
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"tag": "colors", "include": [], "prompt": "a cross"}) + "\n")
    command = ["--model", str(lora), "--geneval", str(tmp_path / "metadata.jsonl"), "--out", str(tmp_path / "out")]
    assert generate.main([*command, "--num_images", "1"]) == 0
    scale(lora / "pytorch_lora_weights.safetensors", 3.0)
    assert generate.main([*command, "--num_images", "1"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the model has other content in lora/pytorch_lora_weights.safetensors" in line


@pytest.fixture
def scored(monkeypatch) -> list[str]:
    """Return the titles of the passes of evaluation."""
    passes, healthy = [], InLoopEvaluation._score

    def score(self, sampler, title, folder, *, show):
        passes.append(title)
        return healthy(self, sampler, title, folder, show=show)

    monkeypatch.setattr(InLoopEvaluation, "_score", score)
    return passes


def test_the_teacher_is_scored_again_by_a_changed_scorer(run, tiny_scorers, tmp_path, scored):
    scorer = Path(shutil.copytree(tiny_scorers["clip_path"], tmp_path / "clip"))
    more = ["--clip_path", str(scorer), "--div_prompts", "data/shapes_eval.txt", "--eval_prompts_limit", "2"]
    more += ["--num_div_seeds", "2", "--ckpt_every", "3"]
    folder = run("run", *more)
    old = (folder / "teacher_scores.json").read_text()
    resumed = [*more, "--resume_from_checkpoint", "latest", "--max_steps"]
    run("run", *resumed, "4")
    assert scored == ["teacher", "step 0", "step 3", "step 4"]
    scale(scorer / "model.safetensors", -1.0)
    run("run", *resumed, "5")
    assert scored[4:] == ["teacher", "step 5"] and (folder / "teacher_scores.json").read_text() != old


def test_a_run_is_not_resumed_on_a_changed_teacher(run, teacher, capsys):
    """One line and status 2; with the old files back, it goes on."""
    folder = run("run", "--ckpt_every", "3")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    weights = teacher / "vae" / "diffusion_pytorch_model.safetensors"
    original = weights.read_bytes()
    scale(weights)
    resumed = ["--resume_from_checkpoint", "latest", "--max_steps", "4"]
    capsys.readouterr()
    run("run", *resumed, status=2)
    (line,) = capsys.readouterr().err.splitlines()
    wanted = f"--resume_from_checkpoint {folder / 'ckpts' / 'step_000003'}: --teacher_id {teacher} has changed since in"
    assert line.startswith(f"dpdmd.train: error: {wanted} vae; put the old files back")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    weights.write_bytes(original)
    run("run", *resumed)


def test_a_changed_perceptual_network_counts_as_well(run, tiny_scorers, tmp_path, capsys):
    network = Path(shutil.copytree(tiny_scorers["dino_path"], tmp_path / "dino"))
    more = ["--method", "dmd_lpips", "--perceptual", "dino", "--perceptual_path", str(network), "--ckpt_every", "3"]
    run("run", *more)
    scale(network / "model.safetensors")
    run("run", *more, "--resume_from_checkpoint", "latest", "--max_steps", "4", status=2)
    assert "has changed since in perceptual network" in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_of_an_older_version_is_resumed_with_a_warning(run):
    folder = run("run", "--ckpt_every", "3")
    newest = folder / "ckpts" / "step_000003"
    about = read_manifest(newest)
    del about["files"], about["progress"]["models"]
    write_manifest(newest, about)
    run("run", "--resume_from_checkpoint", "latest", "--max_steps", "4")
    log = (folder / "log" / "log.txt").read_text()
    assert f"{newest}: an older version wrote it without the content of its teacher" in log
