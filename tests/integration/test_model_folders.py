"""Every program rejects a model's folder that is not whole with a one-line error, before it makes a folder.

Each case changes one thing in a copy of a tiny folder. `test_bad_input.py` has the cases of wrong file contents.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from edit_models import DIFFUSION, MODEL, rewrite_weights, set_json
from safetensors.torch import save_file

from dpdmd import generate, train
from dpdmd.models.lora_files import LORA_WEIGHTS
from dpdmd.models.sampling_defaults import DEFAULTS_FILE

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
Copied = Callable[[str], Path]


@pytest.fixture
def copied(tiny_folder, tmp_path) -> Copied:
    """Return a function that copies a family's tiny folder, for a test that changes it."""
    return lambda family: Path(shutil.copytree(tiny_folder(family), tmp_path / "copy"))


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch) -> Callable[[str, Path], str]:
    """Return a function that gives a folder to `dpdmd.train` and `dpdmd.generate` and returns the error of both."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")

    def message(family: str, folder: Path) -> str:
        size = ["--height", "64", "--width", "64"]
        made = tmp_path / "run", tmp_path / "out"
        capsys.readouterr()  # what was printed while the models were made
        training = ["--family", family, "--teacher_id", str(folder), "--prompt_txt", str(prompts), *size]
        assert train.main([*training, "--run_dir", str(made[0])]) == 2
        trained = one_line(capsys.readouterr().err, "dpdmd.train: error: --teacher_id ")
        drawing = ["--model", str(folder), "--prompt", "x", "--steps", "2", "--num_images", "1", *size]
        assert generate.main([*drawing, "--out", str(made[1])]) == 2
        drawn = one_line(capsys.readouterr().err, "dpdmd.generate: error: ")
        assert drawn.removeprefix("--model ") == trained
        assert not any(path.exists() for path in made)
        return trained

    return message


def one_line(text: str, start: str) -> str:
    """Return the only line of `text`, without its start."""
    lines = text.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(start), text
    return lines[0].removeprefix(start)


PLACES = "text_model.embeddings.position_embedding.weight"
T5_KEYS = "encoder.block.0.layer.0.SelfAttention.k.weight"
WEIGHTS = [
    ("sd35", "text_encoder", MODEL, PLACES),
    ("sd35", "text_encoder_2", MODEL, "text_projection.weight"),
    ("sd35", "text_encoder_3", MODEL, T5_KEYS),
    ("sd35", "vae", DIFFUSION, "decoder.conv_in.weight"),
    ("sd35", "transformer", DIFFUSION, "transformer_blocks.1.attn.to_q.weight"),
    ("sdxl", "text_encoder", MODEL, PLACES.removeprefix("text_model.")),  # as transformers 5 writes this class
    ("sdxl", "text_encoder_2", MODEL, PLACES),
    ("sdxl", "vae", DIFFUSION, "decoder.conv_in.weight"),
    ("sdxl", "unet", DIFFUSION, "up_blocks.0.resnets.0.conv1.weight"),
    ("zimage", "text_encoder", MODEL, "layers.1.self_attn.q_norm.weight"),
    ("zimage", "transformer", DIFFUSION, "context_refiner.0.attention.to_q.weight"),
    ("qwen_image", "vae", DIFFUSION, "decoder.conv_in.weight"),
    ("qwen_image", "transformer", DIFFUSION, "transformer_blocks.1.img_mlp.net.2.weight"),
    ("flux2_klein", "text_encoder", MODEL, "layers.27.self_attn.q_norm.weight"),
    ("flux2_klein", "vae", DIFFUSION, "bn.running_var"),
    ("flux2_klein", "transformer", DIFFUSION, "single_transformer_blocks.1.attn.to_out.weight"),
]


@pytest.mark.parametrize(("family", "part", "file", "name"), WEIGHTS)
def test_a_missing_weight_and_another_shape_are_errors(copied, refused, family, part, file, name):
    """The libraries would put random numbers in place of the weight, and only warn."""
    folder = copied(family)
    rewrite_weights(folder / part / file, lambda weights: weights.update({name: torch.zeros(3, 3)}))
    assert f"{folder / part}: {name} has shape (3, 3), by its config.json (" in refused(family, folder)
    rewrite_weights(folder / part / file, lambda weights: weights.pop(name))
    assert f"{folder / part}: its weights lack {name}" in refused(family, folder)


def test_missing_weights_are_counted(copied, refused):
    folder = copied("sd35")
    rewrite_weights(folder / "text_encoder_3" / MODEL, lambda w: [w.pop(name) for name in list(w)[:3]])
    assert "(and 2 more)" in refused("sd35", folder)


def test_a_t5_without_its_embedding_is_an_error(copied, refused):
    """The embedding has two names. A file needs one of them, and a file with neither must not pass."""
    folder = copied("sd35")
    rewrite_weights(folder / "text_encoder_3" / MODEL, lambda weights: weights.pop("shared.weight"))
    assert "its weights lack " in refused("sd35", folder)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("vae/config.json", "{}", "vae/config.json lacks 'block_out_channels'"),
        ("vae/config.json", '{"block_out_channels": 3}', "vae/config.json has unexpected values"),
        ("transformer/config.json", "[]", "transformer/config.json holds no JSON object"),
        ("text_encoder/config.json", '{"max_position_embeddings": 10, "hidden_size": "x"}', "not describe a CLIPText"),
        (
            "text_encoder/config.json",
            '{"max_position_embeddings": 10}',
            "its weights lack text_model.encoder.layers.10.",
        ),
        ("text_encoder_3/config.json", '{"num_layers": -1.5}', "text_encoder_3/config.json does not describe a T5"),
        ("tokenizer/tokenizer.json", '{"a": 1}', "tokenizer does not load as a CLIPTokenizer"),
        ("tokenizer_3/tokenizer.json", "nothing", "tokenizer_3/tokenizer.json cannot be read as JSON"),
        ("scheduler/scheduler_config.json", "nothing", "scheduler_config.json cannot be read as JSON"),
    ],
)
def test_a_wrong_file_is_named(copied, refused, file, content, says):
    folder = copied("sd35")
    (folder / file).write_text(content)
    line = refused("sd35", folder)
    assert says in line and str(folder / file.partition("/")[0]) in line


@pytest.mark.parametrize("shift", ["x", 0, -1, None, [3], 1e30, 1e-12])
def test_a_shift_that_is_no_number_names_its_file(copied, refused, shift):
    folder = copied("sd35")
    set_json(folder / "scheduler" / "scheduler_config.json", shift=shift)
    assert "scheduler/scheduler_config.json sets shift" in refused("sd35", folder)


def test_a_value_of_another_type_in_a_networks_configuration(copied, refused):
    folder = copied("sd35")
    set_json(folder / "transformer" / "config.json", sample_size="large")
    assert "transformer/config.json has unexpected values" in refused("sd35", folder)


def test_a_component_of_another_class_is_an_error(copied, refused):
    folder = copied("sd35")
    set_json(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    assert "model_index.json says vae is a AutoencoderTiny, but a AutoencoderKL is needed" in refused("sd35", folder)
    set_json(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"], tokenizer=["transformers", "Nobody"])
    assert "is of a CLIPTokenizer, but model_index.json says tokenizer is a Nobody" in refused("sd35", folder)
    set_json(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class=None)
    assert "says tokenizer is a Nobody, which transformers does not have" in refused("sd35", folder)


def test_programs_name_a_wrong_dpdmd_json(copied, tmp_path, capsys):
    folder = copied("sd35")
    (folder / DEFAULTS_FILE).write_text('{"steps": "x"}')
    assert generate.main(["--model", str(folder), "--prompt", "x", "--out", str(tmp_path / "out")]) == 2
    assert f"{folder / DEFAULTS_FILE}: steps is 'x'" in one_line(capsys.readouterr().err, "dpdmd.generate: error: ")
    assert train.main(["--teacher_id", str(folder), "--run_dir", str(tmp_path / "run")]) == 2
    assert f"{folder / DEFAULTS_FILE}: steps is 'x'" in one_line(capsys.readouterr().err, "dpdmd.train: error: ")


@pytest.mark.parametrize(
    ("part", "there", "says"),
    [
        ("text_encoder", [], f"text_encoder/{MODEL} is missing"),
        ("text_encoder", [DIFFUSION], f"text_encoder/{MODEL} is missing"),  # transformers does not look for it
        ("text_encoder", ["pytorch_model.bin"], "pytorch_model.bin is a pickle, which is not read: get the .safetens"),
        ("text_encoder", ["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json is a pickle"),
        (
            "text_encoder",
            ["model.fp16.safetensors"],
            f"is a variant, which is not read: get {MODEL} instead, or rename it to {MODEL}",
        ),
        ("text_encoder", ["model.fp16-00001-of-00002.safetensors"], f"a variant, which is not read: get {MODEL} inst"),
        ("text_encoder", ["model-00001-of-00002.safetensors"], f"{MODEL}.index.json is missing"),
        ("text_encoder", [f"{MODEL}.index.json"], "does not say which weight is in which file"),
        ("vae", [], f"vae/{DIFFUSION} is missing"),
        ("vae", [MODEL], f"vae/{DIFFUSION} is missing"),
        ("transformer", ["diffusion_pytorch_model.bin"], "diffusion_pytorch_model.bin is a pickle"),
        ("transformer", ["diffusion_pytorch_model.fp16.safetensors"], f"or rename it to {DIFFUSION}"),
        (
            "vae",
            [DIFFUSION, f"{DIFFUSION}.index.json"],
            f"holds {DIFFUSION} and {DIFFUSION}.index.json: delete the one",
        ),
    ],
)
def test_a_missing_weights_file_is_named(copied, refused, part, there, says):
    folder = copied("sd35")
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    for name in there:
        (folder / part / name).write_text('{"weight_map": 3}')
    assert says in refused("sd35", folder)


def test_a_student_is_checked_as_closely(tiny_pipeline, copied, tmp_path, capsys):
    folder = copied("sd35")
    rewrite_weights(folder / "transformer" / DIFFUSION, lambda w: w.pop("transformer_blocks.1.attn.to_q.weight"))
    shutil.rmtree(folder / "vae")  # a student needs none
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    size = ["--height", "64", "--width", "64", "--prompt_txt", str(prompts), "--run_dir", str(tmp_path / "run")]
    assert train.main(["--teacher_id", str(tiny_pipeline), "--student_id", str(folder), *size]) == 2
    line = one_line(capsys.readouterr().err, f"dpdmd.train: error: --student_id {folder}: ")
    assert "its weights lack transformer_blocks.1.attn.to_q.weight" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["", "transformer", "ckpts"])
def test_a_folder_without_permission_is_an_error(copied, tmp_path, monkeypatch, capsys, place):
    """Root may read everything, so the test raises the error itself."""
    folder = copied("sd35")
    closed, stat = folder / place, Path.stat

    def refuse(path: Path, **options):
        if path.is_relative_to(closed) and path != folder:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    if place == "ckpts":
        (folder / "model_index.json").unlink()
    monkeypatch.setattr(Path, "stat", refuse)
    assert generate.main(["--model", str(folder), "--prompt", "x", "--out", str(tmp_path / "out")]) == 2
    line = one_line(capsys.readouterr().err, "dpdmd.generate: error: ")
    assert line.startswith(f"--model {folder}: {closed}") and line.endswith("cannot be read (Permission denied)")
    if place == "transformer":
        assert train.main(["--teacher_id", str(folder), "--run_dir", str(tmp_path / "run")]) == 2
        assert "cannot be read (Permission denied)" in one_line(capsys.readouterr().err, "dpdmd.train: error: --teach")


def test_a_broken_lora_is_an_error(tiny_pipeline, tmp_path, capsys):
    """First a git-lfs pointer, then weights of another size."""
    folder = tmp_path / "lora"
    folder.mkdir()
    command = ["--model", str(folder), "--base_model", str(tiny_pipeline), "--prompt", "x", "--out", "nowhere"]
    (folder / LORA_WEIGHTS).write_text("version https://git-lfs")
    assert generate.main(command) == 2
    assert f"{folder / LORA_WEIGHTS} is no safetensors file but a git-lfs pointer" in one_line(
        capsys.readouterr().err, "dpdmd.generate: "
    )
    layer = "transformer.transformer_blocks.0.attn.to_q"
    state = {f"{layer}.lora_A.weight": torch.zeros(2, 5), f"{layer}.lora_B.weight": torch.zeros(7, 2)}
    save_file(state, folder / LORA_WEIGHTS)
    assert generate.main(command) == 2
    assert f"{folder / LORA_WEIGHTS} does not fit the network" in one_line(capsys.readouterr().err, "dpdmd.generate: ")
