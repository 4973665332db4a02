"""Strict loading of networks: weights that do not fit the configuration beside them are an error.

diffusers and transformers take seconds to import: only when something loads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpdmd.models.layout import Layout
from dpdmd.models.weight_files import raise_on_misfits
from dpdmd.utils.out_of_memory import is_out_of_memory


def load_strict(
    kind: Any, folder: Path, dtype: torch.dtype = torch.float32, *, exact: bool = False, **options: Any
) -> nn.Module:
    """Load a diffusers or transformers model of the class `kind` from a local folder, in evaluation mode.

    Args:
        exact: also reject files that hold weights which the model has no place for.
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
        unexpected=info["unexpected_keys"] if exact else (),
    )
    return network.eval()


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
    layout: Layout, folder: Path, dtype: torch.dtype, *, no_t5: bool = False
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
        return load_strict(kind, folder / name, dtype, **options)

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
