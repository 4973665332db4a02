"""Teachers that predict something else, that are themselves distilled, or that no preset of a size fits."""

import json
import shutil
from pathlib import Path

import pytest
from edit_models import set_json

from dpdmd import config
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.training import preflight

pytestmark = pytest.mark.usefixtures("no_model_loads")
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture
def sdxl(refused, tiny_sdxl, tmp_path):
    """Return a function from changed files of an SDXL teacher, and more flags, to the error."""

    def message(files: dict[str, dict], **more: str) -> str:
        folder = tmp_path / "teacher"
        shutil.copytree(tiny_sdxl, folder)
        for file, values in files.items():
            set_json(folder / file, **values)
        return refused({"--family": "sdxl", "--teacher_id": str(folder), **more})

    return message


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr with prediction_type 'epsilon'"),
        (SCHEDULER, {"prediction_type": "sample"}, "prediction_type 'sample' in place of 'epsilon' or 'v_prediction'"),
        (
            SCHEDULER,
            {"timestep_spacing": "linspace"},
            "timestep_spacing 'linspace' in place of 'leading' or 'trailing'",
        ),
        (SCHEDULER, {"timestep_spacing": ["leading"]}, "timestep_spacing ['leading'] in place of"),
        (SCHEDULER, {"_class_name": "LCMScheduler"}, "is of a LCMScheduler, but a EulerDiscreteScheduler is needed"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "embeds the guidance scale, as LCMs do"),
    ],
)
def test_an_sdxl_whose_arithmetic_is_another_is_an_error(sdxl, tmp_path, file, values, says):
    message = sdxl({file: values})
    assert message.startswith(f"--teacher_id {tmp_path}/teacher: {tmp_path}/teacher/{file}") and says in message, (
        message
    )


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        (SCHEDULER, {"use_dynamic_shifting": False}, "sets use_dynamic_shifting False, where this family uses True"),
        (SCHEDULER, {"time_shift_type": "linear"}, "sets time_shift_type 'linear', where this family uses"),
        (SCHEDULER, {"shift_terminal": 0.02}, "sets shift_terminal, which this family does not use"),
        ("text_encoder/config.json", {"num_hidden_layers": 27}, "has 27 layers, but this family reads the first 28"),
        ("text_encoder/config.json", {"num_hidden_layers": None}, ""),
        ("vae/config.json", {"block_out_channels": [8, 8, 16]}, "a latent spans 8 pixels, not 16"),
        ("vae/config.json", {"latent_channels": 4}, "its latents have 16 channels, the transformer's 32"),
    ],
)
def test_a_flux2_klein_whose_arithmetic_is_another_is_an_error(refused, tiny_folder, tmp_path, file, values, says):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_folder("flux2_klein"), folder)
    set_json(folder / file, **values)
    message = refused({"--family": "flux2_klein", "--teacher_id": str(folder)})
    assert message.startswith(f"--teacher_id {folder}: {folder}/{file}") and says in message, message


def test_steps_that_diffusers_counts_otherwise_are_an_error(sdxl):
    message = sdxl({SCHEDULER: {"timestep_spacing": "trailing"}}, **{"--teacher_infer_steps": "61"})
    assert message.startswith("--teacher_infer_steps 61: diffusers' grid with spacing 'trailing' has other steps")


@pytest.mark.parametrize("flag", ["--student_id", "--fake_id"])
def test_a_network_that_predicts_something_else_than_the_teachers_is_an_error(refused, tiny_folder, flag):
    noise, v = str(tiny_folder("sdxl")), str(tiny_folder("sdxl_v"))
    message = refused({"--family": "sdxl", "--teacher_id": v, flag: noise})
    assert message.endswith("its network predicts noise, the teacher's v at zero terminal SNR; give one that fits")
    assert message.startswith(f"{flag} ")


def check_copy(tiny: Path, folder: Path, flags: dict[str, str], **files: dict) -> list[str]:
    """Return the warnings of a run with a copy of a teacher whose files are changed."""
    shutil.copytree(tiny, folder)
    for file, values in files.items():
        path = folder / f"{file.replace('__', '/')}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    command = [part for pair in {**flags, "--teacher_id": str(folder)}.items() for part in pair]
    return preflight.check(config.parse(command)).warnings


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"model_index": {"is_distilled": True}}, "its model_index.json sets is_distilled"),
        ({"transformer__config": {"guidance_embeds": True}}, "its transformer/config.json sets guidance_embeds"),
        ({"model_index": {"_name_or_path": "stabilityai/stable-diffusion-3.5-large-turbo"}}, "-3.5-large-turbo"),
        ({"transformer__config": {"_name_or_path": "someone/SD35-Lightning"}}, "says that it is SD35-Lightning"),
    ],
)
def test_a_distilled_teacher_is_a_warning_with_the_reason(tiny_pipeline, tmp_path, flags, files, says):
    (line,) = (each for each in check_copy(tiny_pipeline, tmp_path / "m", flags, **files) if "distilled" in each)
    assert line.startswith(f"--teacher_id {tmp_path / 'm'}: ") and says in line and "teacher_guidance_scale 3.5" in line


