"""Missing, damaged and mistaken files of scorers and models get a one-line error before any model loads."""

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from bad_input import program
from edit_models import rewrite_weights
from safetensors.torch import load_file, save_file
from small_models import save_open_clip
from transformers import CLIPVisionModel, SiglipVisionModel, ViTModel

from dpdmd import config, export, generate
from dpdmd.evaluation.scorers import check_scorer_contents
from dpdmd.methods.perceptual import check_perceptual_contents
from dpdmd.methods.perceptual_files import IMAGENET_VGG, PERCEPTUAL_FILES
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.training import preflight

pytestmark = pytest.mark.usefixtures("no_model_loads")
ENTRIES = {  # folder -> its flags
    "clip": ("clip_path", "clip_score_path"),
    "pickscore": ("pick_model_path", "pick_processor_path"),
    "dinov2": ("dino_path",),
}


@pytest.fixture
def copies(tiny_scorers, tmp_path) -> Path:
    """Return copies of the scorers' folders for a test to damage."""
    root = Path(tiny_scorers["clip_path"]).parent
    return Path(shutil.copytree(root, tmp_path / "scorers"))


def _flags(copies: Path, folder: str) -> dict[str, str]:
    if folder == "ImageReward":
        place = copies / folder
        return {
            "--ir_model_path": str(place / "ImageReward.pt"),
            "--ir_med_config": str(place / "med_config.json"),
        }
    return {f"--{flag}": str(copies / folder) for flag in ENTRIES[folder]}


@pytest.mark.parametrize(
    ("folder", "file", "content", "says"),
    [
        (
            "clip",
            "tokenizer.json",
            b"no",
            "--clip_path TMP/scorers/clip: TMP/scorers/clip/tokenizer.json cannot be read",
        ),
        (
            "clip",
            "tokenizer.json",
            b"{}",
            "--clip_score_path TMP/scorers/clip: TMP/scorers/clip does not load as a Auto",
        ),
        ("clip", "processor_config.json", b"", "clip/processor_config.json cannot be read as JSON"),
        ("clip", "processor_config.json", b"{}", "does not load as an image's processor"),
        ("clip", "config.json", b"{}", "its weights lack"),
        (
            "pickscore",
            "tokenizer.json",
            b"{}",
            "--pick_model_path TMP/scorers/pickscore: TMP/scorers/pickscore does not",
        ),
        ("pickscore", "processor_config.json", b"[", "--pick_processor_path TMP/scorers/pickscore: TMP/scorers/pick"),
        (
            "dinov2",
            "preprocessor_config.json",
            b"[]",
            "--dino_path TMP/scorers/dinov2: TMP/scorers/dinov2 does not load",
        ),
        ("dinov2", "config.json", b"{}", "does not describe a AutoModel"),
        ("ImageReward", "med_config.json", b"{}", "med_config.json lacks 'num_attention_heads'"),
        (
            "ImageReward",
            "med_config.json",
            b'{"num_attention_heads": "12"}',
            "ImageReward.pt is no whole ImageReward (its med_config.json does not describe a text encoder (Strict",
        ),
        ("ImageReward", "tokenizer.json", b"{}", "does not load as a BertTokenizer"),
        ("ImageReward", "ImageReward.pt", b"\x80\x04x", "--ir_model_path TMP/scorers/ImageReward/ImageReward.pt: TMP/"),
    ],
)
def test_a_scorers_wrong_file_is_named(refused, copies, tmp_path, folder, file, content, says):
    (copies / folder / file).write_bytes(content)
    line = refused(_flags(copies, folder))
    assert says in line.replace(str(tmp_path), "TMP") and "get it from https://huggingface.co/" in line


@pytest.mark.parametrize("change", [-3, 1])
def test_a_tokenizer_of_another_bert(refused, copies, change):
    """A larger one would fail at the first prompt that has its tokens, a smaller one would give wrong scores."""
    file = copies / "ImageReward" / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    count = len(words)
    if change > 0:
        words["zebra"] = count
    content["model"]["vocab"] = {word: number for word, number in words.items() if number < count + change}
    file.write_text(json.dumps(content))
    line = refused(_flags(copies, "ImageReward"))
    assert line.startswith("--ir_tokenizer_path ")
    assert f"its tokenizer has {count + change} tokens, but the network {count}: another model's?" in line


