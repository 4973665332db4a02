"""Strict loading of networks: a file that does not hold exactly the network's parameters is an error."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn
from transformers import PreTrainedModel

from dpdmd.models.weight_files import refuse_misfits


def load_strict(kind: type, folder: Path, **options: Any) -> nn.Module:
    """A transformers model of a local folder, in fp32 unless `options` say otherwise; nothing is downloaded.

    Raises:
        ValueError: a weight that the model needs is absent or has another shape (transformers would make it up).
    """
    try:
        network, report = kind.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, **{"dtype": torch.float32, **options}
        )
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{folder} does not load as a {kind.__name__}: {str(error).splitlines()[0]}") from None
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise ValueError(f"{folder} does not fit a {kind.__name__}: {len(lacking)} weights lack ({lacking[0]}, ...)")
    return network


def load_part(
    kind: type[ModelMixin | PreTrainedModel], folder: Path, dtype: torch.dtype, *, exact: bool = False
) -> nn.Module:
    """One component, every weight of it from its files, in evaluation mode; with `exact` they hold nothing else.

    Raises:
        ValueError: weights that do not fit the configuration beside them; the libraries only warn, and go on with
            random numbers.
    """
    part, info = kind.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    refuse_misfits(
        folder,
        missing=info["missing_keys"],
        mismatched=info["mismatched_keys"],
        unexpected=info["unexpected_keys"] if exact else (),
    )
    return part.eval()