def test_a_student_of_ours_and_a_folder_named_turbo_are_distilled(tiny_pipeline, tmp_path, flags):
    (line,) = (each for each in check_copy(tiny_pipeline, tmp_path / "sd3-turbo", flags) if "distilled" in each)
    assert "its name has the word turbo" in line
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "student"))
    SamplingDefaults(steps=2, guidance_scale=1.0, max_sequence_length=10, sigmas=(1.0, 0.5, 0.0)).write(folder)
    (line,) = (each for each in check_copy(folder, tmp_path / "again", flags) if "distilled" in each)
    assert "its dpdmd.json is that of a student of 2 steps" in line


def test_the_scheduler_of_z_image_turbo_is_a_warning(tiny_folder, tmp_path, flags):
    given = {**flags, "--family": "zimage"}
    turbo = {"scheduler__scheduler_config": {"shift": 3.0}}
    lines = check_copy(tiny_folder("zimage"), tmp_path / "z", given, **turbo)
    assert any("scheduler_config.json is that of Z-Image-Turbo" in line for line in lines)


def test_the_distilled_flux2_klein_is_a_warning(tiny_folder, tmp_path, flags):
    given, folder = {**flags, "--family": "flux2_klein"}, tiny_folder("flux2_klein")
    lines = check_copy(folder, tmp_path / "klein", given, model_index={"is_distilled": True})
    assert any("model_index.json sets is_distilled" in line for line in lines)
    assert not any("distilled" in line for line in check_copy(folder, tmp_path / "base", given))


@pytest.mark.parametrize("lightning", [False, True])
def test_a_teacher_that_is_not_distilled_has_no_warning(tiny_pipeline, tmp_path, flags, lightning):
    """A folder of lightning's logs on the way to the model says nothing."""
    folder = tmp_path / "lightning_logs" / "m" if lightning else tmp_path / "m"
    files = {"model_index": {"_name_or_path": str(folder)}}
    assert not any("distilled" in line for line in check_copy(tiny_pipeline, folder, flags, **files))


def test_a_preset_that_fits_no_run_of_the_model_is_an_error(refused, tiny_folder):
    large = str(tiny_folder("sd35_large"))
    message = refused({"--preset": "16gb", "--teacher_id": large})
    assert message == (
        "--preset 16gb: SD3.5-Large does not fit 16 GB at 1024 x 1024; take --preset 24gb or 48gb or 80gb or 8gpu, or "
        "give the flags one by one"
    )
    message = refused({"--preset": "16gb", "--family": "zimage"})
    assert message.startswith("--preset 16gb: --family zimage does not fit 16 GB")
    message = refused({"--preset": "12gb", "--family": "flux2_klein"})
    assert (
        "FLUX.2" not in message and "does not fit 12 GB at 1024 x 1024; take --preset 16gb or 24gb or 48gb" in message
    )
    nine = {"--family": "flux2_klein", "--teacher_id": "weights/black-forest-labs/FLUX.2-klein-base-9B"}
    assert refused({"--preset": "16gb", **nine}).startswith("--preset 16gb: FLUX.2-klein-base-9B does not fit 16 GB")


def test_the_longest_prompt_is_the_models(refused, tiny_folder):
    qwen = {"--family": "qwen_image", "--teacher_id": str(tiny_folder("qwen_image"))}
    message = refused({"--max_sequence_length": "513"})
    assert message == "--max_sequence_length 513: this model takes 512 tokens at most"
    assert "--max_sequence_length 1025: must be" in refused({**qwen, "--max_sequence_length": "1025"})


def test_another_models_tokenizer_is_an_error(refused, tiny_folder, tmp_path):
    """Qwen-Image's pipeline cuts its template off by the number of tokens."""
    folder = Path(shutil.copytree(tiny_folder("qwen_image"), tmp_path / "mixed"))
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tiny_folder("zimage") / "tokenizer", folder / "tokenizer")
    message = refused({"--family": "qwen_image", "--teacher_id": str(folder)})
    assert message.startswith(f"--teacher_id {folder}: {folder / 'tokenizer'}: its tokenizer makes ")
    assert "but the pipeline cuts off 34; take this model's own tokenizer" in message


def test_a_prompt_longer_than_the_positions_of_a_model_is_an_error(refused, tiny_folder):
    given = {"--family": "lumina2", "--teacher_id": str(tiny_folder("lumina2"))}
    message = refused({**given, "--max_sequence_length": "300"})
    assert message == "--max_sequence_length 300: this model takes 299 tokens at most"


@pytest.mark.parametrize("model", ["stable-diffusion-3.5-large", "stable-diffusion-3-medium-diffusers"])
def test_a_missing_model_says_where_to_get_this_model(refused, model):
    message = refused({"--teacher_id": f"weights/stabilityai/{model}"})
    where = f"https://huggingface.co/stabilityai/{model} (bash scripts/download_weights.sh --help lists the names)"
    assert message.endswith(f"get it from {where}")


def test_a_damaged_model_says_where_to_get_this_model(refused, tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder("sd35_large"), tmp_path / "large"))
    shutil.rmtree(folder / "vae")
    assert "huggingface.co/stabilityai/stable-diffusion-3.5-large (" in refused({"--teacher_id": str(folder)})
