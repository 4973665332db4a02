"""Digests of files: read once while a file stays as it is, and again after any change."""

import hashlib
import json
import os

import pytest

from dpdmd.utils import file_digests
from dpdmd.utils.file_digests import sha256_of_files


@pytest.fixture
def reads(tmp_path, monkeypatch) -> list[str]:
    """Count the files that are read; files of any size are kept, as soon as they are written."""
    healthy, seen = hashlib.file_digest, []

    def read(file, name):
        seen.append(os.path.basename(file.name))
        return healthy(file, name)

    monkeypatch.setattr(hashlib, "file_digest", read)
    monkeypatch.setattr(file_digests, "MIN_BYTES", 0)
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", -60.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file_digests._entries.clear()
    return seen


def new_process() -> None:
    file_digests._entries.clear()


def test_a_file_is_read_once(tmp_path, reads):
    """Also by the next process, and under another name; the digest is that of sha256sum."""
    (tmp_path / "a").write_bytes(b"weights")
    os.link(tmp_path / "a", tmp_path / "b")
    first = sha256_of_files([tmp_path / "a"])
    assert first == [hashlib.sha256(b"weights").hexdigest()]
    assert sha256_of_files([tmp_path / "a"]) == first
    new_process()
    assert sha256_of_files([tmp_path / "b"]) == first and reads == ["a"]
    assert sha256_of_files([tmp_path / "b"], read_all=True) == first and reads == ["a", "b"]


def test_a_change_of_the_same_size_and_times_is_seen(tmp_path, reads):
    """As `touch -d` or an archive's extraction leaves it: no program can set the change time back."""
    file = tmp_path / "a"
    file.write_bytes(b"weights 1")
    status = file.stat()
    (before,) = sha256_of_files([file])
    file.write_bytes(b"weights 2")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns and file.stat().st_size == status.st_size
    assert sha256_of_files([file]) == [hashlib.sha256(b"weights 2").hexdigest()] != [before]


def test_a_file_that_was_just_written_is_not_kept(tmp_path, reads, monkeypatch):
    """It could change again within one step of the file system's clock."""
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", 2.0)
    (tmp_path / "a").write_bytes(b"weights")
    for _ in range(2):
        sha256_of_files([tmp_path / "a"])
    assert reads == ["a", "a"] and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"1:2:3:4:5": 6}'])
def test_a_damaged_record_is_as_good_as_none(tmp_path, reads, content):
    kept = tmp_path / "cache" / "dpdmd" / "file_digests.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(content)
    (tmp_path / "a").write_bytes(b"weights")
    assert sha256_of_files([tmp_path / "a"]) == [hashlib.sha256(b"weights").hexdigest()]
    assert list(json.loads(kept.read_text()).values()) == [hashlib.sha256(b"weights").hexdigest()]


def test_a_home_that_cannot_be_written_does_no_harm(tmp_path, reads, monkeypatch):
    """A file in the folder's place, which also root cannot write below."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "a").write_bytes(b"weights")
    for _ in range(2):
        assert sha256_of_files([tmp_path / "a"]) == [hashlib.sha256(b"weights").hexdigest()]
    assert reads == ["a"]  # kept by the process itself


def test_the_record_does_not_grow_for_ever(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(file_digests, "MAX_ENTRIES", 3)
    for number in range(5):
        (tmp_path / str(number)).write_text(str(number))
        sha256_of_files([tmp_path / str(number)])
    kept = json.loads((tmp_path / "cache" / "dpdmd" / "file_digests.json").read_text())
    assert list(kept.values()) == [hashlib.sha256(str(number).encode()).hexdigest() for number in (2, 3, 4)]


def test_a_file_that_cannot_be_read_is_an_error(tmp_path, reads):
    with pytest.raises(OSError, match="none"):
        sha256_of_files([tmp_path / "none"])
