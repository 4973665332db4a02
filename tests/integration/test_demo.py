"""The demo's models and images: shared parts, the noises of `dpdmd.generate`, and requests that do not mix."""

import argparse
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from dpdmd import train
from dpdmd.demo.__main__ import build_parser
from dpdmd.demo.comparison import PIXELS, Comparison
from dpdmd.demo.models import CheckedModel, _find_teacher, check_models, load_models
from dpdmd.demo.sources import find_sources
from dpdmd.evaluation.scorers import build_scorer
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.sampling.find_model import Model
from dpdmd.sampling.load_model import load_sampler
from dpdmd.utils.image_grid import to_pil

CPU = torch.device("cpu")
PROMPT = "a red circle"


def arguments(*given: object) -> argparse.Namespace:
    return build_parser().parse_args([str(value) for value in given])


def checked(*given: object) -> list[CheckedModel]:
    args = arguments(*given)
    return check_models(args, find_sources(args), CPU)


def loaded(*given: object) -> Comparison:
    return Comparison(load_models(checked(*given)), [], 4)


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory, short_run) -> Path:
    run = tmp_path_factory.mktemp("lora") / "lora_run"
    more = ["--lora_rank", "2", "--max_steps", "2", "--ckpt_every", "2", "--vis_every", "0"]
    assert train.main([*short_run, "--run_dir", str(run), *more]) == 0
    return run


@pytest.fixture(scope="module")
def comparison(finished, lora_run) -> Comparison:
    return loaded("--model", finished, "--model", lora_run)


def test_a_configuration_of_another_project_is_not_the_runs(tiny_pipeline, tmp_path):
    """Any project may have a config.yaml above an exported student."""
    (tmp_path / "config.yaml").write_text("wandb: true\n")
    student = shutil.copytree(tiny_pipeline, tmp_path / "outputs" / "student")
    sources = find_sources(arguments("--model", student))
    assert (sources.teacher, sources.run) == (None, None)


def test_teacher_and_students_share_what_is_equal(comparison):
    """A student of a run and a LoRA's base have their teacher's text encoders and decoder."""
    teacher, full, lora = comparison.models
    assert [model.name for model in comparison.models] == ["teacher", "run", "lora_run"]
    assert full.encoder is teacher.encoder is lora.encoder
    assert full.sampler.decoder is teacher.sampler.decoder is lora.sampler.decoder
    assert len({id(model.sampler.network) for model in comparison.models}) == 3
    assert [len(model.sampler.settings.sigmas) - 1 for model in comparison.models] == [4, 2, 2]
    assert [model.sampler.settings.guidance_scale for model in comparison.models] == [3.5, 1, 1]


def test_an_image_is_that_of_generate(comparison, finished, lora_run, tiny_pipeline):
    """Image of seed s: `dpdmd.generate --seed s --num_images 1`, of every model."""
    results = {result.index: result for result in comparison.sample(PROMPT, [3, 4])}
    assert list(results) == [1, 2, 0]
    for index, (path, options) in enumerate([(tiny_pipeline, {"steps": 4}), (finished, {}), (lora_run, {})]):
        sampler, encoder = load_sampler(path, CPU, **options)
        for number, seed in enumerate([3, 4]):
            expected = to_pil(sampler.images(encoder.encode([PROMPT]), [(0, 0)], seed))[0]
            assert _largest_difference(results[index].images[number], expected) <= 1  # another batch size
        assert results[index].seconds > 0 and 0 < results[index].diversity[PIXELS] < 1


def _largest_difference(one, other) -> int:
    values = [torch.tensor(list(image.tobytes())) for image in (one, other)]
    return int((values[0] - values[1]).abs().max())


def test_diversity_is_of_what_is_shown(comparison, tiny_scorers):
    scorer = build_scorer("div_dino", {"dino_path": Path(tiny_scorers["dino_path"])}, CPU)
    scored = Comparison(comparison.models, [scorer], 4)
    same = next(scored.sample(PROMPT, [3, 3])).diversity
    assert same == {PIXELS: pytest.approx(0, abs=1e-4), "DINO diversity": pytest.approx(0, abs=1e-6)}
    assert next(scored.sample(PROMPT, [3])).diversity == {}


def test_requests_at_the_same_time_do_not_mix(comparison):
    """Each of several threads gets the images of its own prompt and seeds."""
    requests = [(PROMPT, [0, 1]), ("a large blue square", [0, 1]), (PROMPT, [5])]
    alone = [list(comparison.sample(*request)) for request in requests]
    together: dict[int, list] = {}

    def ask(number: int) -> None:
        together[number] = list(comparison.sample(*requests[number]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = [[_bytes(result) for result in results] for results in alone]
    assert shown == [[_bytes(result) for result in together[number]] for number in range(len(requests))]
    assert shown[0] != shown[1]


def _bytes(result) -> list[bytes]:
    return [image.tobytes() for image in result.images]


def test_text_encoders_stored_in_another_type_are_shared(finished, tmp_path, tiny_pipeline):
    """A student's config.json may give its teacher's encoders another type, which does not change what is loaded."""
    import shutil

    teacher = Path(shutil.copytree(tiny_pipeline, tmp_path / "teacher"))
    config = teacher / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"float16"'))
    assert "float16" in config.read_text()
    models = loaded("--model", finished, "--teacher", teacher).models
    assert models[0].encoder is models[1].encoder
    (teacher / "tokenizer" / "vocab.json").write_text("{}")
    models = checked("--model", finished, "--teacher", teacher)
    assert not models[1].shares_text_with(models[0]) and models[1].shares_decoder_with(models[0])


def test_an_sdxl_is_compared_like_any_other(tiny_sdxl):
    models = loaded("--model", tiny_sdxl, "--teacher", tiny_sdxl)
    results = list(models.sample(PROMPT, [1]))
    assert results[0].images[0].tobytes() == results[1].images[0].tobytes()


def test_a_teacher_without_a_run_has_its_own_steps(finished, tiny_pipeline):
    student = finished / "ckpts" / "latest" / "student"
    models = checked("--model", student, "--teacher", tiny_pipeline)
    assert len(models[0].settings.sigmas) - 1 == 4  # the student is inside a run
    models = checked("--model", tiny_pipeline, "--teacher", tiny_pipeline)
    assert len(models[0].settings.sigmas) - 1 == 30


def test_a_teacher_of_another_model_has_that_models_steps_and_guidance(tiny_pipeline, tmp_path):
    """SD3-Medium is known by its network; its folder has no dpdmd.json."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "medium"))
    config = json.loads((folder / "transformer" / "config.json").read_text())
    config |= {"dual_attention_layers": [], "qk_norm": None}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    (folder / "dpdmd.json").unlink(missing_ok=True)
    sources = SimpleNamespace(teacher=folder, run=None)
    teacher = _find_teacher(sources, [Model(tiny_pipeline, SamplingDefaults())], tiny_pipeline)
    assert (teacher.defaults.steps, teacher.defaults.guidance_scale) == (28, 7.0)


def test_runs_of_two_teachers_need_a_choice(finished, tmp_path, tiny_sdxl):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(finished, other, symlinks=True)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["model"]["teacher_id"] = str(tiny_sdxl)
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"--model .*other: its teacher is .*, and that of .* is .*; give --teacher"):
        checked("--model", finished, "--model", other)
