"""The strict loader: no weight is missing, of another shape, or (for the generator's network) without a place."""

from pathlib import Path

import pytest
import torch
from edit_models import DIFFUSION, MODEL, rewrite_weights, set_json

from dpdmd.models.loading import load_strict, raise_as_value_error
from dpdmd.models.registry import LAYOUTS, family_class

CPU = torch.device("cpu")
PLACES = "embeddings.position_embedding.weight"
FILES = [
    ("sd35", "text_encoder", MODEL, f"text_model.{PLACES}"),
    ("sd35", "transformer", DIFFUSION, "transformer_blocks.1.attn.to_q.weight"),
    ("sd35", "vae", DIFFUSION, "decoder.conv_in.weight"),
    ("sdxl", "text_encoder", MODEL, PLACES),  # as transformers 5 writes this class
    ("sdxl", "unet", DIFFUSION, "up_blocks.0.resnets.0.conv1.weight"),
    ("sdxl", "vae", DIFFUSION, "decoder.conv_in.weight"),
]


def load(family: str, folder: Path, part: str) -> object:
    """Load one part of a pipeline folder as a family does, without a check before."""
    loader = family_class(family)(CPU, torch.float32)
    if part == LAYOUTS[family].network:
        return loader.load_network(folder, torch.float32)
    return loader.load_text_encoder(folder, 10) if part == "text_encoder" else loader.load_image_decoder(folder)


@pytest.mark.parametrize(("family", "part", "file", "name"), FILES)
def test_loading_is_strict_by_itself(copied, family, part, file, name):
    """The libraries would put random numbers in place of the weight, and only warn."""
    folder = copied(family)
    rewrite_weights(folder / part / file, lambda weights: weights.update({name: torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match=rf"{name} has shape \(3, 3\), by its config.json \("):
        load(family, folder, part)
    rewrite_weights(folder / part / file, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"its weights lack {name}: another model's"):
        load(family, folder, part)


@pytest.mark.parametrize(("family", "part"), [("sd35", "transformer"), ("sdxl", "unet")])
def test_a_network_takes_no_weights_that_it_has_no_place_for(copied, family, part):
    folder = copied(family)
    rewrite_weights(folder / part / DIFFUSION, lambda weights: weights.update(more=torch.zeros(2)))
    with pytest.raises(ValueError, match="its weights hold more, for which"):
        load(family, folder, part)


def test_what_the_library_cannot_read_is_one_line(copied):
    from transformers import CLIPTextModelWithProjection

    folder = copied("sd35") / "text_encoder"
    set_json(folder / "config.json", hidden_size="x")
    with pytest.raises(ValueError, match=r"text_encoder does not load as a CLIPTextModelWithProjection \(") as error:
        load_strict(CLIPTextModelWithProjection, folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_full_memory_is_no_fault_of_a_file(error):
    with pytest.raises(type(error)) as found, raise_as_value_error("a folder does not load"):
        raise error
    assert found.value is error
