"""Ids of the Hub: what is one, what is a path, and what the cache holds; no request is sent."""

import pytest

from dpdmd.utils.hub import HubId, cached_snapshot, hide_tokens, parse_id, size_text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", HubId("org/name", "main")),
        ("stabilityai/stable-diffusion-3.5-medium", HubId("stabilityai/stable-diffusion-3.5-medium", "main")),
        ("org/name@v1.0", HubId("org/name", "v1.0")),
        ("org/name@refs/pr/3", HubId("org/name", "refs/pr/3")),
        ("here/name@main", HubId("here/name", "main")),  # a revision makes it an id
        ("here/name", None),  # a path into a folder that is here
        ("here", None),
        ("weights/dinov2-base", None),
        ("a/b/c", None),
        ("./org/name", None),
        ("../name", None),
        ("/org/name", None),
        ("org/name@", None),
        ("org/name@../../x", None),
        ("org/na--me", None),
        ("org/name\n", None),
        ("", None),
    ],
)
def test_an_id_is_two_names(tmp_path, monkeypatch, text, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert parse_id(text) == found
    assert found is None or "@" not in text or parse_id(str(found)) == found


def test_what_lies_here_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name@main").write_text("")
    assert parse_id("org/name@main") is None


def test_the_snapshot_of_a_branch_is_that_of_its_commit(tmp_path):
    folder, commit = tmp_path / "models--org--name", "0" * 40
    assert cached_snapshot(HubId("org/name"), tmp_path) is None
    (folder / "snapshots" / commit).mkdir(parents=True)
    assert cached_snapshot(HubId("org/name"), tmp_path) is None  # no branch leads there
    assert cached_snapshot(HubId("org/name", commit), tmp_path) == folder / "snapshots" / commit
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    assert cached_snapshot(HubId("org/name"), tmp_path) == folder / "snapshots" / commit
    (folder / "refs" / "main").write_text("../..")
    assert cached_snapshot(HubId("org/name"), tmp_path) is None


def test_tokens_are_hidden(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "odd-token")
    assert hide_tokens("b'Bearer odd-token' hf_abcDEF123, x") == "b'Bearer ***' hf_***, x"


def test_sizes_are_written_as_people_do():
    assert [size_text(size) for size in (16_300_000_000, 4_500_000, 0)] == ["16.3 GB", "4.5 MB", "0.0 MB"]
