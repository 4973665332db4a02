"""Export a model as one complete diffusers pipeline, or as one file in its original layout."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpdmd.utils.folders import creating_folder
from dpdmd.utils.paths import check_free

if TYPE_CHECKING:
    import torch

    from dpdmd.models.base import Family
    from dpdmd.models.layout import Layout
    from dpdmd.models.tensor_files import LazyTensor, Weights
    from dpdmd.sampling.find_model import Model

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # `--dtype` -> torch's name


def export(
    path: Path,
    base_model: Path | None,
    out: Path,
    *,
    dtype: str | None = None,
    single_file: bool = False,
    finish: Callable[["Model", Path], None] = lambda model, folder: None,
) -> None:
    """Write the export atomically, tensor by tensor: memory holds the largest tensor, not the model.

    Args:
        dtype: type of all weights, one of DTYPES; without it the network is fp32, and the rest stays as it is.
        single_file: write all weights to OUT/<name of OUT>.safetensors, with the pipeline's settings beside it.
        finish: called with the model and the folder before it gets its name, to add files.

    Raises:
        ValueError: `path` is not a model, weights do not fit, or the network cannot fit in memory or on the disk.
        OSError: the folder cannot be written.
    """
    import torch

    from dpdmd.sampling.find_model import find_model, warn_of_unused_base
    from dpdmd.sampling.load_model import model_family
    from dpdmd.sampling.memory_estimate import report_export_memory

    model = find_model(path, base_model)
    warn_of_unused_base(model, base_model)
    family = model_family(model, torch.device("cpu"), torch.float32)
    report_export_memory(model)
    weights = _network_weights(family, model)
    kind = getattr(torch, DTYPES[dtype]) if dtype else None
    _check_disk(out, family.layout, model, weights, kind, single_file=single_file)
    defaults = replace(model.defaults, base=None, base_from_here=None, base_revision=None, base_variant=None)
    with creating_folder(out) as folder:
        if single_file:
            file = folder / f"{out.name}.safetensors"
            family.export_single_file(file, weights, model.folder, defaults, dtype=kind)
        else:
            family.export(folder, weights, model.folder, defaults, copy=True, dtype=kind)
        finish(model, folder)


def _check_disk(
    out: Path, layout: "Layout", model: "Model", weights: "Weights", kind: "torch.dtype | None", *, single_file: bool
) -> None:
    """Check that the weights fit on the disk.

    Raises:
        ValueError: they do not.
    """
    from dpdmd.models.activation_memory import FP32
    from dpdmd.models.layout import count_numbers

    needed = count_numbers({name: weight.shape for name, weight in weights.items()}) * (kind.itemsize if kind else FP32)
    if not (single_file and layout.single_file_network):
        folder, no_t5 = model.folder, model.defaults.no_t5
        if kind:
            parts = (*layout.text_encoders(folder, no_t5=no_t5), "vae")
            needed += kind.itemsize * sum(count_numbers(layout.weight_shapes(folder, part)) for part in parts)
        else:
            needed += layout.bytes_beside_network(folder, no_t5=no_t5)
    other = "another folder" if kind else "another folder or --dtype bf16"
    check_free(f"--out {out}", out, needed, "the export", f"free some, or give {other}")


def _network_weights(family: "Family", model: "Model") -> "Weights":
    """Return the weights of a model's network, a LoRA added to them, without reading them.

    Raises:
        ValueError: a LoRA does not fit.
    """
    from dpdmd.models.network_files import read_network, unwrapped
    from dpdmd.models.tensor_files import in_memory, open_tensors, open_weights
    from dpdmd.models.weight_files import stem_of
    from dpdmd.sampling.load_model import network_prefixes

    network, prefixes = family.layout.network, network_prefixes(family.layout)
    if (file := model.state_dict) is None:
        weights = open_weights(model.folder / network, stem_of(network, network))
    elif file.suffix.lower() == ".safetensors":
        weights = unwrapped(open_tensors(file), prefixes)
    else:
        weights = in_memory(read_network(file, prefixes))  # mapped from the file, not read
    weights = {name: _checked(name, weight, file or model.folder) for name, weight in weights.items()}
    return family.merge_lora(weights, model.lora) if model.lora else weights


def _checked(name: str, weight: "LazyTensor", source: Path) -> "LazyTensor":
    """Return a weight that raises a ValueError when it is read and holds a number that is not finite."""

    def check(value: "torch.Tensor") -> "torch.Tensor":
        if not value.float().isfinite().all():
            raise ValueError(f"{source}: {name} holds a number that is not finite; get or save the weights again")
        return value

    return weight.map(check) if weight.dtype.is_floating_point else weight
