"""What a model card says of a base: its repository, from the ways in which a base is named."""

from pathlib import Path

import pytest

from dpdmd.models.registry import LAYOUTS
from dpdmd.report.card_facts import hub_id

COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("family", "base", "expected"),
    [
        ("sd35", "weights/stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-diffusion-3.5-medium"),
        ("sd35", "/data/stabilityai/stable-diffusion-3.5-large", "stabilityai/stable-diffusion-3.5-large"),
        ("sdxl", "weights/Laxhar/noobai-XL-Vpred-1.0", "Laxhar/noobai-XL-Vpred-1.0"),
        ("flux2_klein", "weights/black-forest-labs/FLUX.2-klein-base-9B", "black-forest-labs/FLUX.2-klein-base-9B"),
        ("sd35", f"me/mine@{COMMIT}", "me/mine"),
        ("sd35", f"/cache/models--me--mine/snapshots/{COMMIT}", "me/mine"),
        ("sd35", "models/sd35", None),  # a folder that is gone, and no repository of a stranger
        ("sdxl", "weights/stabilityai/stable-diffusion-3.5-large", None),
    ],
)
def test_the_repository_of_a_base(family, base, expected):
    assert hub_id(Path(base), LAYOUTS[family]) == expected
