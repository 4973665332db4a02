"""Upload a folder to a model repository of the Hugging Face Hub.

The token is the one of `hf auth login` or of HF_TOKEN. It is never taken from a flag, and never shown.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.hub import hide_tokens


class _PublicError(OSError):
    """What was to be private would be public."""


def check_upload(push: bool, model_id: str | None, private: bool, folder: tuple[str, Path]) -> str:
    """Check the flags of an upload, before any work, and if `push` what it needs: a valid name, and a token.

    Args:
        folder: flag and path of a folder with the repository's name, if there is no `model_id`.

    Returns:
        the name of the repository.

    Raises:
        ValueError: one line that names the flag, or what else is missing.
    """
    if not push and (model_id or private):
        raise ValueError(f"{f'--hub_model_id {model_id}' if model_id else '--private'}: give --push_to_hub too")
    flag, path = ("--hub_model_id", model_id) if model_id else folder
    repository = model_id or path.absolute().name
    if push:
        _check_name(f"{flag} {path}", repository)
        _check_access()
    return repository


def _check_name(given: str, repository: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except ValueError:
        raise ValueError(
            f"{given}: is no name of a repository; give --hub_model_id NAME, or ORGANISATION/NAME"
        ) from None


def _check_access() -> None:
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise ValueError("--push_to_hub: HF_HUB_OFFLINE is set; unset it")
    if not get_token():
        raise ValueError("--push_to_hub: no token of the Hub is here; run `hf auth login`, or set HF_TOKEN")


def upload(
    folder: Path,
    repository: str,
    *,
    private: bool,
    message: str,
    on_name: Callable[[Path, str, str], None] = lambda folder, given, full: None,
) -> str:
    """Upload all files of a folder to a repository, which is created if it does not exist, and return its address.

    Args:
        on_name: called before the files are uploaded with the folder, `repository`, and its name with the owner's.

    Raises:
        OSError: the upload failed, for any reason; the message has the command that tries again.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        created = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(created.repo_id).private:  # one that exists stays as it is
            raise _PublicError(
                f"--private: {created.repo_id} exists and is public, so nothing was uploaded; {folder} is complete; "
                "make the repository private, or give another --hub_model_id"
            )
        on_name(folder, repository, created.repo_id)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message=message)
    except _PublicError:
        raise
    except Exception as error:  # of the client, the network or the server: tens of classes
        raise OSError(
            f"the upload to {repository} failed ({shorten_error(error, hide_tokens)}); {folder} is complete; to try "
            f"again: {retry_command(folder, repository, private=private)}"
        ) from None
    return str(created)


def retry_command(folder: Path, repository: str, *, private: bool) -> str:
    """Return the command of the Hub's own program that uploads the folder."""
    return shlex.join(["hf", "upload", repository, str(folder), ".", *(["--private"] if private else [])])
