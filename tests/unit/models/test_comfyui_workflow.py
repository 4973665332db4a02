"""The ComfyUI workflow: its nodes and links against ComfyUI's public source, and the values that decide an image."""

import json
import re

import pytest
import torch

from dpdmd.models.comfyui_workflow import WORKFLOW, build_workflow, write_workflow
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import SamplingDefaults

# Node -> (input -> type, types of its outputs), as in ComfyUI's nodes.py and comfy_extras/nodes_*.py (November 2026).
NODES = {
    "CheckpointLoaderSimple": ({"ckpt_name": str}, ("MODEL", "CLIP", "VAE")),
    "LoraLoaderModelOnly": ({"model": "MODEL", "lora_name": str, "strength_model": float}, ("MODEL",)),
    "TripleCLIPLoader": ({"clip_name1": str, "clip_name2": str, "clip_name3": str}, ("CLIP",)),
    "DualCLIPLoader": ({"clip_name1": str, "clip_name2": str, "type": str}, ("CLIP",)),
    "T5TokenizerOptions": ({"clip": "CLIP", "min_padding": int, "min_length": int}, ("CLIP",)),
    "CLIPTextEncode": ({"text": str, "clip": "CLIP"}, ("CONDITIONING",)),
    "ConditioningZeroOut": ({"conditioning": "CONDITIONING"}, ("CONDITIONING",)),
    "EmptySD3LatentImage": ({"width": int, "height": int, "batch_size": int}, ("LATENT",)),
    "EmptyLatentImage": ({"width": int, "height": int, "batch_size": int}, ("LATENT",)),
    "ManualSigmas": ({"sigmas": str}, ("SIGMAS",)),
    "KSamplerSelect": ({"sampler_name": str}, ("SAMPLER",)),
    "SamplerCustom": (
        {
            "model": "MODEL",
            "add_noise": bool,
            "noise_seed": int,
            "cfg": float,
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "sampler": "SAMPLER",
            "sigmas": "SIGMAS",
            "latent_image": "LATENT",
        },
        ("LATENT", "LATENT"),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": str}, ()),
}
STUDENT = SamplingDefaults(steps=4, guidance_scale=1.0, max_sequence_length=256)
SIGMAS = [1.0, 0.8600000143051147, 0.6000000238418579, 0.30000001192092896, 0.0]
LORA, WHOLE = {"lora": "student.safetensors"}, {"checkpoint": "student.safetensors"}


def workflow(family="sd35", defaults=STUDENT, sigmas=SIGMAS, size=(768, 1024), **files):
    names = LAYOUTS[family].comfyui
    return build_workflow(names, defaults, sigmas, size, **files)


def node(nodes, kind):
    """Return the inputs of the only node of a kind."""
    (found,) = [each["inputs"] for each in nodes.values() if each["class_type"] == kind]
    return found


def kinds(nodes):
    return [each["class_type"] for each in nodes.values()]


@pytest.mark.parametrize("family", [name for name, layout in LAYOUTS.items() if layout.comfyui])
@pytest.mark.parametrize("files", [LORA, WHOLE])
@pytest.mark.parametrize("no_t5", [False, True])
def test_every_input_and_link_is_of_its_nodes_type(family, files, no_t5):
    nodes = workflow(family, SamplingDefaults(4, 1.0, 77, no_t5=no_t5), **files)
    used = set()
    for each in nodes.values():
        inputs, _ = NODES[each["class_type"]]
        assert each["inputs"].keys() == inputs.keys()
        for name, value in each["inputs"].items():
            if isinstance(value, list):
                source, output = value
                assert NODES[nodes[source]["class_type"]][1][output] == inputs[name]
                used.add(source)
            else:
                assert type(value) is inputs[name], name
    last = [number for number, each in nodes.items() if each["class_type"] == "SaveImage"]
    assert used | set(last) == nodes.keys()  # every node leads to the image


def test_a_lora_of_sd35():
    nodes = workflow(**LORA)
    assert node(nodes, "CheckpointLoaderSimple")["ckpt_name"] == "sd3.5_medium.safetensors"
    assert node(nodes, "LoraLoaderModelOnly")["lora_name"] == "student.safetensors"
    assert node(nodes, "TripleCLIPLoader")["clip_name3"].startswith("t5xxl")
    assert node(nodes, "T5TokenizerOptions")["min_length"] == 256
    assert node(nodes, "EmptySD3LatentImage") == {"width": 1024, "height": 768, "batch_size": 1}
    sampler = node(nodes, "SamplerCustom")
    assert sampler["cfg"] == 1.0 and node(nodes, "KSamplerSelect")["sampler_name"] == "euler"
    assert nodes[sampler["model"][0]]["class_type"] == "LoraLoaderModelOnly"
    assert nodes[sampler["positive"][0]]["inputs"]["text"] and nodes[sampler["negative"][0]]["inputs"]["text"] == ""


def test_no_t5_and_sdxl():
    nodes = workflow(defaults=SamplingDefaults(4, 1.0, 256, no_t5=True), **LORA)
    assert node(nodes, "DualCLIPLoader")["type"] == "sd3" and "T5TokenizerOptions" not in kinds(nodes)
    nodes = workflow("sdxl", **LORA)
    assert node(nodes, "CheckpointLoaderSimple")["ckpt_name"] == "sd_xl_base_1.0.safetensors"
    assert not {"TripleCLIPLoader", "DualCLIPLoader", "T5TokenizerOptions"} & set(kinds(nodes))
    assert "EmptyLatentImage" in kinds(nodes) and "ConditioningZeroOut" in kinds(nodes)


@pytest.mark.parametrize("family", ["sd35", "sdxl"])
def test_a_whole_student_needs_no_other_file(family):
    nodes = workflow(family, **WHOLE)
    files = [
        value for each in nodes.values() for value in each["inputs"].values() if str(value).endswith("safetensors")
    ]
    assert files == ["student.safetensors"]


@pytest.mark.parametrize(
    "sigmas",
    [
        SIGMAS,
        torch.tensor([14.614641189575195, 4.0816, 1.6156, 0.029167, 0.0]).tolist(),
        torch.tensor([1.0, 1e-5, 1e-7, 0.0]).tolist(),
        torch.linspace(1, 0, 51).square().tolist(),
    ],
)
def test_the_grid_is_read_back_exactly(sigmas):
    """`ManualSigmas` takes every plain decimal of the text, and would read 1e-05 as 1 and -05."""
    text = node(workflow(sigmas=sigmas, **LORA), "ManualSigmas")["sigmas"]
    read = [float(number) for number in re.findall(r"[-+]?\d*\.?\d+", text)]
    assert torch.equal(torch.tensor(read), torch.tensor(sigmas)) and "e" not in text


def test_a_lora_is_put_on_the_model_that_it_was_trained_on(tmp_path):
    """A network that predicts v has the shapes of one that predicts noise: the wrong file would load."""
    for part in ("scheduler", "transformer"):
        (tmp_path / part).mkdir()
    names = {family: LAYOUTS[family].comfyui for family in ("sd35", "sdxl")}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    (tmp_path / "transformer" / "config.json").write_text('{"qk_norm": "rms_norm"}')
    assert names["sdxl"].for_base(tmp_path).checkpoint == "NoobAI-XL-Vpred-v1.0.safetensors"
    assert names["sd35"].for_base(tmp_path).checkpoint == "sd3.5_large.safetensors"
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    (tmp_path / "transformer" / "config.json").write_text('{"dual_attention_layers": [0], "qk_norm": "rms_norm"}')
    assert all(each.for_base(tmp_path) == each for each in names.values())


def test_the_file(tmp_path):
    nodes = workflow(**LORA)
    write_workflow(tmp_path, nodes)
    assert json.loads((tmp_path / WORKFLOW).read_text()) == nodes
