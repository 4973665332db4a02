"""Values read from the small files of a model's folder: sizes, lengths, and the count of the weights' numbers."""

import pytest
from safetensors.torch import load_file

from dpdmd.models.checks.folder import check_folder
from dpdmd.models.layout_values import CLASSIFIER_FREE, Guidance
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults

LAYOUT = LAYOUTS["sdxl"]


def test_values_of_the_small_files(tiny_sdxl):
    """No network is loaded."""
    check_folder(LAYOUT, tiny_sdxl, "--teacher_id")
    weights = load_file(tiny_sdxl / LAYOUT.network / "diffusion_pytorch_model.safetensors")
    count = sum(tensor.numel() for tensor in weights.values())
    assert LAYOUT.count_parameters(tiny_sdxl) == count
    assert LAYOUT.default_size(tiny_sdxl) == 64
    defaults = read_sampling_defaults(tiny_sdxl, LAYOUT.defaults)
    assert defaults == SamplingDefaults(steps=50, guidance_scale=8.0, max_sequence_length=77)
    assert LAYOUT.text_length(tiny_sdxl, None, defaults) == 10
    LAYOUT.check_size(tiny_sdxl, 4096, 72)
    with pytest.raises(ValueError, match="--width 68: must be a multiple of 8"):
        LAYOUT.check_size(tiny_sdxl, 64, 68)
    with pytest.raises(ValueError, match="--max_sequence_length 77: this model's prompts have 10 tokens"):
        LAYOUT.text_length(tiny_sdxl, 77, defaults)


def test_a_length_that_no_flag_gives_names_no_flag(tiny_pipeline):
    layout, defaults = LAYOUTS["sd35"], SamplingDefaults(max_sequence_length=100_000)
    with pytest.raises(ValueError) as error:
        layout.text_length(tiny_pipeline, None, defaults)
    assert str(error.value) == (
        f"{tiny_pipeline}: max_sequence_length is 100000 by its dpdmd.json or its family, but this model takes 512 "
        "tokens at most"
    )


def test_a_scale_below_that_without_guidance_is_named():
    """People give 0 for a student without guidance, as for other few-step models; here it leaves the prompts out."""
    plain, shifted = CLASSIFIER_FREE, Guidance("c + s (c - u)", off=0.0)
    assert not plain.weakens(1.0) and not plain.weakens(3.5) and not shifted.weakens(0.0)
    assert plain.weakens(0.5).startswith(
        "guidance 0.5: the prompts count less, since this model predicts u + s (c - u)"
    )
    assert plain.weakens(0.0).endswith(
        "the prompts count for nothing, since this model predicts u + s (c - u); 1 is without guidance"
    )
