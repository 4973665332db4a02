"""Export a model as one whole diffusers pipeline."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from dpdmd.utils import signals


def export(path: Path, base_model: Path | None, out: Path) -> None:
    """Write the pipeline folder under a temporary name, then rename it.

    Raises:
        ValueError: `path` is no model, or its weights do not fit.
        OSError: it cannot be written; nothing is left behind.
    """
    import torch

    from dpdmd.sampling.load_model import find_model, load_network, model_family

    model = find_model(path, base_model)
    if base_model and model.source == model.folder:
        logging.getLogger("dpdmd").warning("--base_model %s: not used, since --model is a whole pipeline", base_model)
    family = model_family(model, torch.device("cpu"), torch.float32)
    network = load_network(family, model, torch.float32)
    if model.lora:
        from dpdmd.models.lora import merged

        network = merged(network)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with signals.delete_on_failure(temporary):
        defaults = replace(model.defaults, base=None)
        family.export(temporary, dict(network.state_dict()), model.folder, defaults, copy=True)
        os.replace(temporary, out)
