"""Folder layout, shapes and noise schedule of Stable Diffusion XL."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpdmd.config.variants import SDXL_V
from dpdmd.models.comfyui_workflow import ComfyUINames
from dpdmd.models.counted_memory import count_calls_of
from dpdmd.models.discrete_schedule import SPACINGS, DiscreteSchedule, EpsilonSchedule, VPredictionSchedule
from dpdmd.models.layout import Layout, clip_tokens, read_scheduler_config
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.sdxl.official import OFFICIAL, OTHERS
from dpdmd.models.weight_files import Shape


def _shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    if config.get("time_cond_proj_dim") is not None:
        raise ValueError("time_cond_proj_dim: a network that embeds the guidance scale, as LCMs do, is not supported")
    first, last = config["block_out_channels"][0], config["block_out_channels"][-1]
    return {
        "conv_in.weight": (first, config["in_channels"], 3, 3),
        "add_embedding.linear_1.weight": (4 * first, config["projection_class_embeddings_input_dim"]),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (last, config["cross_attention_dim"]),
        "conv_out.weight": (config["out_channels"], first, 3, 3),
    }


def _blocks(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the lists of transformer blocks in the order of the network's modules: down, up, middle."""
    down, up = config["down_block_types"], config["up_block_types"]
    blocks = _by_level(config["transformer_layers_per_block"], len(down))
    attentions = _by_level(config["layers_per_block"], len(down))
    lists = {}
    for level, kind in enumerate(down):
        if "CrossAttn" in kind:
            for index in range(attentions[level]):
                lists[f"down_blocks.{level}.attentions.{index}.transformer_blocks."] = blocks[level]
    for level, kind in enumerate(up):
        if "CrossAttn" in kind:
            for index in range(attentions[-1 - level] + 1):
                lists[f"up_blocks.{level}.attentions.{index}.transformer_blocks."] = blocks[-1 - level]
    return {**lists, "mid_block.attentions.0.transformer_blocks.": blocks[-1]}


def _by_level(value: int | list[int], levels: int) -> list[int]:
    """Return an entry of the configuration that has one number, or one a level, as one a level."""
    return [value] * levels if isinstance(value, int) else value


def _text_widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the widths of the context and of the pooled vector; six embedded numbers about the size follow it."""
    sizes = 6 * config["addition_time_embed_dim"]
    return config["cross_attention_dim"], config["projection_class_embeddings_input_dim"] - sizes


def _encoder_widths(encoders: Mapping[str, Any]) -> tuple[int, int]:
    """Return the widths of the context, both encoders beside each other, and of the second one's pooled vector."""
    first, second = encoders["text_encoder"], encoders["text_encoder_2"]
    return first.hidden_size + second.hidden_size, second.projection_dim


_EULER_DEFAULTS = {  # diffusers' values for what the file does not set
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "final_sigmas_type": "zero",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "rescale_betas_zero_snr": False,
}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_CHOICES: dict[str, tuple[Any, ...]] = {  # values that the schedules reproduce, the base model's first
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": SPACINGS,
    "steps_offset": (1, 0),
    "rescale_betas_zero_snr": (False, True),
}
_SCHEDULES = {"epsilon": EpsilonSchedule, "v_prediction": VPredictionSchedule}
SCHEDULE = EpsilonSchedule(**_BETAS, steps_offset=1)  # the base model's


def read_schedule(folder: Path) -> DiscreteSchedule:
    """Return the schedule of an EulerDiscreteScheduler with SDXL's betas, for networks that predict eps or v.

    Raises:
        ValueError: the scheduler is of another class, has values that no schedule reproduces, or combines epsilon with
            zero terminal SNR, where the noise does not determine x0.
    """
    path, config = read_scheduler_config(folder, "EulerDiscreteScheduler")
    found = {**_EULER_DEFAULTS, **config}
    wanted = {name: (value,) for name, value in _EULER_DEFAULTS.items()}
    wanted |= {"beta_schedule": ("scaled_linear",), **{name: (value,) for name, value in _BETAS.items()}, **_CHOICES}
    other = [
        name for name, values in wanted.items() if (found[name] or False) not in [each or False for each in values]
    ]
    if other:
        values = ", ".join(
            f"{name} {found[name]!r} in place of {' or '.join(repr(each) for each in wanted[name])}" for name in other
        )
        raise ValueError(f"{path} sets {values}, which this family does not use")
    zero_snr, prediction = bool(found["rescale_betas_zero_snr"]), found["prediction_type"]
    if zero_snr and prediction == "epsilon":
        raise ValueError(
            f"{path} sets rescale_betas_zero_snr with prediction_type 'epsilon': where there is no signal, the noise "
            "says nothing about the image; set prediction_type 'v_prediction' if the network predicts v"
        )
    offset, spacing = int(found["steps_offset"] or 0), found["timestep_spacing"]
    return _SCHEDULES[prediction](**_BETAS, steps_offset=offset, spacing=spacing, zero_snr=zero_snr)


def _kohya_name(name: str) -> str:
    """Return ComfyUI's name of a UNet weight: unet.x.lora_A.weight -> lora_unet_x.lora_down.weight, dots as _."""
    for ending, theirs in ((".lora_A.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_up.weight")):
        if name.endswith(ending):
            return f"lora_{name.removesuffix(ending).replace('.', '_')}{theirs}"
    return f"lora_{name.removesuffix('.alpha').replace('.', '_')}.alpha"


LAYOUT = Layout(
    pipeline="StableDiffusionXLPipeline",
    network="unet",
    classes={
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
    repository="stabilityai/stable-diffusion-xl-base-1.0",
    licence={"license": "openrail++"},
    official=OFFICIAL,
    other_official=OTHERS,
    shapes=_shapes,
    blocks=_blocks,
    latents=lambda _: (1, math.inf),
    required=("vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    read_schedule=read_schedule,
    defaults=SamplingDefaults(steps=50, guidance_scale=8.0, max_sequence_length=77),
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"),
    text_widths=_text_widths,
    encoder_widths=_encoder_widths,
    fixed_text_length=True,
    vae_factor=8,
    text_tokens=lambda folder, _: clip_tokens(folder, 77),
    call_memory=count_calls_of("sdxl"),
    comfyui_name=_kohya_name,
    comfyui=ComfyUINames(
        checkpoint="sd_xl_base_1.0.safetensors",
        other_checkpoints={SDXL_V: "NoobAI-XL-Vpred-v1.0.safetensors"},
        zeros_for_empty_prompt=True,
    ),
)
