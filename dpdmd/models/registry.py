"""The model families by name: a new family is a row in each table."""

from pathlib import Path

from dpdmd.config.options import ModelConfig
from dpdmd.models.base import Family
from dpdmd.models.lora_config import Adapter, Adapters
from dpdmd.models.sd35.layout import SD35
from dpdmd.models.sdxl.layout import SDXL
from dpdmd.utils.text_files import read_json

LAYOUTS = {"sd35": SD35, "sdxl": SDXL}


def family_of(folder: Path) -> str:
    """The family whose pipeline a folder holds; where it is none's the first, whose layout then tells what is wrong."""
    try:
        found = read_json(folder / "model_index.json").get("_class_name")
    except ValueError:
        found = None
    return next((name for name, layout in LAYOUTS.items() if layout.pipeline == found), next(iter(LAYOUTS)))


def family_class(name: str) -> type[Family]:
    """The class of a family; imported on demand, since diffusers takes seconds to import.

    Raises:
        ValueError: unknown name.
    """
    if name == "sd35":
        from dpdmd.models.sd35.family import SD35

        return SD35
    if name == "sdxl":
        from dpdmd.models.sdxl.family import SDXL

        return SDXL
    raise ValueError(f"unknown family {name!r} (known: sd35, sdxl)")


def adapters(model: ModelConfig) -> Adapters | None:
    """The two adapters that the flags ask for; None where whole networks are trained."""
    if model.lora_rank is None:
        return None
    targets = tuple(model.lora_targets.split(",")) if model.lora_targets else LAYOUTS[model.family].lora_targets
    fake_rank = model.fake_lora_rank or model.lora_rank
    # A fake score of another rank keeps the student's ratio of alpha to rank, so that both learn at one pace.
    ratio = (model.lora_alpha or model.lora_rank) / model.lora_rank
    return Adapters(
        Adapter(model.lora_rank, ratio * model.lora_rank, targets), Adapter(fake_rank, ratio * fake_rank, targets)
    )
