"""The Hugging Face Hub: ids of models, the cache on disk, and downloads whose errors are one line.

Reading the cache sends no request. The client is imported when it is needed, and takes 0.3 seconds.
"""

import errno
import glob
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.paths import check_free
from dpdmd.utils.wording import counted

MAIN = "main"  # the default branch of a repository
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_./-]*))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_OUR_FOLDERS = ("weights", "outputs", "data", "scripts")  # of the checkout: no organisation of the Hub is meant
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)  # errors of a write name no file
_TOKEN = re.compile(r"hf_[A-Za-z0-9]+")


@dataclass(frozen=True)
class HubId:
    """A model on the Hub: its repository, "org/name", and a branch, tag or commit."""

    repository: str
    revision: str = MAIN

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a whole commit hash, whose files never change."""
        return bool(_COMMIT.fullmatch(self.revision))

    @property
    def page(self) -> str:
        """The address of the repository, without credentials that the endpoint may have."""
        from huggingface_hub import constants

        place = urlsplit(constants.ENDPOINT)
        return f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path}/{self.repository}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size in bytes, and its name in the cache's folder of blobs."""

    size: int
    blob: str


def parse_id(text: str) -> HubId | None:
    """Return the id that a model's flag holds, "org/name" or "org/name@revision"; None if the flag holds a path.

    A file or folder of that name is a path. So is a name whose first part is a folder here, unless it has a revision.
    """
    match = _ID.fullmatch(text)
    if match is None or ".." in text or "--" in match["repository"] or os.path.lexists(text):
        return None
    first = text.partition("/")[0]
    if match["revision"] is None and (first in _OUR_FOLDERS or os.path.isdir(first)):
        return None
    return HubId(match["repository"], match["revision"] or MAIN)


def cache_folder(cache_dir: str | None) -> Path:
    """Return the cache: `cache_dir`, else HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    from huggingface_hub import constants

    return Path(os.path.expanduser(cache_dir or constants.HF_HUB_CACHE)).absolute()


def _repository_folder(model: HubId, cache: Path) -> Path:
    return cache / f"models--{model.repository.replace('/', '--')}"


def cached_snapshot(model: HubId, cache: Path) -> Path | None:
    """Return the folder of the revision's files in the cache, which may be incomplete; None if there is none."""
    folder, commit = _repository_folder(model, cache), model.revision
    if not model.is_pinned:
        try:
            commit = (folder / "refs" / model.revision).read_text(encoding="utf-8").strip()
        except OSError:
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def cached_listing(model: HubId, cache: Path) -> dict[str, RemoteFile]:
    """Return the repository's files at a commit as an earlier download listed them; empty if it did not."""
    import huggingface_hub

    listed = getattr(huggingface_hub, "get_cached_repo_tree", None)  # since version 2
    try:
        files = listed(model.repository, revision=model.revision, cache_dir=cache) if listed else ()
    except Exception:  # no listing is there, or one of another version
        return {}
    return {file.path: RemoteFile(file.size, file.blob_id) for file in files}


