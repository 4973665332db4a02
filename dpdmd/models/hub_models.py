"""Find the local folders of models that flags name: as paths, or as ids of the Hub.

All other code sees local folders only. An id is looked up in the Hub's cache, without a request. What is missing is
fetched if `--download` was given. Imports neither torch nor diffusers, unless several processes have to agree.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpdmd.config.hub_flags import HubOptions
from dpdmd.distributed.launch_env import read_launch
from dpdmd.distributed.launch_store import call_on_rank
from dpdmd.models.hub_files import Files, Select, is_about, pipeline_files
from dpdmd.models.variant_folder import link_variant
from dpdmd.utils import hub
from dpdmd.utils.hub import HubId
from dpdmd.utils.text_files import read_json


class IncompleteError(ValueError):
    """The cache lacks files of a snapshot, which a download would add."""


@dataclass(frozen=True)
class Source:
    """What one flag names.

    Attributes:
        flag: with its dashes, for messages.
        value: a path, or "org/name" or "org/name@revision".
        select: the files that the flag needs.
        revision: another revision than the one in `value`, from `--revision`.
        variant: of the weights, from `--variant`.
        file: name of the only file that is needed; the flag stands for its path.
    """

    flag: str
    value: str
    select: Select = pipeline_files
    revision: str | None = None
    variant: str | None = None
    file: str = ""

    def hub_id(self) -> HubId | None:
        """Return the id that the flag holds, or None for a path.

        Raises:
            ValueError: the revision is given twice, or for a path.
        """
        found = hub.parse_id(self.value)
        if self.revision is None:
            return found
        if found is None:
            raise ValueError(
                f"--revision {self.revision}: {self.flag} {self.value} is no id of the Hub (org/name); leave it out"
            )
        if "@" in self.value:
            raise ValueError(f"--revision {self.revision}: {self.flag} {self.value} has one already; leave one out")
        given = hub.parse_id(f"{found.repository}@{self.revision}")
        if given is None:
            raise ValueError(f"--revision {self.revision!r}: no name of a branch, tag or commit")
        return given


@dataclass(frozen=True)
class Located:
    """Where a model lies.

    Attributes:
        path: local.
        recorded: what files record in place of `path`, if that differs: "org/name@commit", or the folder of a variant.
    """

    path: Path
    recorded: str | None = None


def locate(source: Source, options: HubOptions) -> Located:
    """Find one model, as `locate_all` does."""
    return locate_all([source], options)[0]


def locate_all(sources: Sequence[Source], options: HubOptions) -> list[Located]:
    """Find models, in the order of `sources`. Call on every rank, also without any sources.

    With `--download`, rank 0 fetches what its cache lacks, then the first rank of each other machine what is missing
    there, and all ranks use the commits that rank 0 found. Without, no rank waits for another (`check_equal_pins`).

    Raises:
        ValueError: one line that names the flag and what to do: the cache is a file, it lacks a model or a part of it,
            the Hub does not have it, or a set of weights is incomplete or mixed. Every rank raises it.
        OSError: the Hub cannot be reached, or the disk is full.
    """
    ids = [source.hub_id() for source in sources]
    cache = hub.cache_folder(options.cache_dir) if any(ids) else Path()
    if cache.is_file():
        place = "--cache_dir" if options.cache_dir else "HF_HUB_CACHE or HF_HOME"
        raise ValueError(f"{place} {cache}: is a file; give a folder")
    launch = read_launch()
    if options.download and launch.processes > 1:

        def fetch() -> list[HubId | None]:
            return [one and _snapshot(source, one, cache, options)[0] for source, one in zip(sources, ids, strict=True)]

        ids = call_on_rank(0, fetch)
        call_on_rank(launch.rank - launch.local_rank, fetch)
        options = replace(options, download=False)
    return [_located(source, one, cache, options) for source, one in zip(sources, ids, strict=True)]


def check_equal_pins(pins: Sequence[Mapping[str, str | None]]) -> None:
    """Check that all ranks found the same commits. A machine with a cache of its own may have another `main`.

    Args:
        pins: of each rank, flag -> "org/name@commit".

    Raises:
        ValueError: two ranks differ.
    """
    for rank, other in enumerate(pins):
        for flag in pins[0].keys() | other.keys():
            if pins[0].get(flag) != other.get(flag):
                raise ValueError(
                    f"--{flag}: {pins[0].get(flag)} on rank 0, {other.get(flag)} on rank {rank}; give the commit, as "
                    "org/name@commit"
                )


def _located(source: Source, found: HubId | None, cache: Path, options: HubOptions) -> Located:
    if found is None:
        folder = Path(source.value)
        if not (source.variant and folder.is_dir()):
            return Located(folder)
        try:
            return Located(_with_variant(source, folder, _select_local(source, folder)), source.value)
        except ValueError as error:
            raise ValueError(f"{source.flag} {source.value}: {error}") from None
    pinned, folder, files = _snapshot(source, found, cache, options)
    if source.variant:
        folder = _with_variant(source, folder, files)
    return Located(folder / source.file if source.file else folder, str(pinned))


def _with_variant(source: Source, folder: Path, files: Files) -> Path:
    # A LoRA, or a component without weights, has no variant to rename.
    return link_variant(folder, files, source.variant) if any(a != b for a, b in files.items()) else folder


def _snapshot(source: Source, model: HubId, cache: Path, options: HubOptions) -> tuple[HubId, Path, Files]:
    """Return the id with its commit, its whole snapshot, and the files of it that the flag needs.

    Raises:
        ValueError, OSError: as `locate_all`.
    """
    try:
        lacking = "not in the cache"
        if snapshot := hub.cached_snapshot(model, cache):
            pinned = replace(model, revision=snapshot.name)
            try:
                return pinned, snapshot, _check_snapshot(source, pinned, snapshot, cache)
            except IncompleteError as error:
                lacking = f"incomplete in the cache: {error}"
        if options.download:
            return _fetch(source, model, cache)
        raise ValueError(
            f"no such folder; get it from {model.page} with --download, which prints the size first ({lacking}; the "
            f"cache is {cache})"
        )
    except ValueError as error:
        raise ValueError(f"{source.flag} {source.value}: {error}") from None
    except OSError as error:
        raise type(error)(f"{source.flag} {source.value}: {error}") from None


def _check_snapshot(source: Source, pinned: HubId, snapshot: Path, cache: Path) -> Files:
    """Return the files of a snapshot that the flag needs.

    Raises:
        IncompleteError: some are missing, by the repository's list of files or, if the cache has none, by their names.
        ValueError: the repository itself lacks what the flag needs.
    """

    def read(name: str) -> dict[str, Any]:
        if not (snapshot / name).exists():
            raise IncompleteError(f"{name} is missing")
        return read_json(snapshot / name)

    listing = hub.cached_listing(pinned, cache)
    if not listing:
        try:
            return _select_local(source, snapshot)
        except ValueError as error:
            raise IncompleteError(str(error)) from None
    files = source.select(listing.keys(), read, source.variant)
    present = {name: found for name, found in files.items() if (snapshot / found).is_file()}
    missing = [found for name, found in files.items() if name not in present and not is_about(name)]
    if missing:
        size = hub.size_text(sum(listing[name].size for name in missing))
        raise IncompleteError(f"{len(missing)} of {len(files)} files are missing ({size}), such as {min(missing)}")
    return present


def _select_local(source: Source, folder: Path) -> Files:
    names = [
        os.path.relpath(os.path.join(place, name), folder)
        for place, _, files in os.walk(folder, followlinks=True)
        for name in files
        if os.path.exists(os.path.join(place, name))  # a link into the blobs of the cache may lead nowhere
    ]
    return source.select(names, lambda name: read_json(folder / name), source.variant)


def _fetch(source: Source, model: HubId, cache: Path) -> tuple[HubId, Path, Files]:
    """Ask the Hub for the commit and its files, and fetch those that the flag needs and the cache lacks."""
    pinned, listing = hub.list_repository(model)
    files = source.select(listing.keys(), lambda name: read_json(hub.fetch_small(pinned, name, cache)), source.variant)
    folder = hub.download(pinned, {name: listing[name] for name in files.values()}, cache)
    hub.remember(model, pinned, cache)
    return pinned, folder, files
