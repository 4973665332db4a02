"""Find where the model that a user names lies, before anything heavy is imported: on disk, or on the Hub."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dpdmd.config.hub_flags import HubOptions
from dpdmd.models.hub_files import Select, model_files, pipeline_files
from dpdmd.models.hub_models import Located, Source, locate_all
from dpdmd.models.network_files import NETWORK_FILES
from dpdmd.run_folder import LORA, STUDENT, RunFolder
from dpdmd.utils.hub import HubId, parse_id
from dpdmd.utils.paths import DEFAULTS_FILE, LORA_WEIGHTS, MODEL_INDEX, find_base
from dpdmd.utils.text_files import read_json


def model_places(folder: Path) -> list[Path]:
    """Return where the model of a pipeline or LoRA folder, a checkpoint or a run may be."""
    latest = RunFolder.of(folder).latest()
    checkpoints = [folder, latest] if latest else [folder]
    return [folder, *(checkpoint / name for checkpoint in checkpoints for name in (STUDENT, LORA))]


def model_place(folder: Path) -> Path | None:
    """Return the folder of a pipeline or LoRA that `folder` holds; None if there is none."""
    files = (MODEL_INDEX, LORA_WEIGHTS)
    return next((place for place in model_places(folder) if any((place / name).is_file() for name in files)), None)


def base_source(lora: Path, variant: str | None = None) -> Source | None:
    """Return the pipeline that a LoRA changes, by its dpdmd.json, if it is on the Hub or a variant; else None."""
    try:
        own = read_json(lora / DEFAULTS_FILE)
    except ValueError:
        return None  # `read_sampling_defaults` reports a file that is damaged
    base, revision, variant = own.get("base"), own.get("base_revision"), variant or own.get("base_variant")
    if not isinstance(base, str) or not (revision or variant):
        return None
    model = parse_id(base) and HubId(base, str(revision)) if revision else None
    if model is None and isinstance(from_here := own.get("base_from_here"), str):
        base = find_base(lora, base, from_here)
    return Source(f"--model {lora}: its base", str(model or base), pipeline_with_text_of(lora), variant=variant)


def names_base(lora: Path) -> bool:
    """Return whether a LoRA's dpdmd.json names the pipeline that it changes."""
    try:
        return bool(read_json(lora / DEFAULTS_FILE).get("base"))
    except ValueError:
        return False  # see `base_source`


def pipeline_with_text_of(folder: Path) -> Select:
    """Return the function that selects the files of a pipeline for a student in `folder`: no T5 if it has none."""
    try:
        no_t5 = read_json(folder / DEFAULTS_FILE).get("no_t5") is True
    except ValueError:
        no_t5 = False
    return partial(pipeline_files, no_t5=no_t5)


def locate_model(
    model: str,
    base_model: str | None,
    options: HubOptions,
    others: Sequence[Source] = (),
    *,
    base_variant_only: bool = False,
    default_base: str | None = None,
) -> tuple[Path, Path | None, list[Located]]:
    """Return the local paths of --model and --base_model, and of `others`. Call on every rank.

    `--variant` is that of the pipeline whose weights are read: of --model, or of the base of a LoRA or a network alone.
    With `base_variant_only` it is never that of --model.

    Args:
        default_base: counts as --base_model of a network alone, and of a LoRA that names no base.

    Raises:
        ValueError, OSError: as `locate_all`; or the base is a run, a checkpoint or a LoRA.
    """
    variant = None if base_variant_only else options.variant
    own = partial(Source, "--model", select=model_files, variant=variant)
    remote = parse_id(model) is not None and not _is_network(model)
    sources = [own(model, revision=options.revision)] if remote or options.revision else []
    found = locate_all([*sources, *others], options)
    path, found = (found[0].path, found[1:]) if sources else (Path(model), found)
    place = place_or_none(path)
    if place and (place / MODEL_INDEX).is_file():
        again = locate_all([own(str(place))] if variant and not sources else [], options)
        return again[0].path if again else path, Path(base_model) if base_model else None, found
    base = base_source(place, options.variant) if place else None
    if not base_model and (not names_base(place) if place else _is_network(model)):
        base_model = default_base
    if base_model:
        select = pipeline_with_text_of(place) if place else pipeline_files
        base = Source("--base_model", base_model, select, variant=options.variant)
    located = locate_all([base] if base else [], options)
    if base_model:
        check_is_pipeline("--base_model", located[0].path)
    return path, located[0].path if located else None, found


def place_or_none(path: Path) -> Path | None:
    """Return `model_place`; None for a network's file, and for a folder that cannot be read, reported later."""
    try:
        return None if _is_network(str(path)) else model_place(path)
    except OSError:
        return None


def check_is_pipeline(flag: str, folder: Path) -> None:
    """Check that a folder is neither a run nor a checkpoint nor a LoRA, which `--model` takes as a model.

    Raises:
        ValueError: it is.
    """
    place = place_or_none(folder)
    if place and os.path.isfile(place / LORA_WEIGHTS) and not os.path.isfile(place / MODEL_INDEX):
        raise ValueError(
            f"{flag} {folder}: is a LoRA; merge it with python -m dpdmd.export --model {folder} --out FOLDER, and give "
            "that folder"
        )
    if place and place != folder:
        raise ValueError(f"{flag} {folder}: is a run or a checkpoint; give the model in it, {place}")


def _is_network(model: str) -> bool:
    return model.lower().endswith(NETWORK_FILES) and not Path(model).is_dir()
