"""`dpdmd.export`: types of the weights, single files in the original layouts, and how much memory it takes."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import build_sd35_pipeline, build_sdxl_pipeline, build_zimage_pipeline
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from dpdmd import export
from dpdmd.models.comfyui_workflow import WORKFLOW
from dpdmd.models.registry import LAYOUTS
from dpdmd.report.card_facts import CARD
from dpdmd.report.model_card import rename

NETWORKS = {name: layout.network for name, layout in LAYOUTS.items()}
PIPELINES = {"sd35": StableDiffusion3Pipeline, "sdxl": StableDiffusionXLPipeline, "zimage": ZImagePipeline}
# Names in Stability's sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors and sd_xl_base_1.0.safetensors, and those that
# ComfyUI expects of a Z-Image checkpoint (`Lumina2` and `ZImage` in its supported_models.py).
OFFICIAL = {
    "sd35": [
        "model.diffusion_model.pos_embed",
        "model.diffusion_model.x_embedder.proj.weight",
        "model.diffusion_model.t_embedder.mlp.0.weight",
        "model.diffusion_model.y_embedder.mlp.2.bias",
        "model.diffusion_model.context_embedder.weight",
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
        "model.diffusion_model.joint_blocks.0.x_block.attn.ln_q.weight",
        "model.diffusion_model.joint_blocks.0.x_block.attn2.qkv.bias",
        "model.diffusion_model.joint_blocks.0.x_block.attn2.proj.weight",
        "model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight",
        "model.diffusion_model.joint_blocks.0.x_block.adaLN_modulation.1.weight",
        "model.diffusion_model.joint_blocks.0.context_block.attn.proj.weight",
        "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight",
        "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias",
        "model.diffusion_model.final_layer.linear.weight",
        "model.diffusion_model.final_layer.adaLN_modulation.1.weight",
        "first_stage_model.decoder.up.0.block.0.conv1.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight",
        "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "text_encoders.clip_g.transformer.text_projection.weight",
        "text_encoders.t5xxl.transformer.shared.weight",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight",
    ],
    "sdxl": [
        "model.diffusion_model.time_embed.0.weight",
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight",
        "model.diffusion_model.input_blocks.1.0.emb_layers.1.bias",
        "model.diffusion_model.input_blocks.2.0.op.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight",
        "model.diffusion_model.output_blocks.0.0.skip_connection.weight",
        "model.diffusion_model.output_blocks.1.2.conv.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.quant_conv.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_proj.bias",
        "conditioner.embedders.1.model.positional_embedding",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.ln_final.weight",
    ],
    "zimage": [
        "model.diffusion_model.x_embedder.weight",
        "model.diffusion_model.t_embedder.mlp.0.weight",
        "model.diffusion_model.cap_embedder.0.weight",
        "model.diffusion_model.cap_pad_token",
        "model.diffusion_model.noise_refiner.0.attention.qkv.weight",
        "model.diffusion_model.context_refiner.0.attention.q_norm.weight",
        "model.diffusion_model.layers.0.attention.out.weight",
        "model.diffusion_model.layers.0.adaLN_modulation.0.weight",
        "model.diffusion_model.layers.0.feed_forward.w1.weight",
        "model.diffusion_model.final_layer.linear.weight",
        "vae.decoder.up.1.upsample.conv.weight",
        "text_encoders.qwen3_4b.transformer.model.embed_tokens.weight",
        "text_encoders.qwen3_4b.transformer.model.layers.0.self_attn.q_proj.weight",
    ],
}


def widened(encoder: CLIPTextModelWithProjection, width: int) -> CLIPTextModelWithProjection:
    """Return a random CLIP of another width: loaders of single files tell the two CLIPs apart by their widths."""
    config = {"hidden_size": width, "projection_dim": width, "intermediate_size": 2 * width}
    return CLIPTextModelWithProjection(CLIPTextConfig(**(encoder.config.to_dict() | config)))


@pytest.fixture(scope="module", params=list(PIPELINES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def official(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small pipeline with the properties of the official ones on which loaders of single files rely."""
    folder = tmp_path_factory.mktemp("official") / family
    if family == "zimage":  # the small one already has them
        build_zimage_pipeline().save_pretrained(folder)
        return folder
    pipe = build_sd35_pipeline() if family == "sd35" else build_sdxl_pipeline()
    width, wider = pipe.text_encoder.config.hidden_size, 2 * pipe.text_encoder.config.hidden_size
    torch.manual_seed(4)
    pipe.register_modules(text_encoder_2=widened(pipe.text_encoder_2, wider))
    network = getattr(pipe, NETWORKS[family])
    if family == "sd35":
        with torch.no_grad():
            pipe.text_encoder.text_projection.weight.copy_(torch.eye(width))
        changed = {"pooled_projection_dim": width + wider}
    else:
        changed = {"cross_attention_dim": width + wider, "projection_class_embeddings_input_dim": 6 * 8 + wider}
    pipe.register_modules(**{NETWORKS[family]: type(network).from_config({**network.config, **changed})})
    pipe.save_pretrained(folder)
    return folder


