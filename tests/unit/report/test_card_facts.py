"""What a model card says of a base: its repository, from the ways in which a base is named."""

from pathlib import Path

import pytest

from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.report.card_facts import SINGLE_FILE, Card, Training, hub_id
from dpdmd.report.model_card import write_card

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


def test_the_code_of_a_single_file_loads_the_base_that_was_trained(tmp_path):
    """Its commit and its variant; the export's own folder names none."""
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    training = Training({"teacher_id": f"org/klein@{COMMIT}", "variant": "fp16", "teacher_infer_steps": 50}, 6)
    card = Card(
        name="mine",
        kind=SINGLE_FILE,
        layout=LAYOUTS["flux2_klein"],
        defaults=SamplingDefaults(),
        base=Path(f"org/klein@{COMMIT}"),
        training=training,
        file="mine.safetensors",
    )
    write_card(tmp_path, card, images=False)
    exact = f'variant="fp16", revision="{COMMIT}"'
    code = (tmp_path / "README.md").read_text()
    assert f'.from_pretrained("org/klein", transformer=transformer, dtype=torch.float32, {exact})' in code
