"""Write a ComfyUI workflow that samples a student as it was trained: its grid, its size, Euler steps, its guidance.

The file is in ComfyUI's API format, which its page opens when the file is dropped onto it. Nodes, inputs and outputs
are those of ComfyUI's `nodes.py`, `comfy_extras/nodes_custom_sampler.py`, `nodes_sd3.py` and `nodes_cond.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpdmd.config.variants import VARIANTS
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.utils.atomic_files import write_json

WORKFLOW = "comfyui_workflow.json"
PROMPT = "a red circle"
Link = list[Any]  # [id of a node, number of its output]


@dataclass(frozen=True)
class ComfyUINames:
    """What ComfyUI calls the parts of one family.

    Attributes:
        checkpoint: file of the official weights in `models/checkpoints`.
        other_checkpoints: the same of other models of the family, by their names in `config.variants`.
        text_encoders: files in `models/text_encoders` that the checkpoint does not hold, T5 last.
        latent: node of the empty latent.
        pads_t5: the T5's tokens are padded to the text length of the sampling defaults.
        zeros_for_empty_prompt: the empty prompt's embedding is zero.
    """

    checkpoint: str
    other_checkpoints: Mapping[str, str] = field(default_factory=dict)
    text_encoders: tuple[str, ...] = ()
    latent: str = "EmptyLatentImage"
    pads_t5: bool = False
    zeros_for_empty_prompt: bool = False

    def for_base(self, folder: Path) -> "ComfyUINames":
        """Return the names for the model of a pipeline folder; for one without an entry, those of the first."""
        found = (each.name for each in VARIANTS if each.name in self.other_checkpoints and each.is_in(folder))
        return replace(self, checkpoint=self.other_checkpoints.get(next(found, ""), self.checkpoint))


class _Graph:
    """Nodes of a workflow, numbered in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def add(self, kind: str, title: str, **inputs: Any) -> str:
        number = str(len(self.nodes) + 1)
        self.nodes[number] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
        return number


def build_workflow(
    names: ComfyUINames,
    defaults: SamplingDefaults,
    sigmas: Sequence[float],
    size: tuple[int, int],
    *,
    lora: str | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Return the workflow of a student.

    Args:
        sigmas: the student's grid [N + 1] with the final 0.
        size: height and width in pixels.
        lora: file of the student's LoRA in `models/loras`, used on the family's official weights.
        checkpoint: file that holds the whole student, text encoders included; without it, the official weights.
    """
    graph = _Graph()
    loaded = graph.add("CheckpointLoaderSimple", "Checkpoint", ckpt_name=checkpoint or names.checkpoint)
    model, clip, vae = [loaded, 0], [loaded, 1], [loaded, 2]
    if lora:
        model = [graph.add("LoraLoaderModelOnly", "LoRA", model=model, lora_name=lora, strength_model=1.0), 0]
    if names.text_encoders and not checkpoint:
        clip = _load_text_encoders(graph, names.text_encoders[: 2 if defaults.no_t5 else None])
    if names.pads_t5 and not defaults.no_t5:
        length = defaults.max_sequence_length
        clip = [graph.add("T5TokenizerOptions", "Text length", clip=clip, min_padding=0, min_length=length), 0]
    positive = [graph.add("CLIPTextEncode", "Prompt", text=PROMPT, clip=clip), 0]
    if names.zeros_for_empty_prompt:
        negative = [graph.add("ConditioningZeroOut", "Empty prompt", conditioning=positive), 0]
    else:
        negative = [graph.add("CLIPTextEncode", "Empty prompt", text="", clip=clip), 0]
    samples = graph.add(
        "SamplerCustom",
        "Sample",
        model=model,
        add_noise=True,
        noise_seed=0,
        cfg=defaults.guidance_scale,
        positive=positive,
        negative=negative,
        sampler=[graph.add("KSamplerSelect", "Euler", sampler_name="euler"), 0],
        sigmas=[graph.add("ManualSigmas", "The student's grid", sigmas=_decimals(sigmas)), 0],
        latent_image=[graph.add(names.latent, "Size", width=size[1], height=size[0], batch_size=1), 0],
    )
    decoded = graph.add("VAEDecode", "Decode", samples=[samples, 0], vae=vae)
    graph.add("SaveImage", "Save", images=[decoded, 0], filename_prefix="dpdmd")
    return graph.nodes


def _load_text_encoders(graph: _Graph, files: Sequence[str]) -> Link:
    inputs = {f"clip_name{number}": file for number, file in enumerate(files, 1)}
    if len(files) == 2:
        return [graph.add("DualCLIPLoader", "Text encoders", **inputs, type="sd3"), 0]
    return [graph.add("TripleCLIPLoader", "Text encoders", **inputs), 0]


def _decimals(sigmas: Sequence[float]) -> str:
    """Return sigmas as `ManualSigmas` reads them: the shortest decimals of the fp32 values, never with an exponent."""
    return ", ".join(np.format_float_positional(np.float32(sigma), trim="0") for sigma in sigmas)


def write_workflow(folder: Path, workflow: dict[str, Any]) -> None:
    """Write the workflow to a folder."""
    write_json(folder / WORKFLOW, workflow)