def image(pipe: DiffusionPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    layout = next(layout for layout in LAYOUTS.values() if layout.pipeline == type(pipe).__name__)
    more = {} if layout.fixed_text_length else {"max_sequence_length": 10}
    noise = torch.Generator().manual_seed(0)
    call = {
        "num_inference_steps": 2,
        "guidance_scale": layout.guidance.off,
        "height": 64,
        "width": 64,
        "output_type": "pt",
    }
    return pipe("a red circle", generator=noise, **call, **more).images


def stored_types(folder: Path) -> dict[str, set[str]]:
    """Return the types of the floating weights in each file of a folder."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        found[str(path.relative_to(folder))] = kinds - {"I64"}
    return found


def test_a_single_file_is_the_same_model(family, official, tmp_path):
    """diffusers' own converters read it: equal weights, and equal images from the settings beside the file."""
    assert export.main(["--model", str(official), "--out", str(tmp_path / "mine"), "--single_file"]) == 0
    path = tmp_path / "mine" / "mine.safetensors"
    assert stored_types(tmp_path / "mine") == {"mine.safetensors": {"F32"}}
    names = set(load_file(path))
    assert not [name for name in OFFICIAL[family] if name not in names]
    ours = PIPELINES[family].from_pretrained(official)
    beside = {name: getattr(ours, name) for name in LAYOUTS[family].beside_single_file}
    config = {"config": str(tmp_path / "mine"), "local_files_only": True}
    theirs = PIPELINES[family].from_single_file(str(path), **config, **beside)
    for component in (NETWORKS[family], "vae", *(name for name in ours.components if name.startswith("text_encoder"))):
        before, after = (getattr(pipe, component).state_dict() for pipe in (ours, theirs))
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(image(theirs), image(ours), rtol=0, atol=1e-5)  # their tensors lie elsewhere in memory
    assert image(ours).std() > 0.05
    if LAYOUTS[family].comfyui is None:
        return
    nodes = json.loads((tmp_path / "mine" / WORKFLOW).read_text()).values()
    inputs = {name: value for node in nodes for name, value in node["inputs"].items()}
    assert inputs["ckpt_name"] == "mine.safetensors" and (inputs["height"], inputs["width"]) == (64, 64)
    assert isinstance(inputs["cfg"], float) and len([n for n in nodes if n["class_type"] == "ManualSigmas"]) == 1


@pytest.mark.parametrize(("zero_snr", "markers"), [(False, {"v_pred"}), (True, {"v_pred", "ztsnr"})])
def test_a_single_file_says_that_its_network_predicts_v(tiny_sdxl, tmp_path, zero_snr, markers):
    """By the empty tensors by which ComfyUI knows it; without them it would take the network for one of noise."""
    folder = Path(shutil.copytree(tiny_sdxl, tmp_path / "student"))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    values = json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_snr}
    scheduler.write_text(json.dumps(values))
    for student, name, found in ((folder, "v", markers), (tiny_sdxl, "eps", set())):
        command = ["--model", str(student), "--out", str(tmp_path / name), "--single_file", "--dtype", "bf16"]
        assert export.main(command) == 0
        state = load_file(tmp_path / name / f"{name}.safetensors")
        assert {each for each, value in state.items() if not value.numel()} == found
    network = UNet2DConditionModel.from_single_file(
        str(tmp_path / "v" / "v.safetensors"), config=str(folder), subfolder="unet"
    )
    assert network.dtype == torch.float32


@pytest.mark.parametrize("on_the_hub", [False, True])
def test_the_code_of_a_single_files_card_samples_the_students_grid(family, official, tmp_path, monkeypatch, on_the_hub):
    student = Path(shutil.copytree(official, tmp_path / "student"))
    sigmas = LAYOUTS[family].read_schedule(official).named_sigmas("trailing", 2)
    off = LAYOUTS[family].guidance.off
    how = {"steps": 2, "guidance_scale": off, "max_sequence_length": 10, "sigmas": sigmas.tolist(), "grid": "trailing"}
    (student / "dpdmd.json").write_text(json.dumps(how | {"height": 64, "width": 64}))
    images = images_of_the_cards(student, tmp_path, monkeypatch, on_the_hub=on_the_hub)
    assert abs(images[0] - images[1]).max() <= 1 and images[0].std() > 5


