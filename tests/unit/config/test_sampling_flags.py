"""Flags of the programs that sample images."""

import argparse

import pytest

from dpdmd import generate
from dpdmd.config.options import MAX_GRID_STEPS
from dpdmd.config.sampling_flags import FLAGS, MAX_IN_ALL, RANGES, add_sampling_flags, check_ranges, check_total


def test_a_flag_that_is_not_given_is_left_to_the_models_folder():
    parser = argparse.ArgumentParser()
    add_sampling_flags(parser, *FLAGS)
    assert vars(parser.parse_args([])) == dict.fromkeys(FLAGS, None) | {"seed": 0}
    given = parser.parse_args(["--steps", "4", "--guidance_scale", "2.5", "--bf16"])
    assert (given.steps, given.guidance_scale, given.bf16) == (4, 2.5, True)
    check_ranges(vars(given))


def test_every_number_has_a_range():
    parser = generate.build_parser()
    numbers = {action.dest for action in parser._actions if action.type in (int, float)}
    assert numbers and numbers <= RANGES.keys()


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("steps", 0, f"--steps 0: must be 1 to {MAX_GRID_STEPS}"),
        ("seed", -1, "--seed -1: must be 0 to 4294967295"),
        (
            "guidance_scale",
            float("inf"),
            "--guidance_scale inf: must be a finite number, at least 0 and at most 10,000",
        ),
        (
            "guidance_scale",
            float("nan"),
            "--guidance_scale nan: must be a finite number, at least 0 and at most 10,000",
        ),
        ("guidance_scale", 1e38, "--guidance_scale 1e+38: must be a finite number, at least 0 and at most 10,000"),
        ("maniqa_scale", -1.0, "--maniqa_scale -1.0: must be a finite number, at least 0"),
    ],
)
def test_a_value_out_of_its_range_is_an_error(flag, value, says):
    with pytest.raises(ValueError) as error:
        check_ranges({flag: value})
    assert str(error.value) == says


def test_more_images_than_a_call_can_make_are_an_error():
    check_total("num_images", 10, MAX_IN_ALL // 10)
    with pytest.raises(ValueError, match="--num_images 1000001: with 10 prompts these are 10000010 images"):
        check_total("num_images", 10, MAX_IN_ALL // 10 + 1)
