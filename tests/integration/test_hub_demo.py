"""The demo's models from the Hub: teacher, students, the bases of LoRAs, and scorers."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from edit_models import DIFFUSION, as_variant
from safetensors.torch import load_file

from dpdmd import generate, train
from dpdmd.demo.__main__ import build_parser, find_scorers
from dpdmd.demo.models import CheckedModel, check_models
from dpdmd.demo.sources import find_sources

A = "a" * 40


def arguments(*given: object) -> argparse.Namespace:
    return build_parser().parse_args([str(value) for value in given])


def checked(*given: object) -> list[CheckedModel]:
    args = arguments(*given)
    return check_models(args, find_sources(args), torch.device("cpu"))


def error_of(*given: object) -> str:
    with pytest.raises(ValueError, match=r"\A--") as raised:
        find_sources(arguments(*given))
    return str(raised.value)


@pytest.fixture
def lora_run(hub, tiny_pipeline, short_run, tmp_path) -> Path:
    """Return a run of a LoRA whose teacher, without its T5, came from the Hub as the variant fp16."""
    teacher = Path(shutil.copytree(tiny_pipeline, tmp_path / "halves"))
    as_variant(teacher)
    hub.add("org/halves", teacher)
    run = tmp_path / "lora_run"
    command = [*short_run, "--teacher_id", "org/halves", "--variant", "fp16", "--no_t5", "--lora_rank", "2"]
    assert train.main([*command, "--download", "--run_dir", str(run), "--max_steps", "1", "--vis_every", "0"]) == 0
    return run


def test_a_teacher_and_a_student_by_id(hub, tiny_pipeline, finished, tmp_path):
    """Fetched once with --download. Then no request is made, and names are those of the repositories."""
    hub.add("org/small", tiny_pipeline)
    hub.add("me/student", finished / "ckpts" / "latest" / "student")
    given = ["--model", "me/student", "--teacher", "org/small"]
    assert "--model me/student: no such folder; get it from" in error_of(*given)
    assert hub.requests == []
    for more in (["--download"], []):
        hub.requests.clear()
        models = checked(*given, *more)
        assert [one.name for one in models] == ["teacher", "student"] and all(A in str(m.model.folder) for m in models)
        assert bool(hub.requests) == bool(more)
    assert len(models[0].settings.sigmas) - 1 == 30  # no run says how the teacher was sampled


def test_the_revision_is_that_of_the_teacher(hub, tiny_pipeline, finished):
    repository = hub.add("org/small", tiny_pipeline)
    repository.commits["b" * 40], repository.refs["v1"] = tiny_pipeline, "b" * 40
    given = ["--model", finished, "--teacher", "org/small", "--download"]
    assert checked(*given, "--revision", "v1")[0].model.folder.name == "b" * 40
    assert checked(*given[:-2], "org/small@v1")[0].model.folder.name == "b" * 40
    assert "has no revision 'v2'" in error_of(*given, "--revision", "v2")


def test_the_teacher_of_a_run_is_found_by_what_the_run_recorded(hub, tiny_pipeline, short_run, tmp_path):
    """config.yaml has org/name@commit: it is found without a flag, and equals a teacher that is given by its id."""
    hub.add("org/small", tiny_pipeline)
    run = tmp_path / "run"
    command = [*short_run, "--teacher_id", "org/small", "--run_dir", str(run), "--max_steps", "1", "--vis_every", "0"]
    assert train.main([*command, "--download"]) == 0
    hub.requests.clear()
    for more in ([], ["--teacher", "org/small"], ["--teacher", f"org/small@{A}"]):
        teacher, student = checked("--model", run, *more)
        assert teacher.model.folder.name == A and len(teacher.settings.sigmas) - 1 == 4  # teacher_infer_steps
        assert teacher.shares_text_with(student) and teacher.shares_decoder_with(student)
    assert hub.requests == []
    shutil.rmtree(tmp_path / "cache")
    assert f"--model {run}: its teacher org/small@{A}: no such folder; get it from" in error_of("--model", run)
    assert checked("--model", run, "--download")[0].model.folder.name == A


def test_a_lora_and_its_teacher_have_the_variant_and_the_text_of_the_run(hub, lora_run, tmp_path):
    """The cache has no T5, and needs none. `dpdmd.generate` finds the same base."""
    defaults = json.loads((lora_run / "ckpts/latest/lora/dpdmd.json").read_text())
    assert (defaults["base"], defaults["base_variant"], defaults["no_t5"]) == ("org/halves", "fp16", True)
    hub.requests.clear()
    teacher, student = checked("--model", lora_run)
    assert teacher.model.folder == student.model.folder and hub.requests == []
    assert load_file(teacher.model.folder / "transformer" / DIFFUSION)["pos_embed.proj.weight"].dtype == torch.float16
    sample = ["--steps", "2", "--num_images", "1", "--prompt", "a", "--out", str(tmp_path / "images")]
    assert generate.main(["--model", str(lora_run), *sample]) == 0 and hub.requests == []
    again = ["--model", str(lora_run), "--base_model", "org/halves", "--variant", "fp16"]
    assert generate.main([*again, *sample]) == 0 and hub.requests == []
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "xdg")
    assert "its base org/halves@" in error_of("--model", lora_run)
    checked("--model", lora_run, "--download")
    assert not any("text_encoder_3" in line for line in hub.requests if line.startswith("GET /cdn/"))


def test_a_variant_of_the_teacher_leaves_the_students_as_they_are(hub, lora_run, finished, tmp_path):
    teacher, student = checked("--model", finished, "--teacher", "org/halves", "--variant", "fp16", "--download")
    assert teacher.model.folder.parent.name == "variants" and student.model.folder.parent.parent.name == "ckpts"
    given = ["--model", finished, "--teacher", "org/halves", "--download"]
    assert "has its weights only as fp16; give --variant fp16" in error_of(*given)


def test_scorers_by_id(hub, tiny_scorers, finished):
    hub.add("org/dinov2", Path(tiny_scorers["dino_path"]))
    args = arguments("--model", finished, "--dino_path", "org/dinov2")
    with pytest.raises(ValueError, match=r"--dino_path org/dinov2: no such folder; get it from .* with --download"):
        find_scorers(args)
    args.download = True
    assert [paths["dino_path"].name for paths in find_scorers(args).values()] == [A]


def test_runs_of_one_repository_at_two_commits_need_a_choice(hub, tmp_path, finished):
    runs = []
    for commit in "ab":
        run = Path(shutil.copytree(finished, tmp_path / commit, symlinks=True))
        values = yaml.safe_load((run / "config.yaml").read_text())
        values["model"]["teacher_id"] = f"org/small@{commit * 40}"
        (run / "config.yaml").write_text(yaml.safe_dump(values))
        runs += ["--model", run]
    assert f"its teacher is org/small@{'b' * 40}, and that of {runs[1]} is org/small@{A}; give --teacher" in error_of(
        *runs
    )
