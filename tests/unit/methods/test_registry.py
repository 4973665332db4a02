"""The table of methods: every name in a row means something, and the networks of each update follow from the row."""

from dataclasses import fields

import pytest

from dpdmd.config import Config
from dpdmd.config.method_table import DISCRIMINATOR, FAKE, METHODS, STUDENT, Method, detaches_first_step
from dpdmd.config.options import MethodConfig
from dpdmd.methods import registry
from dpdmd.methods.loss_terms import FAKE_TERMS, STUDENT_TERMS
from dpdmd.methods.update_schedule import rollout_step

FLAGS = {
    item.name: item for group in (Config().method, Config().optim) for item in fields(group) if item.name != "method"
}


def test_every_loss_term_belongs_to_a_method_and_every_row_names_known_terms():
    assert {name for row in METHODS.values() for name in row.student_terms} == STUDENT_TERMS.keys()
    assert {name for row in METHODS.values() for name in row.fake_terms} == FAKE_TERMS.keys()


@pytest.mark.parametrize("row", METHODS.values(), ids=METHODS)
def test_the_flags_of_a_row_exist(row: Method):
    """A misspelt flag in a row would be one that nothing checks."""
    assert {*row.options, *row.required, *row.excluded} <= FLAGS.keys()
    assert all(FLAGS[flag].default is None for flag in row.required)
    assert all(FLAGS[flag].default is False for flag in row.excluded)  # switches, which --no-FLAG turns off
    assert not set(row.options) & row.required.keys()
    assert row.teacher_samples_in in (STUDENT, FAKE, "")


def test_the_flag_wins_over_the_methods_own_detach():
    assert detaches_first_step("dpdmd", None) and not detaches_first_step("dmd", None)
    assert detaches_first_step("dmd", True) and not detaches_first_step("dpdmd", False)


def test_networks_of_each_update():
    gan, plain = (MethodConfig(method=method, per_train_fake_num=2) for method in ("dmd_gan", "dpdmd"))
    assert registry.trained_networks(gan) == (STUDENT, FAKE, DISCRIMINATOR)
    assert [registry.networks_of_update(step, gan) for step in range(3)] == [(FAKE, DISCRIMINATOR)] * 2 + [(STUDENT,)]
    assert [registry.networks_of_update(step, plain) for step in range(3)] == [(FAKE,)] * 2 + [(STUDENT,)]


@pytest.mark.parametrize("head_start", [0, 7])
@pytest.mark.parametrize(
    "options", [{}, {"method": "dmd_gan", "teacher_cache_size": 8}, {"method": "dmd_lpips"}], ids=str
)
@pytest.mark.parametrize(("fakes", "reuse"), [(5, 1), (5, 2), (2, 2), (1, 1)])
def test_updates_that_draw_prompts_are_counted_in_closed_form(head_start, options, fakes, reuse):
    config = MethodConfig(fake_head_start=head_start, per_train_fake_num=fakes, fake_rollout_reuse=reuse, **options)
    counted = [0]
    for step in range(40):
        draws = rollout_step(step, config) == step and not registry.uses_sample_pool(step, config)
        counted.append(counted[-1] + draws)
    assert [registry.num_draws(steps, config) for steps in range(41)] == counted
    for draws in range(counted[-1] + 1):
        assert registry.steps_with_draws(draws, config) == counted.index(draws)


def test_only_the_update_that_compares_with_teacher_samples_uses_the_pool():
    def updates(method: str, size: int | None) -> list[bool]:
        config = MethodConfig(method=method, teacher_cache_size=size, per_train_fake_num=2)
        return [registry.uses_sample_pool(step, config) for step in range(3)]

    assert updates("dmd_lpips", 8) == [False, False, True]
    assert updates("dmd_gan", 8) == [True, True, False]
    assert updates("dmd_gan", None) == [False] * 3
