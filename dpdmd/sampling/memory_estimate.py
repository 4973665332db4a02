"""The memory estimates of sampling and of an export, counted from small files and the headers of weights."""

import math
import sys

import torch
from tqdm import tqdm

from dpdmd.config.precisions import UNQUANTIZED
from dpdmd.models.activation_memory import BF16, FP32, CallShape
from dpdmd.models.layout import count_numbers
from dpdmd.models.lora_files import LORA_WEIGHTS
from dpdmd.models.memory_estimate import MemoryEstimate, MemoryItem, device_bytes, libraries
from dpdmd.models.weight_files import read_shapes
from dpdmd.sampling.find_model import Model
from dpdmd.sampling.load_model import SamplerPlan
from dpdmd.utils.logging import logger
from dpdmd.utils.text_files import read_json

ENCODING, SAMPLING, DECODING, EXPORT = "encoding prompts", "sampling", "decoding", "export"
EXPORT_COPIES = 3  # of one tensor: as read, changed, and in its new type
IMAGES_BYTES = 3 * 4 * FP32  # of a pixel: three channels, in raw, clamped, rounded and gathered form


def report_memory(plan: SamplerPlan, batch: int, batch_flag: str, *others: MemoryItem, show: bool = True) -> None:
    """Print the estimate of a process that samples `batch` images at a time, in one line, before anything loads.

    Logs a warning if the process may not fit its GPU, or without one this machine's memory.

    Args:
        batch_flag: the flag that gives `batch`.
        others: what the program uses beside sampling.
        show: whether to print; the other ranks of a program only check.

    Raises:
        ValueError: the process cannot fit by far.
    """
    memory = MemoryEstimate((*sampling_items(plan, batch, batch_flag), *others), device_bytes())
    _report(memory, f"{batch_flag}, --height, --width", show=show)


def report_export_memory(model: Model) -> None:
    """Print the estimate of an export, which runs on the CPU, in one line; log a warning if it may not fit.

    Raises:
        ValueError: the export cannot fit by far.
    """
    layout, folder = model.layout, model.folder
    components = [layout.network, "vae", *layout.text_encoders(folder, no_t5=model.defaults.no_t5)]
    shapes = [shape for name in components for shape in layout.weight_shapes(folder, name).values()]
    numbers = max(map(math.prod, shapes))
    tensor = MemoryItem("tensor", EXPORT_COPIES * numbers * FP32, f"the largest, {EXPORT_COPIES} copies", (EXPORT,))
    _report(MemoryEstimate((tensor, *_lora(model, EXPORT), libraries(on_gpu=False)), None), "--model")


def _report(memory: MemoryEstimate, flags: str, *, show: bool = True) -> None:
    warnings = memory.warnings() if memory.device else memory.host_warnings(flags)
    if show:
        tqdm.write(f"memory: {memory.summary()}", file=sys.stderr)
        for warning in warnings:
            logger.warning(warning)


def sampling_items(plan: SamplerPlan, batch: int, batch_flag: str) -> list[MemoryItem]:
    """List every use of memory of a process that samples `batch` images at a time.

    The text encoders are gone before the network comes (`SamplerPlan.load`).

    Args:
        batch_flag: the flag that gives `batch`.
    """
    model, settings = plan.model, plan.settings
    layout, folder = model.layout, model.folder
    bf16 = plan.family.compute_dtype == torch.bfloat16
    number, kind, bf16_flag = (BF16, "bf16", ()) if bf16 else (FP32, "fp32", ("--bf16",))
    loaded, size_flags = (SAMPLING, DECODING), (batch_flag, "--height", "--width")

    def weights(name: str, components: list[str], phases: tuple[str, ...], precision: str = UNQUANTIZED) -> MemoryItem:
        found = layout.weight_bytes(folder, components, precision, number)
        return MemoryItem(name, found.held + found.at_work, found.described(kind, precision), phases, bf16_flag)

    encoders = layout.text_encoders(folder, no_t5=model.defaults.no_t5)
    items = [
        weights("text encoders", encoders, (ENCODING,)),
        weights("network", [layout.network], loaded, plan.family.precisions.base),
        weights("autoencoder", ["vae"], loaded),
        *_lora(model, *loaded),
    ]
    rows = batch * layout.guidance.rows(settings.guidance_scale)
    tokens = layout.text_tokens(folder, plan.max_sequence_length)
    call = layout.memory_of_call(folder, CallShape(rows, settings.height, settings.width, tokens, bf16, False))
    pixels, autoencoder = batch * settings.height * settings.width, read_json(folder / "vae" / "config.json")
    decoding = layout.autoencoder.decode_bytes(autoencoder, pixels, bf16) + IMAGES_BYTES * pixels
    return [
        *items,
        MemoryItem("call of the network", call and call.passing, f"{rows} rows", (SAMPLING,), size_flags),
        MemoryItem("images", decoding, f"{batch} decoded at a time", (DECODING,), size_flags),
        libraries(on_gpu=plan.family.device.type == "cuda"),
    ]


def _lora(model: Model, *phases: str) -> list[MemoryItem]:
    """Count a model's LoRA, if it has one."""
    if model.lora is None:
        return []
    numbers = count_numbers(read_shapes(model.lora / LORA_WEIGHTS))
    return [MemoryItem("LoRA", numbers * FP32, f"{numbers / 1e6:.1f} M numbers in fp32", phases)]
