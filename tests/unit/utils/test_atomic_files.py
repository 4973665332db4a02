"""Files are replaced completely or not at all."""

import os

import pytest

from dpdmd.utils.atomic_files import (
    LEFTOVERS,
    clear_leftovers,
    delete_on_failure,
    is_temporary,
    replacing,
    write_text,
)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "image.png").write_bytes(b"before")
    with pytest.raises(RuntimeError), replacing(tmp_path / "image.png") as file:
        file.write(b"half")
        raise RuntimeError
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "notes.txt", "\ud800")
    with pytest.raises(RuntimeError), delete_on_failure(tmp_path / "folder") as folder:
        folder.mkdir()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]
    assert (tmp_path / "image.png").read_bytes() == b"before"


def test_a_text_is_written_to_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Line breaks are not translated, and other processes never see a part of the text."""
    seen, fsync = [], os.fsync

    def watched(number):
        seen.append([is_temporary(path) and path.read_bytes() for path in tmp_path.iterdir()])
        fsync(number)

    monkeypatch.setattr("os.fsync", watched)
    write_text(tmp_path / "table.csv", "a\r\nb\n")
    assert seen == [[b"a\r\nb\n"]]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("table.csv", b"a\r\nb\n")]


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    """In containers on one disk, both may be process 1."""
    path = tmp_path / "shard.safetensors"
    with replacing(path) as one, replacing(path) as other:
        one.write(b"one")
        other.write(b"other")
        assert len(found := list(tmp_path.glob(LEFTOVERS))) == 2 and all(map(is_temporary, found))
    assert path.read_bytes() == b"one" and len(list(tmp_path.iterdir())) == 1


def test_temporary_files_of_a_killed_process_are_deleted(tmp_path):
    """Those below a folder, and those of other programs, are not."""
    (tmp_path / "below").mkdir()
    kept = {tmp_path / ".notes.tmp", tmp_path / "report.html", tmp_path / "below" / ".image.png.12.tmp"}
    for path in (*kept, tmp_path / ".image.png.12.tmp", tmp_path / ".config.yaml.3456.tmp"):
        path.write_bytes(b"half")
    clear_leftovers([tmp_path, tmp_path / "missing"])
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == kept
