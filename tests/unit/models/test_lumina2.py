"""What Lumina-Image 2.0 does beyond the suite of all families (tests/integration/test_families.py)."""

import shutil
from pathlib import Path

import pytest
import torch
from edit_models import set_json

from dpdmd.models.registry import family_class

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "x"]


@pytest.fixture(scope="module")
def family():
    return family_class("lumina2")(CPU, torch.float32)


def test_the_unconditional_prompt_has_no_system_prompt(family, tiny_folder):
    """Also in a batch with others."""
    encoder = family.load_text_encoder(tiny_folder("lumina2"), 160)
    together, null = encoder.encode([PROMPTS[0], "", PROMPTS[1]]), encoder.encode([""])
    assert null.lengths == (1,) == together.lengths[1:2] and min(together.lengths[::2]) > 60
    torch.testing.assert_close(together.rows(1, 2).context, null.context)


def test_a_tokenizer_that_adds_nothing_to_an_empty_prompt_is_an_error(family, tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder("lumina2"), tmp_path / "teacher"))
    set_json(folder / "tokenizer" / "tokenizer_config.json", add_bos_token=False)
    set_json(folder / "tokenizer" / "tokenizer.json", post_processor=None)
    with pytest.raises(ValueError, match="tokenizer: an empty prompt has no token; set add_bos_token to true"):
        family.load_text_encoder(folder, 160)


def test_a_guided_row_has_the_norm_of_the_conditional_one(family):
    unconditional, conditional = torch.randn(
        2, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    plain = unconditional + 4 * (conditional - unconditional)
    for plain_row, row, own in zip(
        plain.flatten(0, 2),
        family.guide(unconditional, conditional, 4.0).flatten(0, 2),
        conditional.flatten(0, 2),
        strict=True,
    ):
        torch.testing.assert_close(row, plain_row * own.square().sum().sqrt() / plain_row.square().sum().sqrt())


@torch.no_grad()
def test_features_are_those_of_each_prompt_alone(family, tiny_folder):
    """The image's tokens come after a prompt's own, so in a batch each sample has them elsewhere."""
    folder = tiny_folder("lumina2")
    network, encoder = family.load_network(folder, torch.float32), family.load_text_encoder(folder, 160)
    z, sigma, text = torch.randn(2, 4, 8, 8), torch.tensor([0.9, 0.3]), encoder.encode(PROMPTS)
    blocks = family.feature_blocks(network)
    together = family.features(network, blocks, z, sigma, text)
    for row in range(2):
        alone = family.features(network, blocks, z[[row]], sigma[[row]], text.rows(row, row + 1))
        for ours, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(ours[0], theirs[row], rtol=1e-4, atol=1e-5)
