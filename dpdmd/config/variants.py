"""Models of a family with defaults of their own, found by the small files of the teacher's folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpdmd.utils import hub
from dpdmd.utils.paths import SCHEDULER_CONFIG
from dpdmd.utils.text_files import read_json


@dataclass(frozen=True)
class Variant:
    """A model of a family that differs from the family's first one.

    Attributes:
        name: the model's name, for messages.
        family: the family's name.
        file: a configuration file of the pipeline folder.
        matches: whether the values of this file are this model's.
        repository: source of the official weights; empty if there are several.
        values: defaults of training flags, in place of the family's.
        distilled: the model is itself a few-step student.
    """

    name: str
    family: str
    file: str
    matches: Callable[[Mapping[str, Any]], bool]
    repository: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    distilled: bool = False

    def is_in(self, folder: Path, name: str = "") -> bool:
        """Return whether a pipeline folder holds this model; `name` as in `find_variant`."""
        try:
            return self.matches(read_json(folder / self.file))
        except (ValueError, OSError):  # the checks of the folder say what is wrong
            return bool(self.repository) and (name or folder.as_posix()).partition("@")[0].endswith(self.repository)


SD35_LARGE, SD3_MEDIUM, SDXL_V, ZIMAGE_TURBO = "SD3.5-Large", "SD3-Medium", "SDXL with v-prediction", "Z-Image-Turbo"
FLUX2_KLEIN_9B = "FLUX.2-klein-base-9B"
_TRANSFORMER = "transformer/config.json"
VARIANTS = (
    Variant(
        SD35_LARGE,
        "sd35",
        _TRANSFORMER,
        lambda config: not config.get("dual_attention_layers") and config.get("qk_norm") is not None,
        "stabilityai/stable-diffusion-3.5-large",
        {"teacher_infer_steps": 28, "teacher_guidance_scale": 3.5},  # model card
    ),
    Variant(
        SD3_MEDIUM,
        "sd35",
        _TRANSFORMER,
        # Its first file has neither entry.
        lambda config: not config.get("dual_attention_layers") and config.get("qk_norm") is None,
        "stabilityai/stable-diffusion-3-medium-diffusers",
        {"teacher_infer_steps": 28, "teacher_guidance_scale": 7.0},  # diffusers' pipeline
    ),
    Variant(
        SDXL_V,
        "sdxl",
        SCHEDULER_CONFIG,
        lambda config: config.get("prediction_type") == "v_prediction",
        "Laxhar/noobai-XL-Vpred-1.0",
        {
            "teacher_infer_steps": 28,  # NoobAI-XL's card: 28 to 35
            "teacher_guidance_scale": 5.0,  # NoobAI-XL's card: 4 to 5
            "k_anchor": 5,
        },
    ),
    Variant(ZIMAGE_TURBO, "zimage", SCHEDULER_CONFIG, lambda config: config.get("shift") == 3.0, distilled=True),
    Variant(
        FLUX2_KLEIN_9B,
        "flux2_klein",
        _TRANSFORMER,
        lambda config: config.get("joint_attention_dim") == 12288,  # three hidden states of Qwen3-8B
        "black-forest-labs/FLUX.2-klein-base-9B",
    ),
)


def find_variant(family: str, folder: Path, name: str = "") -> Variant | None:
    """Return the variant of a pipeline folder; None for the family's first model and for unknown ones.

    If the file that tells it cannot be read, as before a download, the variant is the one that the path names.

    Args:
        name: what names the model in place of the folder's path.
    """
    return next((each for each in VARIANTS if each.family == family and each.is_in(folder, name)), None)


def find_variant_of_teacher(family: str, teacher: str, revision: str | None, cache_dir: str | None) -> Variant | None:
    """Return the variant of a teacher, a path or an id of the Hub, by its files here or in the Hub's cache.

    Raises:
        OSError: the cache cannot be read.
    """
    model = hub.parse_id(teacher)
    if model and revision:
        model = hub.parse_id(f"{model.repository}@{revision}")
    snapshot = hub.cached_snapshot(model, hub.cache_folder(cache_dir)) if model else None
    return find_variant(family, snapshot or Path(teacher), teacher)
