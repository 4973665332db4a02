"""Variables that a library fails on when it is imported."""

from contextlib import nullcontext

import pytest

from dpdmd.utils.library_settings import check_import, check_torch_variables


@pytest.mark.parametrize("error", ["ValueError", "TypeError", "ImportError"])
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


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ("expandable_segments:True", True),
        ("roundup_power2_divisions:[256:1,512:2,>:4],backend:native,", True),
        ("", True),
        (",expandable_segments:True", True),  # "$NAME,expandable_segments:True" without a NAME before
        ("expandable_segments:", False),
        ("expandable_segments=True", False),
        ("expandable_segments:True,max_split_size_mb", False),
        (",", False),
    ],
)
def test_pairs_that_end_the_import_of_torch(monkeypatch, value, valid):
    """torch 2.15 reads the valid values, and aborts at the others."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", value)
    error = pytest.raises(ValueError, match=r"^PYTORCH_CUDA_ALLOC_CONF=.*: torch reads only pairs")
    with nullcontext() if valid else error:
        check_torch_variables()
