"""What a model card says of a student: its name, base, licence, type and training."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from dpdmd.config.variants import VARIANTS
from dpdmd.models.layout import Layout
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.report.runs import Run, RunEntry, read_runs
from dpdmd.run_folder import RunFolder
from dpdmd.utils.hub import cache_folder, cached_snapshot, parse_id
from dpdmd.utils.manifest import read_manifest
from dpdmd.utils.paths import MODEL_INDEX, same_place

CARD = "README.md"
PIPELINE, SINGLE_FILE = "pipeline", "single file"  # kinds of exports, beside run_folder's LORA
_LICENCE = ("license", "license_name", "license_link")  # entries of a card's head


@dataclass(frozen=True)
class Training:
    """What a card says about a student's training.

    Attributes:
        config: option -> value, without groups.
        step: updates of both networks that the student has had.
        num_prompts: number of training prompts; None if unknown.
        run: the run with its scores and seed grids; None if they are not known yet, or the run is gone.
    """

    config: Mapping[str, Any]
    step: int
    num_prompts: int | None = None
    run: Run | None = None


@dataclass(frozen=True)
class Card:
    """What a card is made from.

    Attributes:
        name: of the folder, or of the repository on the Hub; the snippet loads the student by it.
        kind: PIPELINE, LORA or SINGLE_FILE.
        file: of a SINGLE_FILE, the name of its weights.
        base: pipeline folder that the student was trained from, or is made from.
        from_base: whether the weights differ from those of `base`; else the export is a copy of it.
        dtype: torch's name of the type in which the snippet loads the student.
    """

    name: str
    kind: str
    layout: Layout
    defaults: SamplingDefaults
    base: Path
    from_base: bool = True
    dtype: str = "float32"
    training: Training | None = None
    file: str = ""
    scheduler: Mapping[str, Any] = field(default_factory=dict)


def training_of(student: Path) -> Training | None:
    """Return the training of a student in a checkpoint's folder; None of a folder elsewhere."""
    checkpoint = student.resolve().parent
    try:
        manifest = read_manifest(checkpoint)
        config = {name: value for group in manifest["config"].values() for name, value in group.items()}
        step = int(manifest["progress"]["step"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    root = Path(config["run_dir"]) if config.get("run_dir") else checkpoint.parent.parent
    # Another run may lie now where the run of a copied checkpoint was.
    places = [
        place
        for place in (checkpoint.parent.parent, root)
        if RunFolder.of(place).metrics.is_file() and same_place(RunFolder.of(place).ckpts, checkpoint.parent)
    ]
    run = read_runs([RunEntry(places[0])])[0] if places else None
    return Training(config, step, manifest.get("num_prompts"), run)


def stored_dtype(layout: Layout, folder: Path) -> str:
    """Return torch's name of the type in which a pipeline's network is stored."""
    from dpdmd.models.tensor_files import open_weights
    from dpdmd.models.weight_files import stem_of

    weights = open_weights(folder / layout.network, stem_of(layout.network, layout.network))
    return str(next(iter(weights.values())).dtype).removeprefix("torch.")


def hub_id(base: Path, layout: Layout) -> str | None:
    """Return the repository of a pipeline, by its id or its folder's path: org/name at its end, or the Hub's cache.

    Return None if it is unknown. The folder of a variant has links to the files of another folder.
    """
    if "@" in base.name and (model := parse_id(base.as_posix())):  # as runs record it; a/b may be a folder that is gone
        return model.repository
    family = next(name for name, other in LAYOUTS.items() if other is layout)
    known = [layout.repository, *(each.repository for each in VARIANTS if each.family == family and each.repository)]
    index = (base / MODEL_INDEX).resolve()
    for path in (base, base.resolve(), index.parent):
        if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)/(?:snapshots|blobs)(?:/|$)", path.as_posix()):
            return f"{cached[1]}/{cached[2]}"
        if found := next((each for each in known if f"/{path.as_posix()}".endswith(f"/{each}")), None):
            return found
    return None


def licence_of(base: Path, layout: Layout, known: str | None, cache_dir: str | None = None) -> dict[str, str]:
    """Return the licence in the head of the base's own card, else that of the family's official weights, else {}.

    The card of an id is read in the Hub's cache.
    """
    if model := parse_id(base.as_posix()):
        base = cached_snapshot(model, cache_folder(cache_dir)) or base
    try:
        text = (base / CARD).read_text(encoding="utf-8")
        own = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
        found = {name: str(own[name]) for name in _LICENCE if own.get(name)}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError, IndexError):
        found = {}
    link = found.get("license_link", "")
    if known and link and not urlsplit(link).scheme:  # a file of the base's repository
        found["license_link"] = f"https://huggingface.co/{known}/blob/main/{link}"
    return found or (dict(layout.licence) if known == layout.repository else {})