def test_a_truncated_imagereward(refused, copies):
    path = copies / "ImageReward" / "ImageReward.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "ImageReward.pt is no checkpoint" in refused(_flags(copies, "ImageReward"))


def test_an_imagereward_with_other_weights(refused, copies):
    path = copies / "ImageReward" / "ImageReward.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if not name.startswith("mlp.")}, path)
    line = refused(_flags(copies, "ImageReward"))
    assert "ImageReward.pt" in line and "--ir_model_path" in line
    torch.save({"weight": torch.zeros(2)}, path)
    assert "unknown weight weight" in refused(_flags(copies, "ImageReward"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "open_clip/open_clip_model.safetensors is missing; get it from"),
        (b"version https://git-lfs.github.com/spec/v1", "open_clip_pytorch_model.bin is no torch checkpoint"),
        ({"ln_final.weight": torch.zeros(32)}, "does not load as an OpenCLIP model (RuntimeError: Error(s) in loading"),
    ],
)
def test_an_open_clip_without_its_weights(refused, tmp_path, content, says):
    """OpenCLIP itself would take random numbers, with a warning."""
    folder = tmp_path / "open_clip"
    save_open_clip(folder)
    weights = folder / "open_clip_pytorch_model.bin"
    if content is None:
        weights.unlink()
    elif isinstance(content, bytes):
        weights.write_bytes(content)
    else:
        torch.save(content, weights)
    line = refused({"--clip_path": str(folder)})
    assert line.startswith(f"--clip_path {folder}: ") and says in line


@pytest.mark.parametrize("folder", ["clip", "pickscore", "dinov2"])
def test_a_missing_weight_of_a_scorer_is_named(refused, copies, folder):
    file = copies / folder / "model.safetensors"
    weights = load_file(file)
    missing = next(name for name in weights if "layernorm" in name or "norm" in name)
    save_file({name: value for name, value in weights.items() if name != missing}, file)
    line = refused(_flags(copies, folder))
    assert f"its weights lack {missing}" in line


def test_a_tokenizer_with_more_tokens_than_the_network(refused, copies):
    """The last tokens have no row in the embedding table, which an evaluation would find out late."""
    path = copies / "clip" / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary.update({f"more{number}": len(vocabulary) + number for number in range(500)})
    path.write_text(json.dumps(values))
    assert "its tokenizer has" in refused(_flags(copies, "clip"))


def test_whole_scorers_pass(flags, tiny_scorers):
    words = [word for pair in flags.items() for word in pair]
    scorers = [word for flag, path in tiny_scorers.items() for word in (f"--{flag}", path)]
    setup = preflight.check(config.parse([*words, *scorers, "--report_to", "none"]))
    assert set(setup.evaluation.paths) == {"div_clip", "div_dino", "pickscore", "imagereward", "clip_score"}
    check_scorer_contents(setup.evaluation.paths)
    check_perceptual_contents("dino", Path(tiny_scorers["dino_path"]))


