"""Variables that a library fails on when it is imported."""

import pytest

from dpdmd.utils.library_settings import check_import


@pytest.mark.parametrize("error", ["ValueError", "TypeError"])
def test_a_variable_that_a_library_cannot_read_is_named(tmp_path, monkeypatch, error):
    (tmp_path / "picky_library.py").write_text(f"raise {error}('could not convert')")
    monkeypatch.syspath_prepend(tmp_path)
    check_import("PICKY_", "picky_library")  # not imported without a variable
    monkeypatch.setenv("PICKY_WAIT", "abc")
    says = r"^PICKY_WAIT=abc: picky_library cannot read it \(could not convert\); correct or unset it$"
    with pytest.raises(ValueError, match=says):
        check_import("PICKY_", "picky_library")
    (tmp_path / "patient_library.py").write_text("")
    check_import("PICKY_", "patient_library")