def images_of_the_cards(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, on_the_hub: bool = False
) -> list[np.ndarray]:
    """Return what the code of the card samples, of the exported folder and of the single file."""
    images = []
    for name, flags in (("whole", []), ("one-file", ["--single_file"])):
        assert export.main(["--model", str(student), "--out", str(tmp_path / name), *flags]) == 0
        if on_the_hub and flags:
            rename(tmp_path / name, name, "lab/fast")
            monkeypatch.setattr("huggingface_hub.snapshot_download", {"lab/fast": str(tmp_path / name)}.__getitem__)
        (code,) = re.findall(r"```python\n(.+?)```", (tmp_path / name / CARD).read_text(), re.DOTALL)
        monkeypatch.chdir(tmp_path)
        torch.manual_seed(0)
        names: dict = {}
        exec(code, names)
        images.append(np.asarray(names["image"]).astype(int))
    return images


@pytest.mark.parametrize("family", ["flux2_klein", "qwen_image"])
def test_a_file_may_hold_the_network_alone(family, tiny_folder, tmp_path, monkeypatch):
    """As in the original files. The code of its card takes all else from the base, but the scheduler."""
    folder, student = tiny_folder(family), tmp_path / "student"
    shutil.copytree(folder, student)
    sigmas = (1.0, 0.7, 0.0)  # numbers, which the scheduler makes without a dynamic shift
    how = {"steps": 2, "guidance_scale": 1.0, "max_sequence_length": 60, "sigmas": sigmas}
    (student / "dpdmd.json").write_text(json.dumps(how | {"height": 64, "width": 64}))
    images = images_of_the_cards(student, tmp_path, monkeypatch)
    assert abs(images[0] - images[1]).max() <= 1 and images[0].std() > 5
    network = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    found = load_file(tmp_path / "one-file" / "one-file.safetensors")
    assert sum(value.numel() for value in found.values()) == sum(value.numel() for value in network.values())
    assert "The file holds the network alone" in (tmp_path / "one-file" / CARD).read_text()


@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize(("dtype", "name"), [("bf16", "BF16"), ("fp16", "F16"), ("fp32", "F32")])
def test_every_weight_has_the_type_that_is_asked_for(family, official, tmp_path, dtype, name, single_file):
    command = ["--model", str(official), "--out", str(tmp_path / "out"), "--dtype", dtype]
    assert export.main([*command, *(["--single_file"] if single_file else [])]) == 0
    types = stored_types(tmp_path / "out")
    assert len(types) == (1 if single_file else len(LAYOUTS[family].classes))
    assert all(kinds == {name} for kinds in types.values())
    if not single_file:
        pipe = PIPELINES[family].from_pretrained(tmp_path / "out")  # without dtype= all parts load in fp32
        reference = image(PIPELINES[family].from_pretrained(official))
        assert (image(pipe) - reference).abs().mean() < 0.02


def test_zimages_file_holds_the_parts_that_diffusers_does_not_find(tiny_folder, tmp_path):
    """Under the names that ComfyUI gives them, with the values of the folder."""
    folder = tiny_folder("zimage")
    assert export.main(["--model", str(folder), "--out", str(tmp_path / "mine"), "--single_file"]) == 0
    found, pipe = load_file(tmp_path / "mine" / "mine.safetensors"), ZImagePipeline.from_pretrained(folder)
    for name, value in pipe.text_encoder.state_dict().items():
        assert torch.equal(found.pop(f"text_encoders.qwen3_4b.transformer.model.{name}"), value)
    vae = {name.removeprefix("vae."): value for name, value in found.items() if name.startswith("vae.")}
    save_file(vae, tmp_path / "vae.safetensors")
    theirs = AutoencoderKL.from_single_file(tmp_path / "vae.safetensors", config=str(folder), subfolder="vae")
    ours = pipe.vae.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())


