"""Which files of a repository a flag needs: whole sets of weights of one variant, and nothing beside them."""

from functools import partial

import pytest

from dpdmd.models.hub_files import folder_files, model_files, network_files, one_file, pipeline_files

INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "feature_extractor": [None, None],
    "force_zeros": True,
}
T5 = [
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
]
FP16 = [
    "config.json",
    "model.safetensors.index.fp16.json",
    *(f"model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)),
]
NEEDED = [
    *("LICENSE.md", "README.md", "model_index.json"),
    *("scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors"),
    *(f"text_encoder_3/{name}" for name in T5),
    *("tokenizer/merges.txt", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json"),
    *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"),
]
# As the repository of SD3.5-Medium has them.
BESIDE = [
    *(".gitattributes", "sd3.5_medium.safetensors", "SD3.5M_example_workflow.json", "mmdit.png"),
    *("text_encoders/clip_g.safetensors", "text_encoder/model.fp16.safetensors"),
    *(f"text_encoder_3/{name}" for name in FP16[1:]),
    "transformer/diffusion_pytorch_model.bin",
    "feature_extractor/preprocessor_config.json",
]


def read(name: str) -> dict:
    assert name == "model_index.json"
    return INDEX


def names_of(files: dict[str, str]) -> list[str]:
    return sorted(files.values())


def test_a_pipelines_own_files_and_no_others():
    assert names_of(pipeline_files([*BESIDE, *NEEDED], read, None)) == sorted(NEEDED)
    without = pipeline_files([*BESIDE, *NEEDED], read, None, without=("text_encoder_3",))
    assert not any("text_encoder_3" in name for name in without)
    network = network_files([*BESIDE, *NEEDED], read, None, component="transformer")
    assert names_of(network) == [
        *("LICENSE.md", "README.md", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors")
    ]


@pytest.mark.parametrize("beside", [True, False])
def test_a_variant_gets_plain_names(beside):
    plain = ["config.json", "model.safetensors"] if beside else ["config.json"]
    names = ["model_index.json", *(f"text_encoder/{name}" for name in (*plain, "model.fp16.safetensors"))]
    names += [f"text_encoder_3/{name}" for name in FP16]
    index = {name: INDEX[name] for name in ("text_encoder", "text_encoder_3")}
    files = pipeline_files(names, lambda _: index, "fp16")
    assert files["text_encoder/model.safetensors"] == "text_encoder/model.fp16.safetensors"
    assert files["text_encoder_3/model.safetensors.index.json"] == "text_encoder_3/model.safetensors.index.fp16.json"
    assert sum(name.startswith("text_encoder_3/model.fp16-") for name in files) == 2 and len(files) == 7


@pytest.mark.parametrize(
    ("names", "variant", "says"),
    [
        (["config.json"], None, "text_encoder has no .safetensors weights"),
        (
            ["config.json", "pytorch_model.bin"],
            None,
            "no .safetensors weights (a pickle, pytorch_model.bin, is not read)",
        ),
        (["config.json", "model.fp16.safetensors"], None, "has its weights only as fp16; give --variant fp16"),
        (FP16, None, "has its weights only as fp16; give --variant fp16"),
        (["config.json", "model-00001-of-00002.fp16.safetensors"], None, "give --variant fp16"),
        (T5, "fp16", "has no weights of --variant fp16 (it has: no variant); leave the flag out"),
        (["config.json"], "fp16", "(it has: none)"),
        (["config.json", "model.bf16.safetensors"], "fp16", "(it has: bf16)"),
        (T5[:3], None, "text_encoder/model.safetensors.index.json is there with 1 of its 2: incomplete"),
        (T5[:2], None, "is there with 0 of its shards: incomplete"),
        ([*T5, "model-00001-of-00003.safetensors"], None, "is there with 3 of its 3: incomplete"),
        (FP16[:3], "fp16", "model.safetensors.index.fp16.json is there with 1 of its 2: incomplete"),
    ],
)
def test_a_mixed_or_incomplete_set_is_an_error(names, variant, says):
    with pytest.raises(ValueError) as error:
        pipeline_files(
            ["model_index.json", *(f"text_encoder/{name}" for name in names)],
            lambda _: {"text_encoder": INDEX["text_encoder"]},
            variant,
        )
    assert says in str(error.value) and str(error.value).startswith("text_encoder")


def test_a_lora_a_scorer_and_a_file():
    lora = ["README.md", "dpdmd.json", "pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json"]
    assert names_of(model_files([*lora, "comfyui_lora.safetensors"], read, "fp16")) == lora
    clip = ["config.json", "merges.txt", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
    others = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "open_clip_model.safetensors", "x/config.json"]
    assert names_of(folder_files([*clip, *others], read, None, weights=True)) == clip
    assert "model.safetensors" not in folder_files([*clip, *others], read, None, weights=False)
    open_clip = ["open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"]
    assert names_of(folder_files([*open_clip, "a.bin"], read, None, weights=True)) == open_clip
    assert one_file([*clip, "a.pth"], read, None, name="a.pth") == {"a.pth": "a.pth"}


@pytest.mark.parametrize(
    ("select", "says"),
    [
        (pipeline_files, "holds no pipeline in the diffusers layout (model_index.json is missing)"),
        (model_files, "holds no pipeline in the diffusers layout"),
        (partial(network_files, component="transformer"), "transformer is missing"),
        (partial(folder_files, weights=True), "config.json is missing"),
        (partial(one_file, name="a.pth"), "a.pth is missing"),
    ],
)
def test_another_kind_of_repository_is_an_error(select, says):
    with pytest.raises(ValueError) as error:
        select(["README.md", "model.ckpt"], read, None)
    assert says in str(error.value)
