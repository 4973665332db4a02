"""Paths from the command line, and the check that output can be written. Imports nothing heavy."""

import argparse
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dpdmd.utils.text_files import has_key, is_utf8

MODEL_INDEX = "model_index.json"  # in the folder of a diffusers pipeline
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"  # below the folder of a diffusers pipeline
DEFAULTS_FILE = "dpdmd.json"  # sampling defaults, beside model_index.json or a LoRA
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name
NETWORK_KEYS = ("_class_name", "architectures", "model_type", "model_cfg")  # of a network's config.json in any library
LATEST, BEST = "latest", "best"  # links beside the checkpoints of a run
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found")  # of macOS's archives, Synology's thumbnails and fsck
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # of Windows


def expanded(text: str) -> str:
    """Expand a leading ~, which the shell leaves alone after `--flag=`, and follow text files in place of links.

    Raises:
        ValueError: ~name of an unknown user, which would otherwise become a folder of that name; an address such as
            s3://bucket, which would become the folder s3:; or a name that is not UTF-8, which no result file can hold.
    """
    if not is_utf8(text):
        raise ValueError(f"{text!r}: its name is not UTF-8; rename it")
    if "://" in text:
        raise ValueError(f"{text}: is an address; give a local path, or for a model org/name, its id on the Hub")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(
            f"{text}: {path.partition('/')[0]} is not the home of a known user; write ./~ for a folder of that name"
        )
    return _follow_text_links(path)


def _follow_text_links(text: str) -> str:
    """Replace `latest` and `best` in a path with slashes if they are text files in place of links."""
    parts = text.split("/")
    for number, part in enumerate(parts[1:], 1):
        place = "/".join(parts[: number + 1])
        if part in (LATEST, BEST) and os.path.isfile(place) and (name := linked_name(Path(place))):
            parts[number] = name
    return "/".join(parts)


def linked_name(path: Path) -> str | None:
    """Return the target of a link, or of a short text file that takes its place. Return None for all other paths.

    File systems without links have such text files, and so have Git checkouts and copies without links.
    """
    try:
        if path.is_symlink():
            return os.readlink(path)
        if path.is_file() and path.stat().st_size < 256:
            name = path.read_text(encoding="utf-8").strip()
            return name if name and "/" not in name and name.isprintable() else None
    except (OSError, UnicodeDecodeError):
        pass
    return None


def is_system_file(path: Path) -> bool:
    """Return whether the operating system or a file manager made a file: .DS_Store, ._0.png, Thumbs.db, .nfs000012."""
    name = path.name
    hidden = name.startswith(("._", ".DS_Store", ".nfs", ".Trash", ".directory", ".fuse_hidden"))
    return hidden or name.lower() in _SYSTEM_FILES or any(part in _SYSTEM_FOLDERS for part in path.parts)


def user_path(text: str) -> Path:
    """Convert the value of a flag to a path.

    Raises:
        argparse.ArgumentTypeError: it is empty, has a zero byte, or is no path (`expanded`).
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is empty; give a path, or leave it out")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def same_place(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths name one file or folder: ./a, a/ and links count as a. It may not exist.

    All code compares paths with `os.path.realpath`: `Path.resolve` raises RuntimeError on a link that leads to itself.
    """
    return os.path.realpath(one) == os.path.realpath(other)


def find_base(folder: Path, base: str | None, from_here: str | None) -> Path | None:
    """Return the pipeline folder that a LoRA in `folder` changes, even if it is gone; None if none is named.

    Args:
        base, from_here: its path, and its path relative to `folder`, which counts if the first one is gone.
    """
    places = [Path(base)] if base else []
    places += [Path(os.path.normpath(os.path.join(os.path.realpath(folder), from_here)))] if from_here else []
    return next((place for place in places if place.is_dir()), next(iter(places), None))


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the names of different files or folders, with as many parent folders as make the names different."""
    parts = [Path(os.path.realpath(path)).parts for path in paths]
    depth = 1
    while max(Counter(part[-depth:] for part in parts).values(), default=1) > 1:
        depth += 1
    return ["/".join(part[-depth:]).removeprefix("//") for part in parts]


def check_writable(flag: str, path: Path) -> None:
    """Check that `path` is a writable folder or can be created, and that it is not inside a model's folder.

    Raises:
        ValueError: one line that names `flag`.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # for example, the name is too long, or a parent folder is not readable
        raise ValueError(f"{flag} {path}: cannot be made ({error.strerror}); give another folder") from None
    nearest = nearest_existing(path)
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{flag} {path}: is a link that leads nowhere; give a folder")
    if not nearest.is_dir():
        raise ValueError(f"{flag} {path}: {nearest} is a file; give a folder")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{flag} {path}: {nearest} is not writable")
    try:
        with tempfile.TemporaryFile(dir=nearest):  # os.access allows root everything, also in /proc
            pass
    except OSError as error:
        raise ValueError(f"{flag} {path}: {nearest} cannot be written to ({error.strerror})") from None
    parents = _with_parents(Path(os.path.realpath(path)))
    if model := next((folder for folder in parents if _is_model(folder)), None):
        raise ValueError(f"{flag} {path}: lies in a model's folder, {model}; give another folder")


def _is_model(folder: Path) -> bool:
    """Return whether a folder holds a pipeline, or one network: a component of a pipeline, or a scorer."""
    network = has_key(folder / "config.json", *NETWORK_KEYS) and any(folder.glob("*.safetensors"))
    return network or (folder / MODEL_INDEX).is_file()


def check_writable_file(flag: str, path: Path) -> None:
    """Check that `path` is a file, or can become one, in a folder that is writable or can be created.

    Raises:
        ValueError: one line that names `flag`.
    """
    check_writable(flag, path.parent)
    if path.is_dir():
        raise ValueError(f"{flag} {path}: is a folder; give a file")


def check_replaced(flag: str, folder: Path, names: Iterable[str], *, ours: bool) -> None:
    """Check that the files that a program writes into `folder` replace no folder, and no files but its own.

    Args:
        ours: whether the program wrote those that are there.

    Raises:
        ValueError: one line that names `flag`.
    """
    for path in (folder / name for name in names):
        if path.is_dir():
            raise ValueError(f"{flag} {folder}: {path} is a folder, but a file is written there; move it away")
        if not ours and os.path.lexists(path):
            raise ValueError(
                f"{flag} {folder}: {path} would be replaced, and nothing shows that this program wrote it; move it "
                "away, or give another folder"
            )


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that a path, which need not exist, lies on or will lie on."""
    return shutil.disk_usage(nearest_existing(path)).free


def check_free(place: str, path: Path, needed: float, what: str, remedy: str) -> None:
    """Check that `what` of `needed` bytes fits the disk of `path`.

    Raises:
        ValueError: it does not. The line begins with `place` and ends with `remedy`.
    """
    if needed > (free := free_bytes(path)):
        raise ValueError(
            f"{place}: {free / 1e9:.2f} GB are free, but {what} will take about {needed / 1e9:.2f} GB; {remedy}"
        )


def nearest_existing(path: Path) -> Path:
    """Return `path` if it exists, else the nearest parent that exists."""
    return next(place for place in _with_parents(path.absolute()) if place.exists())


def _with_parents(path: Path) -> tuple[Path, ...]:
    return (path, *path.parents)