def test_a_clip_with_a_projection_has_no_place_in_sd3s_file(tiny_pipeline, tmp_path, capsys):
    command = ["--model", str(tiny_pipeline), "--out", str(tmp_path / "out"), "--single_file"]
    assert export.main(command) == 2
    assert "has a text projection, for which SD3's single file has no place" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_loaded_stay_behind(tiny_pipeline, tmp_path):
    """A whole repository has the weights in other formats, too, many times as large, and they are the teacher's."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "teacher"))
    others = ("model.onnx", "model.onnx_data", "openvino_model.xml", "x.ckpt", "model.fp16.safetensors", "flax.msgpack")
    for part in ("transformer", "text_encoder", "vae"):
        for name in others:
            (folder / part / name).write_bytes(b"1")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text("{}")
    for name, flags in (("whole", []), ("bf16", ["--dtype", "bf16"])):
        assert export.main(["--model", str(folder), "--out", str(tmp_path / name), *flags]) == 0
        plain = tmp_path / f"{name}_of_the_plain_one"
        assert export.main(["--model", str(tiny_pipeline), "--out", str(plain), *flags]) == 0
        names = [{str(path.relative_to(place)) for path in place.rglob("*")} for place in (tmp_path / name, plain)]
        assert names[0] == names[1]


def test_a_t5_with_its_table_under_the_other_name_has_a_single_file(tmp_path, official, family):
    """safetensors keeps the first of the names of a shared tensor."""
    if family != "sd35":
        pytest.skip("has no T5")
    folder = Path(shutil.copytree(official, tmp_path / "other"))
    path = folder / "text_encoder_3" / "model.safetensors"
    state = load_file(path)
    state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
    save_file(state, path, {"format": "pt"})
    for name, model in (("one", folder), ("two", official)):
        assert export.main(["--model", str(model), "--out", str(tmp_path / name), "--single_file"]) == 0
    found = [load_file(tmp_path / name / f"{name}.safetensors") for name in ("one", "two")]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_network_with_blocks_by_level_has_no_single_file(tiny_sdxl, tmp_path, capsys):
    folder = Path(shutil.copytree(tiny_sdxl, tmp_path / "model"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["layers_per_block"] = [config["layers_per_block"]] * len(config["block_out_channels"])
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    assert export.main(["--model", str(folder), "--out", str(tmp_path / "whole")]) == 0
    assert export.main(["--model", str(folder), "--out", str(tmp_path / "out"), "--single_file"]) == 2
    assert "for which Stability's layout has no numbers: leave out --single_file" in capsys.readouterr().err


def test_a_folder_of_a_single_file_and_a_file_of_a_lora_are_named(official, family, tmp_path, capsys):
    assert export.main(["--model", str(official), "--out", str(tmp_path / "one"), "--single_file"]) == 0
    assert export.main(["--model", str(tmp_path / "one"), "--out", str(tmp_path / "out")]) == 2
    assert "is an export in a single file, for ComfyUI" in capsys.readouterr().err
    save_file({"transformer.x.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "style.safetensors")
    given = ["--model", str(tmp_path / "style.safetensors"), "--base_model", str(official)]
    assert export.main([*given, "--out", str(tmp_path / "out")]) == 2
    assert "is a LoRA; give its folder, in which the file has the name pytorch_lora" in capsys.readouterr().err
    assert export.main(["--model", str(official), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert f"give the name of a folder, such as {tmp_path / 'x'}" in capsys.readouterr().err


def test_a_family_without_a_single_file_says_so(tiny_folder, tmp_path, capsys):
    command = ["--model", str(tiny_folder("lumina2")), "--out", str(tmp_path / "out"), "--single_file"]
    assert export.main(command) == 2
    says = "--single_file: diffusers reads no Lumina2Pipeline from one file; leave the flag out"
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "flags", "says"),
    [
        (1e6, ["--dtype", "fp16"], "proj_out.bias has values that are infinite in fp16; give --dtype bf16"),
        (float("nan"), [], "/large: proj_out.bias holds a number that is not finite"),
    ],
)
def test_weights_that_are_not_finite_are_an_error(tiny_pipeline, tmp_path, capsys, value, flags, says):
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "large"))
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["proj_out.bias"][0] = value
    save_file(state, path)
    assert export.main(["--model", str(folder), "--out", str(tmp_path / "out"), *flags]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("flags", [[], ["--dtype", "bf16"], ["--single_file"]], ids=["fp32", "bf16", "single file"])
def test_an_export_that_does_not_fit_the_disk_is_an_error_before_it_begins(tiny_sdxl, tmp_path, capsys, flags):
    given = ["--model", str(tiny_sdxl), *flags, "--out"]
    assert export.main([*given, str(tmp_path / "whole")]) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=int(0.8 * size)))
        assert export.main([*given, str(tmp_path / "full")]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert f"--out {tmp_path / 'full'}: " in line and ("or --dtype bf16" in line) == ("--dtype" not in flags)
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=size))
        assert export.main([*given, str(tmp_path / "fits")]) == 0