def list_repository(model: HubId) -> tuple[HubId, dict[str, RemoteFile]]:
    """Ask the Hub for the commit of a revision and for its files.

    Raises:
        ValueError: the repository or the revision is not there, or may not be read.
        ConnectionError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _one_line_errors(model):
        api = HfApi()
        commit = model.revision
        if not model.is_pinned:
            commit = api.model_info(model.repository, revision=model.revision).sha
        tree = api.list_repo_tree(model.repository, recursive=True, revision=commit)
        files = {
            file.path: RemoteFile(file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for file in tree
            if isinstance(file, RepoFile)
        }
    return replace(model, revision=commit), files


def missing_files(model: HubId, files: Mapping[str, RemoteFile], cache: Path) -> dict[str, RemoteFile]:
    """Return the files that the snapshot of a commit lacks."""
    snapshot = _repository_folder(model, cache) / "snapshots" / model.revision
    return {name: file for name, file in files.items() if not (snapshot / name).is_file()}


def download(model: HubId, files: Mapping[str, RemoteFile], cache: Path) -> Path:
    """Fetch the files of a commit that the cache lacks, and return its snapshot folder. Prints the size first.

    Weights come last: if they are there, so are the configurations, and a tokenizer cannot lack a small file.

    Raises:
        ValueError: the model may not be read, or does not fit the disk.
        ConnectionError: the Hub cannot be reached, or the connection broke too often.
        OSError: a file cannot be written.
    """
    from huggingface_hub import snapshot_download

    folder = _repository_folder(model, cache)
    snapshot = folder / "snapshots" / model.revision
    missing = missing_files(model, files, cache)
    if not missing:
        return snapshot
    size = sum(file.size for file in missing.values() if not (folder / "blobs" / file.blob).is_file())
    check_free(str(cache), cache, size, "the files that are missing", "free some, or give another --cache_dir")
    what = f"{counted(len(missing), 'file')}, {size_text(size)}"
    tqdm.write(f"downloading {model.repository} at {model.revision[:12]}: {what}, to {cache}", file=sys.stderr)
    large = [name for name in missing if name.endswith((".safetensors", ".bin", ".pt", ".pth"))]
    with _one_line_errors(model):
        for names in ([name for name in missing if name not in large], large):
            if names:
                patterns = [glob.escape(name) for name in names]
                snapshot_download(model.repository, revision=model.revision, cache_dir=cache, allow_patterns=patterns)
    if lacking := missing_files(model, files, cache):
        raise ConnectionError(f"{next(iter(lacking))} did not arrive whole; the same command goes on")
    return snapshot


def fetch_small(model: HubId, name: str, cache: Path) -> Path:
    """Fetch one small file of a commit, without a word, and return its path in the snapshot.

    Raises:
        ValueError, ConnectionError, OSError: as `download`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with _one_line_errors(model):
            return Path(hf_hub_download(model.repository, name, revision=model.revision, cache_dir=cache))
    finally:
        if shown:
            enable_progress_bars()


def remember(model: HubId, pinned: HubId, cache: Path) -> None:
    """Write the commit of a branch or tag into the cache, so that it is found without a request."""
    if not model.is_pinned:
        write_text(_repository_folder(model, cache) / "refs" / model.revision, pinned.revision)


def size_text(size: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@contextmanager
def _one_line_errors(model: HubId) -> Iterator[None]:
    """Turn the client's errors, of many lines, into one that says what to do. No token is quoted.

    Raises:
        ValueError: the repository or the revision is not there, or may not be read.
        ConnectionError: the Hub cannot be reached.
        OSError: a file cannot be written.
    """
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise ValueError("HF_HUB_OFFLINE is set, so nothing is fetched: unset it") from None
    except errors.GatedRepoError:
        raise ValueError(f"is gated: accept its licence on {model.page}, then {log_in}") from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{model.page} has no revision {model.revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(f"no such folder, and no repository {model.page}, or it is private: {log_in}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        if status in (401, 403):
            raise ValueError(f"{model.page} answers {status}, the token may not read it: {log_in}") from None
        raise ConnectionError(f"{model.page} answers {status}; the same command goes on") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename:
            raise OSError(error.errno, error.strerror, error.filename) from None
        if isinstance(error, OSError) and error.errno in _DISK:
            raise OSError(error.errno, f"{error.strerror}, while the cache got {model.page}") from None
        reason = f"{type(error).__name__}: {shorten_error(error, hide_tokens)}"
        raise ConnectionError(f"{model.page} cannot be read ({reason}); the same command goes on") from None


def hide_tokens(text: str) -> str:
    """Return a text without the user's token and without anything that looks like a token."""
    from huggingface_hub import get_token

    token = get_token()
    return _TOKEN.sub("hf_***", text.replace(token, "***") if token else text)
