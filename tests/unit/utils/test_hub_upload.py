"""What an upload needs is checked before any work."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from dpdmd.utils.hub_upload import check_upload, retry_command, upload


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


def check(push: bool = True, model_id: str | None = None, private: bool = False, out: str = "outputs/mine") -> str:
    return check_upload(push, model_id, private, ("--out", Path(out)))


def test_the_name_is_that_of_the_flag_or_of_the_folder(token):
    assert check() == "mine" and check(model_id="lab/fast") == "lab/fast"
    assert check(push=False) == "mine"


@pytest.mark.parametrize("name", ["a/b/c", "a b", "", "/a", "a/", "..", "a--b", "a.git", "a" * 97, "lab/-é"])
def test_a_name_that_the_hub_does_not_take_is_named(token, name):
    with pytest.raises(ValueError, match="is no name of a repository; give --hub_model_id NAME"):
        check(model_id=name or " ")
    if "/" not in name and name:
        with pytest.raises(ValueError, match=r"^--out .*: is no name of a repository"):
            check(out=f"outputs/{name}")


def test_flags_without_an_upload_are_an_error(token):
    with pytest.raises(ValueError, match="--hub_model_id lab/fast: give --push_to_hub too"):
        check(push=False, model_id="lab/fast")
    with pytest.raises(ValueError, match="--private: give --push_to_hub too"):
        check(push=False, private=True)


def test_without_a_token_or_the_network_nothing_begins(token, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="no token of the Hub is here; run `hf auth login`, or set HF_TOKEN"):
        check()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="--push_to_hub: HF_HUB_OFFLINE is set"):
        check()


def test_a_failed_upload_quotes_no_token(token, monkeypatch):
    """Neither the user's own, which the cut of a long message divides, nor one that only looks like a token."""
    monkeypatch.setenv("HF_TOKEN", "odd-token-" * 5)

    def fail(*_, **__):
        raise RuntimeError(f"Bearer hf_another1 {'x' * 120} {'odd-token-' * 5}")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(OSError, match=r"failed \(Bearer hf_\*\*\* x+ \*\*\*\); folder is complete") as error:
        upload(Path("folder"), "lab/x", private=False, message="")
    assert "odd-" not in str(error.value)


def test_the_command_is_for_a_shell():
    assert retry_command(Path("a b"), "lab/x", private=True) == "hf upload lab/x 'a b' . --private"
