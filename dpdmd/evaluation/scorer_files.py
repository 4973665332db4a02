"""Checks of the paths that the scorers' flags name, by the table of scorers and before anything loads.

Imports neither torch nor transformers, so a wrong path is reported within a second.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from dpdmd.config.scorer_table import (
    CHECKPOINT,
    FOLDER_PARTS,
    IMAGE_PROCESSOR,
    JSON,
    MODEL,
    SCORERS,
    TOKENIZER,
    ScorerFile,
)
from dpdmd.models.hub_files import folder_files, one_file
from dpdmd.models.hub_models import Source
from dpdmd.models.weight_files import (
    check_model_folder,
    check_pickle,
    read_shapes_of_weights,
    require_folder,
    require_image_processor,
    where_to_get,
)
from dpdmd.utils.text_files import read_json

OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS = (  # names of the weights, in the order in which OpenCLIP looks for them
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))


def given_scorers(paths: Mapping[str, str | None], names: Iterable[str]) -> list[str]:
    """Return the scorers in `names` that `paths` (flag -> value) configures. An empty path leaves its scorer out."""
    return [name for name in names if _is_given(paths, SCORERS[name].files)]


def _is_given(paths: Mapping[str, str | None], files: Iterable[ScorerFile]) -> bool:
    left_out = any(paths.get(file.flag) == "" for file in files if not file.beside)
    return not left_out and any(paths.get(file.flag) for file in files)


def scorer_sources(paths: Mapping[str, str | None], names: Iterable[str]) -> dict[str, Source]:
    """Return flag -> source of each path in `paths` (flag -> value) that a scorer in `names` reads."""
    scorers = given_scorers(paths, names)
    files = {file.flag: file for name in scorers for file in SCORERS[name].files if paths.get(file.flag)}
    return {flag: _source(paths[flag], file) for flag, file in files.items()}


def _source(value: str, file: ScorerFile) -> Source:
    if file.name:
        return Source(f"--{file.flag}", value, partial(one_file, name=file.name), file=file.name)
    return Source(f"--{file.flag}", value, partial(folder_files, weights=MODEL in file.holds))


def check_scorer_paths(paths: Mapping[str, str | None], names: Iterable[str]) -> dict[str, dict[str, Path]]:
    """Check the files of the scorers in `names` that `paths` (flag -> value) configures.

    An empty path leaves its scorer out.

    Returns:
        Scorer -> flag -> path, for the scorers that are configured.

    Raises:
        ValueError: a path does not hold what its flag needs, or a scorer has only some of its flags.
    """
    found: dict[str, dict[str, Path]] = {}
    for name in given_scorers(paths, names):
        files = SCORERS[name].files
        given = {file.flag: Path(paths[file.flag]) for file in files if paths.get(file.flag)}
        for file in files:
            if file.beside in given:
                given.setdefault(file.flag, given[file.beside].parent)
        missing = [file.flag for file in files if file.flag not in given]
        if missing:
            raise ValueError(f"--{missing[0]} is missing: {name} needs it beside --{next(iter(given))}")
        for file in files:
            try:
                _check_path(given[file.flag], file)
            except (ValueError, OSError) as error:
                raise ValueError(describe_error(error, given[file.flag], file)) from None
        found[name] = given
    return found


def describe_error(error: Exception, path: Path, file: ScorerFile) -> str:
    """Return one line about a wrong file: its flag, its path, the error and where to get the right one."""
    matches = (other for other in file.others if other.rpartition("/")[2] == path.name)
    return f"--{file.flag} {path}: {error}; {where_to_get(path, next(matches, file.repository))}"


def is_open_clip(folder: Path) -> bool:
    """Return whether a folder has OpenCLIP's layout and not that of transformers."""
    return (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / "config.json").is_file()


def _check_path(path: Path, file: ScorerFile) -> None:
    if set(file.holds) <= set(FOLDER_PARTS):
        require_folder(path)
    if file.open_clip and is_open_clip(path):
        read_json(path / OPEN_CLIP_CONFIG)
        weights = find_open_clip_weights(path)
        (read_shapes_of_weights if weights.suffix == ".safetensors" else check_pickle)(weights)
        return
    for part in file.holds:
        _CHECKS[part](path)


def find_open_clip_weights(folder: Path) -> Path:
    """Return the file that OpenCLIP takes the weights from; without one it would use random numbers.

    Raises:
        ValueError: there is none.
    """
    found = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth")]
    if not found:
        raise ValueError(f"{folder / _OPEN_CLIP_WEIGHTS[0]} is missing")
    places = {name: place for place, name in enumerate(_OPEN_CLIP_WEIGHTS)}
    return min(found, key=lambda path: (places.get(path.name, len(places)), path.suffix != ".safetensors", path.name))


def _check_tokenizer(folder: Path) -> None:
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise ValueError(f"{folder} holds no tokenizer (tokenizer.json, vocab.json + merges.txt or vocab.txt)")


_CHECKS: dict[str, Callable[[Path], object]] = {
    MODEL: check_model_folder,
    IMAGE_PROCESSOR: require_image_processor,
    TOKENIZER: _check_tokenizer,
    CHECKPOINT: check_pickle,
    JSON: read_json,
}
