"""Defaults that go together: a family's own, and those of `--preset`.

A preset fits a run of SD3.5-Medium at 1024 x 1024 into a device of some size. Each keeps the paper's global batch of 32
(4 on each of 8 GPUs) by accumulation, computes in bf16, recomputes activations and encodes the prompts ahead. All
in-loop scorers fit beside it, in 16gb all but PickScore, whose network alone is 3.9 GB (test_preference.py scores
checkpoints on their own). tests/test_presets.py holds them to their sizes by `dpdmd.training.memory_estimate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAMILIES = {  # each with the defaults of its own; the options' are SD3.5's
    "sd35": {},
    "sdxl": {
        "teacher_id": "weights/stabilityai/stable-diffusion-xl-base-1.0",
        "teacher_infer_steps": 50,
        "teacher_guidance_scale": 8.0,
        "k_anchor": 8,  # of 50 steps where 5 of 30 are
        "student_sigmas": "trailing",
    },
}


def as_typed(values: Mapping[str, Any]) -> str:
    """Flags and their values, as one would type them."""
    return " ".join(f"--{name}" + ("" if value is True else f" {value}") for name, value in values.items())


@dataclass(frozen=True)
class Preset:
    """Flag -> value, for `devices` GPUs of `gigabytes` each."""

    gigabytes: int
    devices: int
    values: dict[str, Any]

    def summary(self) -> str:
        """The flags, as one would type them."""
        return as_typed(self.values)


_ALWAYS = {"bf16": True, "gradient_checkpointing": True, "cache_text_embeddings": "outputs/text_cache"}
_OFFLOADED = {"offload_scorers": True, "offload_vae": True}
_LORA = {"lora_rank": 64, "lr_student": 1e-4, "lr_fake": 1e-4}  # adapters take larger steps than whole networks

PRESETS = {
    "16gb": Preset(16, 1, {**_ALWAYS, **_LORA, "batch_size": 1, "grad_accum": 32, "eval_batch_size": 1, **_OFFLOADED}),
    "24gb": Preset(24, 1, {**_ALWAYS, **_LORA, "batch_size": 4, "grad_accum": 8, "eval_batch_size": 2, **_OFFLOADED}),
    "48gb": Preset(48, 1, {**_ALWAYS, **_LORA, "batch_size": 8, "grad_accum": 4, "offload_vae": True}),
    "80gb": Preset(80, 1, {**_ALWAYS, "batch_size": 4, "grad_accum": 8, "optimizer": "adamw_8bit", **_OFFLOADED}),
    "8gpu": Preset(80, 8, {**_ALWAYS, "batch_size": 4, "grad_accum": 1, "offload_vae": True}),
}