@pytest.mark.parametrize(("kind", "fits"), [(CLIPVisionModel, False), (SiglipVisionModel, False), (ViTModel, True)])
def test_another_image_encoder_is_no_dino(copies, tmp_path, kind, fits):
    """But the first DINO is a plain ViT."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind(kind.config_class(**sizes, image_size=64, patch_size=32)).save_pretrained(copies / "dinov2")
    with nullcontext() if fits else pytest.raises(ValueError, match=r"^--dino_path .*, but a DINO is needed"):
        check_scorer_contents({"div_dino": {"dino_path": copies / "dinov2"}})


def test_a_network_without_the_layers_of_a_dino_is_no_perceptual_distance(tiny_scorers):
    with pytest.raises(ValueError, match=r"^--perceptual_path .*config.json is of a clip, but a DINO is needed"):
        check_perceptual_contents("dino", Path(tiny_scorers["clip_path"]))


def test_perceptual_files_are_checked(tmp_path):
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"--perceptual_path .*vgg16-397923af.pth is no checkpoint"):
        check_perceptual_contents("lpips", tmp_path)


def test_a_missing_package_is_reported_before_anything_loads(tmp_path, monkeypatch):
    for name in ("lpips", "dists", "maniqa"):
        monkeypatch.setitem(sys.modules, f"pyiqa.archs.{name}_arch", None)
    for file in (IMAGENET_VGG, *PERCEPTUAL_FILES.values(), "maniqa.pth"):
        torch.save({}, tmp_path / file)
    for name in ("lpips", "dists"):
        with pytest.raises(ValueError, match=rf"^--perceptual {name}: pip install -e '.\[quality\]' first \("):
            check_perceptual_contents(name, tmp_path)
    with pytest.raises(ValueError, match=r"^--maniqa_path: pip install -e '.\[quality\]' first \("):
        check_scorer_contents({"maniqa": {"maniqa_path": tmp_path / "maniqa.pth"}})


def test_root_programs_check_before_they_load(refused_by, diversity, copies):
    (copies / "dinov2" / "preprocessor_config.json").write_text("{")
    given = [*diversity, "--dino_path", str(copies / "dinov2")]
    line = refused_by("test_diversity.py", program("test_diversity.py"), given)
    assert "--dino_path" in line and "preprocessor_config.json cannot be read as JSON" in line


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"text_encoder_2": "x"}, "says text_encoder_2 is 'x', where a library and a class belong"),
        ("model_index.json", {"text_encoder": [None, None]}, "model_index.json lacks text_encoder"),
        ("model_index.json", {"tokenizer_3": [None, None]}, "lists text_encoder_3, but no tokenizer_3"),
        ("model_index.json", {"tokenizer": ["transformers", None]}, "says tokenizer is ['transformers', None], where"),
        ("vae/config.json", {"scaling_factor": "x"}, "sets scaling_factor 'x', which must be a number"),
        ("vae/config.json", {"scaling_factor": None}, "sets scaling_factor None, which must be a number"),
        ("vae/config.json", {"scaling_factor": 10**400}, "(401 digits), which must be a number"),
        ("vae/config.json", {"shift_factor": 10**400}, "(401 digits), which must be a number"),
        ("scheduler/scheduler_config.json", {"shift": 10**400}, "(401 digits), which must be a number from 0.001"),
        ("vae/config.json", {"shift_factor": "x"}, "sets shift_factor 'x', which must be a number"),
        ("vae/config.json", {"latent_channels": 16}, "its latents have 16 channels, the transformer's"),
        (
            "tokenizer/tokenizer_config.json",
            {"model_max_length": None},
            "sets model_max_length None, but text_encoder has",
        ),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 5}, "has positions for 10 tokens: another model's?"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": -1}, "sets model_max_length -1, but"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 1e30}, "sets model_max_length 1e+30, but"),
        ("tokenizer_2/tokenizer_config.json", {"model_max_length": 77}, "but text_encoder_2 has positions for 10"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "says tokenizer is a CLIPTokenizer"),
        ("tokenizer/tokenizer_config.json", {"pad_token": "<pad>"}, "tokenizer has 177 tokens, but the network 176"),
        (
            "transformer/config.json",
            {"quantization_config": {"load_in_4bit": True}},
            "give the unquantised ones, and --base_",
        ),
        (
            "text_encoder/config.json",
            {"quantization_config": {"load_in_8bit": True}},
            "and --text_encoder_prec",
        ),
        ("text_encoder/config.json", {"num_hidden_layers": 1}, "layers.1.layer_norm1.bias (and 15 more), for which"),
        ("text_encoder_3/config.json", {"num_layers": 1}, "hold encoder.block.1."),
        ("vae/config.json", {"layers_per_block": 0}, "for which its config.json has no place"),
        ("transformer/config.json", {"num_layers": "2"}, "blocks, its config.json '2', which must be a number without"),
        ("transformer/config.json", {"sample_size": -8}, "sets sample_size -8, which must be a number above 0"),
        ("transformer/config.json", {"dual_attention_layers": "x"}, "holds an unexpected value (TypeError: "),
    ],
)
def test_a_wrong_value_in_a_models_folder(refused, broken, file, changes, says):
    """Without the check, each value is first read when a prompt is encoded, an image decoded or a call counted."""
    path = broken / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert says in refused({"--teacher_id": str(broken)})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 4, "sigmas": [2.0, 1.0, 0.5, 0.2, 0]}, "the sigmas of its dpdmd.json must start at 1 and fall"),
        ({"steps": 2, "sigmas": [0.9, 0.5, 0]}, "the sigmas of its dpdmd.json must start at 1 and fall"),
        ({"height": 65}, "height 65 in its dpdmd.json must be a multiple of"),
        ({"width": 100_000}, "width 100000 in its dpdmd.json is too large; this model has positions for"),
        ({"max_sequence_length": 100_000}, "max_sequence_length is 100000 by its dpdmd.json"),
    ],
)
def test_a_wrong_value_of_a_dpdmd_json_names_no_flag_that_was_not_given(refused_by, broken, tmp_path, values, says):
    SamplingDefaults(**values).write(broken)
    given = ["--model", str(broken), "--out", str(tmp_path / "out"), "--prompt", "a"]
    line = refused_by("dpdmd.generate", generate.main, given)
    assert says in line and str(broken) in line and not line.startswith(("--height", "--width", "--max_sequence"))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_3"])
def test_quantised_weights_are_an_error(refused, broken, part):
    (file,) = (broken / part).glob("*.safetensors")
    rewrite_weights(file, lambda weights: weights.update({name: each.to(torch.int8) for name, each in weights.items()}))
    line = refused({"--teacher_id": str(broken)})
    assert line.startswith(f"--teacher_id {broken}: {file} holds ") and "as I8; its weights must be in fp32" in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda placed: placed.pop("patched"),
            "no file has patched, but it is in SHARD; get the index of these shards",
        ),
        (lambda placed: placed.update(patched="SHARD", more="SHARD"), "more is in SHARD, but no shard has it; get the"),
    ],
)
def test_an_index_of_other_shards_is_an_error(refused, broken, change, says):
    """diffusers would load the network without a weight, or look for one that is not there."""
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    file = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    patched = sorted(weights)[0]
    save_file(weights, file.with_name(shard), {"format": "pt"})
    file.unlink()
    placed = dict.fromkeys(["patched", *sorted(weights)[1:]], shard)
    change(placed)
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"weight_map": placed}).replace("patched", patched).replace("SHARD", shard))
    says = says.replace("patched", patched).replace("SHARD", shard)
    assert f"--teacher_id {broken}: by {index}, {says}" in refused({"--teacher_id": str(broken)})


@pytest.mark.parametrize("part", ["", "_2", "_3"])
def test_a_token_beyond_the_text_encoders_table_is_an_error(refused, broken, part):
    """The first prompt with this token would end in an IndexError."""
    path = broken / f"tokenizer{part}" / "tokenizer.json"
    values = json.loads(path.read_text())
    token = {"content": "red", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    values["added_tokens"].append({"id": 99_999, "special": False, **token})
    vocabulary = values["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary["red"] = 99_999
    path.write_text(json.dumps(values))
    assert f"{path.parent}: its tokenizer has" in refused({"--teacher_id": str(broken)})


@pytest.mark.parametrize(
    ("flag", "folder", "says"),
    [
        ("--dino_path", "clip", "clip/config.json is of a clip, but a DINO is needed"),
        ("--clip_path", "dinov2", "its weights lack"),
    ],
)
def test_a_scorer_that_is_another_model(refused, copies, flag, folder, says):
    assert says in refused({flag: str(copies / folder)})


def test_a_student_of_another_model_is_reported_before_its_base_loads(refused_by, tiny_pipeline, tmp_path):
    weights = load_file(tiny_pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    given = ["--base_model", str(tiny_pipeline), "--out", str(tmp_path / "out"), "--prompt", "a"]

    def error(state: dict) -> str:
        torch.save(state, tmp_path / "student.pt")
        command = ["--model", str(tmp_path / "student.pt"), *given]
        assert refused_by("dpdmd.export", export.main, command[:-2])
        return refused_by("dpdmd.generate", generate.main, command)

    assert "proj_out.weight has shape (4, 4)" in error({**weights, "proj_out.weight": torch.zeros(4, 4)})
    assert "lack proj_out.weight" in error({n: v for n, v in weights.items() if n != "proj_out.weight"})
    assert "hold more" in error({**weights, "more": torch.zeros(2)})
    nested = f"--model {tmp_path / 'student.pt'} is no state dict, but holds 'generator'"
    optimizer = {"state": {}, "param_groups": []}
    parts = {"step": 3, "optimizer": optimizer, "generator": weights}
    assert error(parts) == f"{nested}: save that part alone"
    (tmp_path / "student.pt").write_bytes(b"PK\x03\x04")
    command = ["--model", str(tmp_path / "student.pt"), *given]
    line = refused_by("dpdmd.generate", generate.main, command)
    assert "is no checkpoint" in line


def test_a_run_in_place_of_the_base_is_named(refused_by, tiny_pipeline, tmp_path):
    student = tmp_path / "run" / "ckpts" / "step_000002" / "student"
    shutil.copytree(tiny_pipeline, student)
    network = tiny_pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    command = ["--model", str(network), "--base_model", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    says = f"--base_model {tmp_path / 'run'}: is a run or a checkpoint; give the model in it, {student}"
    assert refused_by("dpdmd.export", export.main, command) == says
    assert refused_by("dpdmd.generate", generate.main, [*command, "--prompt", "a"]) == says


TO_Q = "transformer_blocks.0.attn.to_q"
PAIR = {"lora_A.weight": (2, 32), "lora_B.weight": (32, 2)}


def _lora(prefix: str = "transformer.", **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    pair = PAIR | {f"{half}.weight": shape for half, shape in shapes.items()}
    return {f"{prefix}{TO_Q}.{half}": torch.zeros(shape) for half, shape in pair.items()}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "pytorch_lora_weights.safetensors holds no tensor"),
        (_lora(prefix=""), f"holds {TO_Q}.lora_A.weight, but all names of this network's LoRA begin with 'transformer"),
        (_lora() | _lora(prefix="text_encoder."), "holds text_encoder.transformer_blocks.0.attn.to_q.lora_"),
        (_lora(prefix="unet."), "holds unet."),
        (_lora(prefix="base_model.model."), "holds base_model.model."),
        ({"lora_unet_a.lora_down.weight": torch.zeros(2, 32)}, "holds lora_unet_a.lora_down.weight"),
        ({"transformer.a.lora_A.weight": torch.zeros(2, 32)}, "changes a, which the network does not have"),
        (dict(list(_lora().items())[:1]), f"lacks transformer.{TO_Q}.lora_B.weight"),
        (dict(list(_lora().items())[1:]), f"lacks transformer.{TO_Q}.lora_A.weight"),
        (_lora(lora_A=(2, 99)), f"{TO_Q} has 32 inputs, and it 99"),
        (_lora(lora_B=(99, 2)), f"{TO_Q} has 32 outputs, and it 99"),
        (_lora(lora_B=(32, 4)), f"{TO_Q} has lora_A of rank 2 and lora_B of rank 4"),
        ({name: each.to(torch.int8) for name, each in _lora().items()}, "as I8; its weights must be in fp32"),
        (
            _lora() | {f"transformer.{TO_Q}.dora_scale": torch.ones(32)},
            f"{TO_Q}.dora_scale, part of a DoRA that diffus",
        ),
        (_lora(lora_A=(32,)), f"{TO_Q} has a weight of 2 dimensions, and it 1 and 2"),
    ],
)
def test_a_lora_that_does_not_fit_is_reported_before_its_base_loads(refused_by, tiny_pipeline, tmp_path, state, says):
    (tmp_path / "lora").mkdir()
    save_file(state, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    given = ["--model", str(tmp_path / "lora"), "--base_model", str(tiny_pipeline), "--out", str(tmp_path / "out")]
    assert says in refused_by("dpdmd.export", export.main, given)
    assert says in refused_by("dpdmd.generate", generate.main, [*given, "--prompt", "a"])


def test_a_lora_in_kohyas_layout_is_no_lora_without_its_alphas(refused_by, tiny_sdxl, tmp_path):
    """diffusers returns the alphas beside the weights."""
    (tmp_path / "lora").mkdir()
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    state = {f"{layer}.lora_down.weight": torch.zeros(2, 32), f"{layer}.lora_up.weight": torch.zeros(32, 2)}
    save_file(state | {f"{layer}.alpha": torch.tensor(1.0)}, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    given = ["--model", str(tmp_path / "lora"), "--base_model", str(tiny_sdxl), "--out", str(tmp_path / "out")]
    assert "is in kohya's layout" in refused_by("dpdmd.export", export.main, given)


def test_a_prompt_of_invisible_characters_is_empty(refused_by, tiny_pipeline, tmp_path):
    given = ["--model", str(tiny_pipeline), "--out", str(tmp_path / "out"), "--prompt", "\u200b"]
    line = refused_by("dpdmd.generate", generate.main, given)
    assert line == "--prompt: is empty"
