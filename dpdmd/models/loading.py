"""Strict loading of networks: weights that do not fit the configuration beside them are an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpdmd.models.weight_files import refuse_misfits
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
    refuse_misfits(
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
