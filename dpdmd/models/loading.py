"""Strict loading of networks: weights that do not fit the configuration beside them are an error.

diffusers and transformers take seconds to import: only when something loads.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpdmd.config.precisions import UNQUANTIZED
from dpdmd.models.layout import Layout, in_numbered_block
from dpdmd.models.quantization import QuantizedLinear, quantize_layers
from dpdmd.models.tensor_files import open_weights
from dpdmd.models.weight_files import DIFFUSERS_STEM, TRANSFORMERS_STEM, check_weights, raise_on_misfits
from dpdmd.utils.out_of_memory import is_out_of_memory


def load_strict(
    kind: Any,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    exact: bool = False,
    all_layers: bool = False,
    **options: Any,
) -> nn.Module:
    """Load a diffusers or transformers model of the class `kind` from a local folder, in evaluation mode.

    Args:
        exact: also reject files that hold weights which the model has no place for.
        all_layers: reject them if they belong to numbered layers; whole models publish others, such as an unused head.
        options: more arguments of `from_pretrained`.

    Raises:
        ValueError: a weight is missing or has another shape (the libraries only warn, and use random numbers), or the
            library cannot read the folder.
    """
    with raise_as_value_error(f"{folder} does not load as a {kind.__name__}"):
        network, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below with the missing ones
            **options,
        )
    raise_on_misfits(
        folder,
        missing=info["missing_keys"],
        mismatched=info["mismatched_keys"],
        unexpected=[name for name in info["unexpected_keys"] if exact or (all_layers and in_numbered_block(name))],
    )
    return network.eval()


def load_quantized_network(
    kind: Any, folder: Path, prefixes: Sequence[str], precision: str, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """Load a diffusers network as `load_strict` does, but with quantised linear layers in its blocks.

    Each weight is read, moved to the device and quantised before the next one, so the whole network is nowhere in a
    larger type.

    Args:
        prefixes: how the names of the blocks' weights begin.

    Raises:
        ValueError: as `load_strict`, or a weight holds a number that is not finite.
    """
    from accelerate import init_empty_weights

    weights, before = open_weights(folder, DIFFUSERS_STEM), torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of buffers that are in no file
    try:
        with raise_as_value_error(f"{folder} does not load as a {kind.__name__}"), init_empty_weights():
            network = kind.from_config(kind.load_config(folder, local_files_only=True))
    finally:
        torch.set_default_dtype(before)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_weights({name: weight.shape for name, weight in weights.items()}, expected, folder, exact=True)
    _quantize(network, folder, lambda name: weights[name].read(), prefixes, precision, dtype, device)
    for name, weight in weights.items():
        path, _, leaf = name.rpartition(".")
        place = network.get_submodule(path)
        if not isinstance(place, QuantizedLinear):
            value = weight.to(dtype).read().to(device)
            setattr(place, leaf, nn.Parameter(value, False) if leaf in place._parameters else value)
    return network.to(device).eval()


def load_encoder(
    kind: Any, folder: Path, dtype: torch.dtype, precision: str, device: torch.device, **options: Any
) -> nn.Module:
    """Load a text encoder of transformers (`load_strict`), quantised on the device if `precision` asks for it.

    It is loaded in the type of its file, in which transformers maps it from the file, and each weight is quantised
    before the next one.

    Raises:
        ValueError: as `load_strict`, or a weight holds a number that is not finite.
    """
    if precision == UNQUANTIZED:
        return load_strict(kind, folder, dtype, **options)
    stored = max(open_weights(folder, TRANSFORMERS_STEM).values(), key=lambda weight: math.prod(weight.shape)).dtype
    stored = dtype if stored.itemsize == 1 else stored  # transformers makes no network in fp8
    network = load_strict(kind, folder, stored, **options).requires_grad_(False)
    _quantize(network, folder, lambda name: network.get_parameter(name).data, None, precision, dtype, device)
    for value in network.parameters():
        value.data = value.data.to(device, dtype)
    return network.to(device)


def _quantize(network: nn.Module, folder: Path, *arguments: Any) -> None:
    try:
        quantize_layers(network, *arguments)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; get the file again") from None


@contextmanager
def raise_as_value_error(what: str) -> Iterator[None]:
    """Raise a ValueError of one line in place of whatever the libraries raise about a wrong file.

    They raise anything from KeyError to errors of their own. Only library calls belong inside: a mistake in our own
    code must not be reported as one in a file. Errors about full memory pass through.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        sentence = " ".join(str(error).split()).partition(". ")[0]  # advice about hubs follows
        raise ValueError(f"{what} ({type(error).__name__}: {sentence[:200]})") from None


def load_text_encoders(
    layout: Layout, folder: Path, dtype: torch.dtype, precision: str, device: torch.device, *, no_t5: bool = False
) -> dict[str, nn.Module]:
    """Load the text encoders of a pipeline folder, by component; the pipeline class itself would load leniently."""
    import transformers

    def load(name: str) -> nn.Module:
        kind, options = getattr(transformers, layout.classes[name]), {}
        if layout.text_layers:
            with raise_as_value_error(f"{folder / name} does not describe a {kind.__name__}"):
                config = kind.config_class.from_pretrained(folder / name, local_files_only=True)
            config.num_hidden_layers, config.layer_types = layout.text_layers, config.layer_types[: layout.text_layers]
            options = {"config": config}
        return load_encoder(kind, folder / name, dtype, precision, device, **options)

    return {name: load(name) for name in layout.text_encoders(folder, no_t5=no_t5)}


def quieten_libraries() -> None:
    """Turn off warnings and progress bars of diffusers and transformers.

    Long prompts are common and cut on purpose: a line about each, and a bar for each component, hide what matters.
    """
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
