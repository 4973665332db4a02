"""The model families by name. A new family is a folder beside this file and a row of `LAYOUTS`.

Its folder has the family's name and three modules: `layout.py` with a `LAYOUT`, `official.py` with the official
model's configurations (both import neither diffusers nor transformers), and `family.py` with a `FAMILY`.
`config.presets.FAMILIES` has the defaults of its flags.
"""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from dpdmd.config.options import ModelConfig
from dpdmd.config.variants import find_variant
from dpdmd.models.base import Family
from dpdmd.models.flux2_klein.layout import LAYOUT as FLUX2_KLEIN
from dpdmd.models.identity import Identity, identify_pipeline
from dpdmd.models.lora import Adapter, Adapters
from dpdmd.models.lumina2.layout import LAYOUT as LUMINA2
from dpdmd.models.qwen_image.layout import LAYOUT as QWEN_IMAGE
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults
from dpdmd.models.sd35.layout import LAYOUT as SD35
from dpdmd.models.sdxl.layout import LAYOUT as SDXL
from dpdmd.models.zimage.layout import LAYOUT as ZIMAGE
from dpdmd.utils.text_files import read_json

_SAMPLING_FLAGS = {"steps": "teacher_infer_steps", "guidance_scale": "teacher_guidance_scale"}
LAYOUTS = {
    "sd35": SD35,
    "sdxl": SDXL,
    "zimage": ZIMAGE,
    "qwen_image": QWEN_IMAGE,
    "lumina2": LUMINA2,
    "flux2_klein": FLUX2_KLEIN,
}


def family_of(folder: Path) -> str:
    """Return the family of a pipeline folder; if no family knows it, the first one, whose checks say what is wrong."""
    try:
        found = read_json(folder / "model_index.json").get("_class_name")
    except ValueError:
        found = None
    return next((name for name, layout in LAYOUTS.items() if layout.pipeline == found), next(iter(LAYOUTS)))


def sampling_defaults(folder: Path) -> SamplingDefaults:
    """Return the sampling defaults of a pipeline folder: those in its dpdmd.json, else its model's, else its family's.

    Raises:
        ValueError: the dpdmd.json is unreadable, or holds unknown entries or invalid values.
    """
    name = family_of(folder)
    defaults, variant = LAYOUTS[name].defaults, find_variant(name, folder)
    if variant:
        values = {ours: variant.values[flag] for ours, flag in _SAMPLING_FLAGS.items() if flag in variant.values}
        defaults = replace(defaults, **values)
    return read_sampling_defaults(folder, defaults)


def family_class(name: str) -> type[Family]:
    """Return the class of a family; imported on demand, since diffusers takes seconds to import.

    Raises:
        ValueError: unknown name.
    """
    if name not in LAYOUTS:
        raise ValueError(f"unknown family {name!r} (known: {', '.join(LAYOUTS)})")
    return import_module(f"dpdmd.models.{name}.family").FAMILY


def identify_teacher(model: ModelConfig, without: tuple[str, ...] = ()) -> Identity:
    """Return the identity of the teacher (`identify_pipeline`)."""
    return identify_pipeline(LAYOUTS[model.family], Path(model.teacher_id), no_t5=model.no_t5, without=without)


def adapters(model: ModelConfig) -> Adapters | None:
    """Return the two adapters that the flags ask for, or None if whole networks are trained."""
    if model.lora_rank is None:
        return None
    layout = LAYOUTS[model.family]
    targets = tuple(map(str.strip, model.lora_targets.split(","))) if model.lora_targets else layout.lora_targets
    config = layout.network_config(Path(model.teacher_id))
    targets, excluded = layout.peft_targets(config, targets), layout.lora_excluded(config)
    fake_rank = model.fake_lora_rank or model.lora_rank
    # A fake score of another rank keeps the student's ratio of alpha to rank, so that both learn at one pace.
    ratio = (model.lora_alpha or model.lora_rank) / model.lora_rank
    return Adapters(
        Adapter(model.lora_rank, ratio * model.lora_rank, targets, model.lora_dropout, excluded),
        Adapter(fake_rank, ratio * fake_rank, targets, model.lora_dropout, excluded),
    )
