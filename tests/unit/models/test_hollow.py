"""A family's official model without its weights: checks and estimates read it like the real folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dpdmd.config.variants import FLUX2_KLEIN_9B, SD3_MEDIUM, SD35_LARGE, find_variant
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.hollow import write_hollow
from dpdmd.models.layout import count_numbers
from dpdmd.models.registry import LAYOUTS

# Numbers in the files of the official repositories, by their sizes.
NUMBERS = {
    "sd35": {
        "transformer": 2_469_663_936,
        "vae": 83_819_683,
        "text_encoder": 123_650_304,
        "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
    },
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "zimage": {"transformer": 6_154_908_736, "vae": 83_819_683, "text_encoder": 4_022_468_096},
    "flux2_klein": {"transformer": 3_875_544_576, "vae": 84_046_372, "text_encoder": 4_022_468_096},
    "qwen_image": {"transformer": 20_430_401_088, "vae": 126_892_531, "text_encoder": 8_292_166_656},
}


@pytest.mark.parametrize("family", LAYOUTS)
def test_an_official_model_has_its_published_size(family, tmp_path):
    """The folder passes the checks of a real one, and takes next to no disk."""
    layout = LAYOUTS[family]
    write_hollow(layout, tmp_path)
    check_folder(layout, tmp_path, "--teacher_id")
    found = {name: count_numbers(layout.weight_shapes(tmp_path, name)) for name in layout.classes}
    assert found == NUMBERS[family]
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*")) < 5e6


@pytest.mark.parametrize(
    ("family", "model", "numbers"),
    [
        ("sd35", SD35_LARGE, 8_146_280_768),
        ("sd35", SD3_MEDIUM, 2_084_951_104),
        ("flux2_klein", FLUX2_KLEIN_9B, 9_078_581_248),
    ],
)
def test_another_model_of_a_family_has_its_published_size(family, model, numbers, tmp_path):
    """And is found to be this model."""
    write_hollow(LAYOUTS[family], tmp_path, model)
    assert find_variant(family, tmp_path).name == model
    assert LAYOUTS[family].count_parameters(tmp_path) == numbers


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_hollow_folder_has_the_shapes_of_the_real_one(family, tiny_folder, tmp_path):
    """Of a small model, whose configurations are in the place of the official ones."""
    real: Path = tiny_folder(family)
    configs = {name: json.loads((real / name / "config.json").read_text()) for name in LAYOUTS[family].classes}
    others = {name: values for name, values in LAYOUTS[family].official.items() if name not in configs}
    layout = replace(LAYOUTS[family], official={**configs, **others})
    write_hollow(layout, tmp_path / "hollow")
    for name in layout.classes:
        assert layout.weight_shapes(tmp_path / "hollow", name) == layout.weight_shapes(real, name), name
    shutil.rmtree(tmp_path / "hollow")
