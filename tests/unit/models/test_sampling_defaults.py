"""dpdmd.json: values are read as they were written, and a wrong value is named."""

import json
import shutil
from pathlib import Path

import pytest

from dpdmd.models.sampling_defaults import DEFAULTS_FILE, SamplingDefaults, read_sampling_defaults
from dpdmd.sampling.model_source import base_source

HUGE = 10**400  # a number in JSON, and more than a float can hold
BAD_DEFAULTS = [
    ({"steps": "x"}, "steps is 'x', which must be a whole number"),
    ({"steps": 0}, "steps is 0"),
    ({"steps": True}, "steps is True"),
    ({"steps": 2.0}, "steps is 2.0"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ({"guidance_scale": -1}, "guidance_scale is -1"),
    ({"guidance_scale": 1e38}, "guidance_scale is 1e+38, which must be a number, at least 0 and at most 10,000"),
    ({"guidance_scale": HUGE}, f"guidance_scale is {str(HUGE)[:40]}... (401 digits), which must be a number"),
    (
        {"steps": HUGE},
        f"steps is {str(HUGE)[:40]}... (401 digits), which must be a whole number, at least 1 and at most",
    ),
    ({"height": HUGE}, f"height is {str(HUGE)[:40]}... (401 digits), which must be a whole number"),
    ({"max_sequence_length": HUGE}, "max_sequence_length is 1"),
    ({"shift": HUGE}, "shift is 1"),
    ({"own_scheduler": {"shift": HUGE}}, "own_scheduler is {'shift': 1"),
    ({"sigmas_argument": [HUGE]}, "sigmas_argument is [1"),
    ({"steps": 1, "sigmas": [HUGE, 0]}, "sigmas must be null or 2 numbers"),
    ({"max_sequence_length": None}, "max_sequence_length is None"),
    ({"steps": 2, "sigmas": [1, 0.5]}, "sigmas must be null or 3 numbers"),
    ({"steps": 2, "sigmas": [1, 0.5, "0"]}, "sigmas must be"),
    ({"steps": 2, "sigmas": [1, 1, 0]}, "fall strictly to 0"),
    ({"steps": 2, "sigmas": [1, 0.5, 0.2]}, "fall strictly to 0"),
    ({"sigmas": []}, "sigmas must be"),
    ({"sigmas": "default"}, "sigmas must be"),
    ({"grid": "fast"}, "grid is 'fast', which must be one of default, trailing"),
    ({"grid": ["default"]}, "grid is ['default']"),
    ({"shift": 0}, "shift is 0"),
    ({"shift": 1e30}, "shift is 1e+30, which must be a number from 0.001 to 1000, or null"),
    ({"shift": 1e-12}, "shift is 1e-12"),
    ({"own_scheduler": {"shift": "3"}}, "own_scheduler is {'shift': '3'}"),
    ({"own_scheduler": 3}, "own_scheduler is 3"),
    ({"sigmas_argument": [None]}, "sigmas_argument is [None], which must be numbers, or null"),
    ({"base": 3}, "base is 3"),
    ({"base_from_here": ""}, "base_from_here is ''"),
    ({"height": 0}, "height is 0, which must be a whole number"),
    ({"width": "64"}, "width is '64'"),
    ({"no_t5": "no"}, "no_t5 is 'no', which must be true or false"),
    ({"stepz": 3}, "not of this version"),
]


@pytest.mark.parametrize(("defaults", "says"), BAD_DEFAULTS)
def test_sampling_defaults_must_be_valid(tmp_path, defaults, says):
    (tmp_path / DEFAULTS_FILE).write_text(json.dumps(defaults))
    with pytest.raises(ValueError) as error:
        read_sampling_defaults(tmp_path, SamplingDefaults())
    assert str(error.value).startswith(f"{tmp_path / DEFAULTS_FILE}: ") and says in str(error.value)


def test_sampling_defaults_are_read_as_written(tmp_path):
    defaults = SamplingDefaults(
        steps=2,
        guidance_scale=0,
        sigmas=(14.6, 0.5, 0),
        grid="trailing",
        shift=3.0,
        own_scheduler={"shift": 3.0, "shift_terminal": None, "use_dynamic_shifting": True},
        sigmas_argument=(14.6, 0.5),
        base="x",
        no_t5=True,
        height=64,
        width=32,
    )
    defaults.write(tmp_path)
    assert read_sampling_defaults(tmp_path, SamplingDefaults()) == defaults


def test_a_lora_finds_its_base_from_any_folder(tmp_path, monkeypatch):
    """The absolute path wins while it exists; in a moved tree the relative one does."""
    base, lora = tmp_path / "tree" / "weights" / "sd35", tmp_path / "tree" / "run" / "step" / "lora"
    for folder in (base, lora):
        folder.mkdir(parents=True)
    (lora.parent.parent / "latest").symlink_to("step")
    monkeypatch.chdir(tmp_path / "tree")
    given = SamplingDefaults(base_variant="fp16")
    given.with_base(Path("weights/sd35/"), Path("run/step/lora")).write(lora)
    monkeypatch.chdir("/")

    def found(root: Path) -> Path | None:
        folder = root / "run" / "latest" / "lora"
        assert base_source(folder).value == str(read_sampling_defaults(folder, SamplingDefaults()).find_base(folder))
        return read_sampling_defaults(folder, SamplingDefaults()).find_base(folder)

    assert found(tmp_path / "tree") == base
    shutil.copytree(tmp_path / "tree", tmp_path / "copy", symlinks=True)
    assert found(tmp_path / "copy") == base
    (tmp_path / "tree").rename(tmp_path / "moved")
    assert found(tmp_path / "moved") == tmp_path / "moved" / "weights" / "sd35"
    shutil.rmtree(tmp_path / "moved" / "weights")
    assert found(tmp_path / "moved") == base  # for the error about it
    assert SamplingDefaults().find_base(lora) is None
