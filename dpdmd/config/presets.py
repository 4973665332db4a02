"""Defaults of each family, and the presets of `--preset`.

A preset fits a run of SD3.5-Medium or SDXL at 1024 x 1024 into a GPU of a given size. A larger model has other flags
under the same name (`LARGER_MODELS`), such as a base in int8, or no preset of this size. All presets keep the paper's
global batch of 32 (4 on each of 8 GPUs) by gradient accumulation, compute in bf16, recompute activations and encode
prompts ahead. All in-loop scorers fit as well; 12gb and 16gb have no room for PickScore, whose network takes 3.9 GB
(test_preference.py scores checkpoints later). tests/unit/config/test_presets.py compares the sizes with
`dpdmd.training.memory_estimate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpdmd.config.variants import FLUX2_KLEIN_9B, SD35_LARGE

FAMILIES = {  # family -> defaults that differ from those of the options, which are SD3.5's
    "sd35": {},
    "sdxl": {
        "teacher_id": "weights/stabilityai/stable-diffusion-xl-base-1.0",
        "teacher_infer_steps": 50,
        "teacher_guidance_scale": 8.0,
        "k_anchor": 8,  # the same fraction of 50 steps as 5 of 30
        "student_sigmas": "trailing",
    },
    "zimage": {
        "teacher_id": "weights/Tongyi-MAI/Z-Image",
        "teacher_infer_steps": 50,
        "teacher_guidance_scale": 5.0,
        "k_anchor": 8,  # the same fraction of 50 steps as 5 of 30
    },
    "qwen_image": {
        "teacher_id": "weights/Qwen/Qwen-Image",
        "teacher_infer_steps": 50,
        "teacher_guidance_scale": 4.0,
        "k_anchor": 8,  # the same fraction of 50 steps as 5 of 30
        "student_sigmas": "trailing",  # the default grid ends at 0.02, from where a step changes almost nothing
    },
    "lumina2": {"teacher_id": "weights/Alpha-VLLM/Lumina-Image-2.0", "teacher_guidance_scale": 4.0},
    "flux2_klein": {
        "teacher_id": "weights/black-forest-labs/FLUX.2-klein-base-4B",
        "teacher_infer_steps": 50,
        "teacher_guidance_scale": 4.0,
        "k_anchor": 8,  # the same fraction of 50 steps as 5 of 30
    },
}


def as_typed(values: Mapping[str, Any]) -> str:
    """Return flags and their values as on a command line."""
    return " ".join(f"--{name}" + ("" if value is True else f" {value}") for name, value in values.items())


@dataclass(frozen=True)
class Preset:
    """Flags and their values, for `devices` GPUs of `gigabytes` each."""

    gigabytes: int
    devices: int
    values: dict[str, Any]

    def summary(self) -> str:
        """Return the flags as on a command line."""
        return as_typed(self.values)


_ALWAYS = {"bf16": True, "gradient_checkpointing": True, "cache_text_embeddings": "outputs/text_cache"}
_OFFLOADED = {"offload_scorers": True, "offload_vae": True}
_LORA = {"lora_rank": 64, "lr_student": 1e-4, "lr_fake": 1e-4}  # LoRA needs larger learning rates than full networks

_INT8 = {"base_precision": "int8", "text_encoder_precision": "int8"}
_SMALL = {**_INT8, "lora_rank": 32, "eval_batch_size": 1}

PRESETS = {
    "12gb": Preset(12, 1, {**_ALWAYS, **_LORA, **_SMALL, "batch_size": 1, "grad_accum": 32, **_OFFLOADED}),
    "16gb": Preset(16, 1, {**_ALWAYS, **_LORA, "batch_size": 1, "grad_accum": 32, "eval_batch_size": 1, **_OFFLOADED}),
    "24gb": Preset(24, 1, {**_ALWAYS, **_LORA, "batch_size": 4, "grad_accum": 8, "eval_batch_size": 2, **_OFFLOADED}),
    "48gb": Preset(48, 1, {**_ALWAYS, **_LORA, "batch_size": 8, "grad_accum": 4, "offload_vae": True}),
    "80gb": Preset(80, 1, {**_ALWAYS, "batch_size": 4, "grad_accum": 8, "optimizer": "adamw_8bit", **_OFFLOADED}),
    "8gpu": Preset(80, 8, {**_ALWAYS, "batch_size": 4, "grad_accum": 1, "offload_vae": True}),
}

_LARGE_24GB = {**PRESETS["24gb"].values, **_SMALL, "batch_size": 2, "grad_accum": 16}
_BY_LORA = {
    "12gb": None,
    "16gb": None,
    "24gb": _LARGE_24GB,
    "48gb": PRESETS["24gb"].values,
    "80gb": PRESETS["48gb"].values,
}
LARGER_MODELS: dict[str, dict[str, dict[str, Any] | None]] = {  # family or variant -> preset -> its flags, if any fit
    "sdxl": {"12gb": None},
    SD35_LARGE: _BY_LORA,
    "zimage": {
        **_BY_LORA,
        "8gpu": {**PRESETS["8gpu"].values, "shard_teacher": True, "batch_size": 2, "grad_accum": 2},
    },
    "qwen_image": {
        "12gb": None,
        "16gb": None,
        "24gb": None,
        "48gb": {**PRESETS["24gb"].values, **_INT8, "batch_size": 1, "grad_accum": 32, "eval_batch_size": 1},
        "80gb": {**PRESETS["24gb"].values, "batch_size": 2, "grad_accum": 16},
        "8gpu": {**PRESETS["24gb"].values, "batch_size": 2, "grad_accum": 2},  # under DDP: all weights need 99 GB
    },
    "lumina2": {
        "24gb": {**PRESETS["24gb"].values, "batch_size": 2, "grad_accum": 16},
        "48gb": {**PRESETS["48gb"].values, "offload_scorers": True},
    },
    "flux2_klein": {
        "12gb": None,
        "16gb": {**PRESETS["12gb"].values},
        "24gb": {**PRESETS["24gb"].values, "batch_size": 2, "grad_accum": 16, "eval_batch_size": 1},
        "48gb": PRESETS["24gb"].values,
        "80gb": PRESETS["48gb"].values,
    },
    FLUX2_KLEIN_9B: {
        "12gb": None,
        "16gb": None,
        "24gb": None,  # on a base in int8 a batch of 1 and the scorers take 23.9 GB
        "48gb": {**PRESETS["24gb"].values, "batch_size": 2, "grad_accum": 16, "eval_batch_size": 1},
        "80gb": PRESETS["24gb"].values,
        "8gpu": {**PRESETS["8gpu"].values, "shard_teacher": True, "batch_size": 2, "grad_accum": 2},
    },
}


def preset_values(preset: str, family: str, variant: str | None) -> dict[str, Any]:
    """Return the flags of a preset for a model.

    Raises:
        ValueError: the model does not fit a GPU of this size.
    """
    name = variant if variant in LARGER_MODELS else family
    values = LARGER_MODELS.get(name, {}).get(preset, PRESETS[preset].values)
    if values is None:
        fitting = [other for other in PRESETS if LARGER_MODELS[name].get(other, {}) is not None]
        model = name if name == variant else f"--family {name}"
        raise ValueError(
            f"--preset {preset}: {model} does not fit {PRESETS[preset].gigabytes} GB at 1024 x 1024; take --preset "
            f"{' or '.join(fitting)}, or give the flags one by one"
        )
    return values
