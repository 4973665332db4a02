"""The manifest of a folder: what is missing, truncated or altered is named."""

import pytest

from dpdmd.utils.manifest import check_files, check_sizes, read_manifest, write_manifest


def test_a_manifest_of_an_empty_folder_and_of_odd_names(tmp_path):
    write_manifest(tmp_path, {"step": 0})
    check_files(tmp_path, read_manifest(tmp_path))
    (tmp_path / "ein Bild ü.bin").write_bytes(b"1")
    write_manifest(tmp_path, {"step": 0})
    (tmp_path / "ein Bild ü.bin").write_bytes(b"2")
    with pytest.raises(ValueError, match=r"ein Bild ü\.bin was altered"):
        check_files(tmp_path, read_manifest(tmp_path))


def test_sizes_alone_show_what_is_missing_or_truncated(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"123")
    write_manifest(tmp_path, {})
    manifest = read_manifest(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"124")
    check_sizes(tmp_path, manifest)
    (tmp_path / "a.bin").write_bytes(b"12")
    with pytest.raises(ValueError, match=r"a\.bin has 2 bytes where manifest\.json promises 3"):
        check_sizes(tmp_path, manifest)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ValueError, match=r"a\.bin is missing"):
        check_sizes(tmp_path, manifest)
