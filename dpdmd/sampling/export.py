"""Export a model as one complete diffusers pipeline."""

from dataclasses import replace
from pathlib import Path

from dpdmd.utils.folders import creating_folder


def export(path: Path, base_model: Path | None, out: Path) -> None:
    """Write the pipeline folder atomically.

    Raises:
        ValueError: `path` is not a model, weights do not fit, or the network cannot fit in memory.
        OSError: the folder cannot be written.
    """
    import torch

    from dpdmd.sampling.load_model import find_model, load_network, model_family, warn_of_unused_base
    from dpdmd.sampling.memory_estimate import report_export_memory

    model = find_model(path, base_model)
    warn_of_unused_base(model, base_model)
    family = model_family(model, torch.device("cpu"), torch.float32)
    report_export_memory(model)
    network = load_network(family, model, torch.float32)
    if model.lora:
        from dpdmd.models.lora import merged

        network = merged(network)
    with creating_folder(out) as folder:
        defaults = replace(model.defaults, base=None, base_from_here=None)
        family.export(folder, dict(network.state_dict()), model.folder, defaults, copy=True)
