"""A model's folder that is not whole gets one line from every program, before a run folder is made; a whole one loads.

Each case alters one thing in a copy of a tiny folder. `test_bad_input.py` has those that are a file's content alone.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpdmd import generate, train
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.checks.weights import check_contents
from dpdmd.models.layout import LORA_WEIGHTS
from dpdmd.models.registry import LAYOUTS, family_class
from dpdmd.models.sampling_defaults import DEFAULTS_FILE, SamplingDefaults, read_sampling_defaults
from dpdmd.sampling.load_model import load_sampler

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
MODEL, DIFFUSION = "model.safetensors", "diffusion_pytorch_model.safetensors"
Weights = dict[str, Tensor]
Copied = Callable[[str], Path]


@pytest.fixture
def copied(tiny_pipeline, tiny_sdxl, tmp_path) -> Copied:
    """Makes a copy of a family's tiny folder, to be altered."""
    return lambda family: Path(shutil.copytree({"sd35": tiny_pipeline, "sdxl": tiny_sdxl}[family], tmp_path / "copy"))


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch) -> Callable[[str, Path], str]:
    """Gives a folder to `dpdmd.train` and `dpdmd.generate`; returns what both say of it."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")

    def told(family: str, folder: Path) -> str:
        size = ["--height", "64", "--width", "64"]
        made = tmp_path / "run", tmp_path / "out"
        training = ["--family", family, "--teacher_id", str(folder), "--prompt_txt", str(prompts), *size]
        assert train.main([*training, "--run_dir", str(made[0])]) == 2
        trained = one_line(capsys.readouterr().err, "dpdmd.train: error: --teacher_id ")
        drawing = ["--model", str(folder), "--prompt", "x", "--steps", "2", "--num_images", "1", *size]
        assert generate.main([*drawing, "--out", str(made[1])]) == 2
        drawn = one_line(capsys.readouterr().err, "dpdmd.generate: error: ")
        assert drawn.removeprefix("--model ") == trained
        assert not any(path.exists() for path in made)
        return trained

    return told


def one_line(text: str, start: str) -> str:
    """The only line that was told, without its start."""
    lines = text.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(start), text
    return lines[0].removeprefix(start)


def altered(file: Path, alter: Callable[[Weights], object]) -> None:
    """Rewrite a weights file."""
    weights = load_file(file)
    alter(weights)
    save_file(weights, file, metadata={"format": "pt"})


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
]


@pytest.mark.parametrize(("family", "part", "file", "name"), WEIGHTS)
def test_a_weight_that_lacks_or_has_another_shape_is_told(copied, refused, family, part, file, name):
    """The libraries would put random numbers there, and only warn."""
    folder = copied(family)
    altered(folder / part / file, lambda weights: weights.update({name: torch.zeros(3, 3)}))
    assert f"{folder / part}: {name} has shape (3, 3), by its config.json (" in refused(family, folder)
    altered(folder / part / file, lambda weights: weights.pop(name))
    assert f"{folder / part}: its weights lack {name}" in refused(family, folder)


def test_all_that_lacks_is_counted(copied, refused):
    folder = copied("sd35")
    altered(folder / "text_encoder_3" / MODEL, lambda weights: [weights.pop(name) for name in list(weights)[:3]])
    assert "(and 2 more)" in refused("sd35", folder)


def test_a_t5_without_its_embedding_is_told(copied, refused):
    """The embedding has two names, of which a file needs one; it must not pass for want of both."""
    folder = copied("sd35")
    altered(folder / "text_encoder_3" / MODEL, lambda weights: weights.pop("shared.weight"))
    assert "its weights lack " in refused("sd35", folder)


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_loading_is_strict_by_itself(copied, family, part):
    """Whoever loads without a check before gets no random numbers either."""
    folder = copied(family)
    name, file = next((name, file) for where, what, file, name in WEIGHTS if (where, what) == (family, part))
    altered(folder / part / file, lambda weights: weights.pop(name))
    loader = family_class(family)(CPU, torch.float32)
    with pytest.raises(ValueError, match=f"its weights lack {name}"):
        loader.load_text_encoder(folder, 10) if part == "text_encoder" else loader.load_image_decoder(folder)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("vae/config.json", "{}", "vae/config.json lacks 'block_out_channels'"),
        ("vae/config.json", '{"block_out_channels": 3}', "vae/config.json holds what is not expected"),
        ("transformer/config.json", "[]", "transformer/config.json holds no JSON object"),
        ("text_encoder/config.json", '{"hidden_size": "x"}', "text_encoder/config.json does not describe a CLIPText"),
        ("text_encoder/config.json", "{}", "its weights lack text_model.encoder.layers.10."),
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


def with_entry(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("shift", ["x", 0, -1, None, [3]])
def test_a_shift_that_is_no_number_names_its_file(copied, refused, shift):
    folder = copied("sd35")
    with_entry(folder / "scheduler" / "scheduler_config.json", shift=shift)
    assert "scheduler/scheduler_config.json sets shift" in refused("sd35", folder)


def test_values_of_a_network_that_are_of_another_kind(copied, refused):
    folder = copied("sd35")
    with_entry(folder / "transformer" / "config.json", sample_size="large")
    assert "transformer/config.json holds what is not expected" in refused("sd35", folder)


def test_a_component_of_another_class_is_told(copied, refused):
    folder = copied("sd35")
    with_entry(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    assert "model_index.json says vae is a AutoencoderTiny, but a AutoencoderKL is needed" in refused("sd35", folder)
    with_entry(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"], tokenizer=["transformers", "Nobody"])
    assert "says tokenizer is a Nobody, which transformers has not" in refused("sd35", folder)


BAD_DEFAULTS = [
    ({"steps": "x"}, "steps is 'x', which must be a whole number"),
    ({"steps": 0}, "steps is 0"),
    ({"steps": True}, "steps is True"),
    ({"steps": 2.0}, "steps is 2.0"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ({"guidance_scale": -1}, "guidance_scale is -1"),
    ({"max_sequence_length": None}, "max_sequence_length is None"),
    ({"steps": 2, "sigmas": [1, 0.5]}, "sigmas must be null or 3 numbers"),
    ({"steps": 2, "sigmas": [1, 0.5, "0"]}, "sigmas must be"),
    ({"steps": 2, "sigmas": [1, 1, 0]}, "fall strictly to 0"),
    ({"steps": 2, "sigmas": [1, 0.5, 0.2]}, "fall strictly to 0"),
    ({"sigmas": []}, "sigmas must be"),
    ({"sigmas": "default"}, "sigmas must be"),
    ({"grid": "fast"}, "grid is 'fast', which must be one of default, trailing"),
    ({"grid": ["default"]}, "grid is ['default']"),
    ({"shift": 0}, "shift is 0"),
    ({"base": 3}, "base is 3"),
    ({"no_t5": "no"}, "no_t5 is 'no', which must be true or false"),
    ({"stepz": 3}, "not of this version"),
]


@pytest.mark.parametrize(("defaults", "says"), BAD_DEFAULTS)
def test_sampling_defaults_must_be_valid(tmp_path, defaults, says):
    (tmp_path / DEFAULTS_FILE).write_text(json.dumps(defaults))
    with pytest.raises(ValueError) as told:
        read_sampling_defaults(tmp_path, SamplingDefaults())
    assert str(told.value).startswith(f"{tmp_path / DEFAULTS_FILE}: ") and says in str(told.value)


def test_sampling_defaults_are_read_as_written(tmp_path):
    defaults = SamplingDefaults(
        steps=2, guidance_scale=0, sigmas=(14.6, 0.5, 0), grid="trailing", shift=3.0, base="x", no_t5=True
    )
    defaults.write(tmp_path)
    assert read_sampling_defaults(tmp_path, SamplingDefaults()) == defaults


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
    ],
)
def test_a_weights_file_is_asked_for_by_its_own_name(copied, refused, part, there, says):
    folder = copied("sd35")
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    for name in there:
        (folder / part / name).write_text('{"weight_map": 3}')
    assert says in refused("sd35", folder)


def in_shards(file: Path, count: int) -> None:
    """Split a weights file as the libraries do."""
    weights, placed = load_file(file), {}
    for shard in range(count):
        name = f"{file.stem}-{shard + 1:05d}-of-{count:05d}.safetensors"
        part = {key: weights[key] for key in list(weights)[shard::count]}
        save_file(part, file.with_name(name), metadata={"format": "pt"})
        placed |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    file.unlink()


def as_bf16(weights: Weights) -> None:
    weights.update({name: value.bfloat16() for name, value in weights.items()})


def as_first_clips(weights: Weights) -> None:
    """Every name starts with text_model, and the positions are there."""
    for name in [name for name in weights if not name.startswith(("text_model.", "text_projection."))]:
        weights[f"text_model.{name}"] = weights.pop(name)
    weights["text_model.embeddings.position_ids"] = torch.arange(10)[None]


def as_first_released(weights: Weights) -> None:
    """The names that the attention of the first autoencoders had."""
    for new, old in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
        for name in [name for name in weights if new in name]:
            weights[name.replace(new, old)] = weights.pop(name)


@pytest.mark.parametrize("family", LAYOUTS)
def test_folders_as_they_are_published_are_whole(copied, family):
    """Shards, half precision, buffers that are no weights, a tied weight under both names or the other, old names."""
    folder, layout = copied(family), LAYOUTS[family]
    expected = load_sampler(folder, CPU, steps=2, height=64, width=64)[1].encode(["a red circle"])
    altered(folder / "vae" / DIFFUSION, as_first_released)
    assert any("proj_attn" in name for name in load_file(folder / "vae" / DIFFUSION))  # there is something to rename
    clip = folder / "text_encoder" / MODEL
    altered(clip, as_first_clips)
    in_shards(clip, 3)
    if family == "sd35":
        t5 = folder / "text_encoder_3" / MODEL
        altered(t5, lambda weights: weights.update({"encoder.embed_tokens.weight": weights["shared.weight"].clone()}))
        in_shards(t5, 2)
    check_folder(layout, folder, "--teacher_id")
    check_contents(layout, folder, "--teacher_id")
    sampler, encoder = load_sampler(folder, CPU, steps=2, height=64, width=64)
    assert torch.equal(encoder.encode(["a red circle"]).context, expected.context)
    assert not any(value.is_meta for value in sampler.network.state_dict().values())
    altered(folder / "text_encoder_2" / MODEL, as_bf16)
    altered(folder / layout.network / DIFFUSION, as_bf16)
    check_contents(layout, folder, "--teacher_id")


def test_a_t5_may_name_its_embedding_by_its_other_name(copied):
    folder = copied("sd35")
    file = folder / "text_encoder_3" / MODEL
    altered(file, lambda weights: weights.update({"encoder.embed_tokens.weight": weights.pop("shared.weight")}))
    check_contents(LAYOUTS["sd35"], folder, "--teacher_id")


def test_nothing_large_is_read(copied, monkeypatch):
    """All ranks look at once, at files of many GB."""
    folder, layout = copied("sd35"), LAYOUTS["sd35"]

    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    monkeypatch.setattr("diffusers.models.modeling_utils.load_state_dict", refuse)
    monkeypatch.setattr("torch.nn.Module.load_state_dict", refuse)
    check_contents(layout, folder, "--teacher_id")


def test_a_student_is_looked_at_as_closely(tiny_pipeline, copied, tmp_path, capsys):
    folder = copied("sd35")
    altered(folder / "transformer" / DIFFUSION, lambda w: w.pop("transformer_blocks.1.attn.to_q.weight"))
    shutil.rmtree(folder / "vae")  # of which it needs none
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    size = ["--height", "64", "--width", "64", "--prompt_txt", str(prompts), "--run_dir", str(tmp_path / "run")]
    assert train.main(["--teacher_id", str(tiny_pipeline), "--student_id", str(folder), *size]) == 2
    line = one_line(capsys.readouterr().err, f"dpdmd.train: error: --student_id {folder}: ")
    assert "its weights lack transformer_blocks.1.attn.to_q.weight" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["", "transformer", "ckpts"])
def test_a_folder_that_may_not_be_read_is_told(copied, tmp_path, monkeypatch, capsys, place):
    """Root may read everything, so the refusal is made here."""
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


def test_a_broken_lora_is_told(tiny_pipeline, tmp_path, capsys):
    """No weights at all, then weights of another size."""
    folder = tmp_path / "lora"
    folder.mkdir()
    command = ["--model", str(folder), "--base_model", str(tiny_pipeline), "--prompt", "x", "--out", "nowhere"]
    (folder / LORA_WEIGHTS).write_text("version https://git-lfs")
    assert generate.main(command) == 2
    assert f"{folder / LORA_WEIGHTS} is no safetensors file" in one_line(capsys.readouterr().err, "dpdmd.generate: ")
    layer = "transformer.transformer_blocks.0.attn.to_q"
    state = {f"{layer}.lora_A.weight": torch.zeros(2, 5), f"{layer}.lora_B.weight": torch.zeros(7, 2)}
    save_file(state, folder / LORA_WEIGHTS)
    assert generate.main(command) == 2
    assert f"{folder / LORA_WEIGHTS} does not fit the network" in one_line(capsys.readouterr().err, "dpdmd.generate: ")
