"""Checks of the models before a run: folders, architectures, image size, sigma grids, and the content of weights."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpdmd.config import Config
from dpdmd.config.options import MethodConfig
from dpdmd.distributed.topology import local_device
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.methods.perceptual_files import check_perceptual
from dpdmd.models.attention_backend import check_attention_backend
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.layout import Layout
from dpdmd.models.noise_schedule import Schedule
from dpdmd.models.registry import LAYOUTS, adapters
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.sampling.model_source import check_is_pipeline
from dpdmd.utils.paths import SCHEDULER_CONFIG
from dpdmd.utils.precision import compute_dtype


@contextmanager
def odd_values_explained(config: Config) -> Iterator[None]:
    """Turn errors of our arithmetic on a configuration file with unexpected values into one line.

    Raises:
        ValueError: the block raised such an error.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(
            f"--teacher_id {config.model.teacher_id}: one of its configuration files holds an unexpected value "
            f"({type(error).__name__}: {error})"
        ) from None


def check_models(config: Config) -> None:
    """Check teacher, student, fake score and perceptual network, as far as small files show.

    Sets `max_sequence_length` to the teacher's if no flag gives it.

    Raises:
        ValueError: one line that names the flag or file and what to do.
    """
    with odd_values_explained(config):
        _check_networks(config)
    if config.method.perceptual_path:
        check_perceptual(config.method.perceptual, Path(config.method.perceptual_path))


def _check_networks(config: Config) -> None:
    model, data, layout = config.model, config.data, LAYOUTS[config.model.family]
    teacher = Path(model.teacher_id)
    for flag in ("teacher_id", "student_id", "fake_id"):
        folder = Path(getattr(model, flag))
        # `os.path` takes a folder that cannot be read for none, which a later check reports.
        if not os.path.isdir(folder / layout.network):
            check_is_pipeline(f"--{flag}", folder)
    check_folder(layout, teacher, "--teacher_id", no_t5=model.no_t5)
    defaults = read_sampling_defaults(teacher, layout.defaults)
    text_length = layout.text_length(teacher, data.max_sequence_length, defaults)
    if data.max_sequence_length is None:
        config.derive("data", "max_sequence_length", text_length)
    expected = layout.network_config(teacher)
    for flag, folder in (("--student_id", model.student_id), ("--fake_id", model.fake_id)):
        check_folder(layout, Path(folder), flag, network_only=True)
        _check_architecture(flag, folder, layout.network_config(Path(folder)), expected)
        _check_prediction(layout, teacher, flag, Path(folder))
    for size in data.image_sizes:
        layout.check_size(teacher, *size, flag=f"--sizes {size}" if data.sizes else "")
    if pair := adapters(model):
        try:
            layout.adapted_layers(teacher, pair.student.targets)
        except ValueError as error:
            raise ValueError(f"--lora_targets: {error}") from None
    schedule = layout.read_schedule(teacher)
    for size in data.image_sizes:
        _check_grids(config.method, schedule.at_size(*size))


def _check_architecture(flag: str, folder: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare the entries that two configurations have: another version of diffusers writes more or fewer of them.

    Raises:
        ValueError: one differs.
    """
    if differing := sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name]):
        raise ValueError(f"{flag} {folder}: not the teacher's architecture ({', '.join(differing)} differ)")


def _check_prediction(layout: Layout, teacher: Path, flag: str, folder: Path) -> None:
    """Check that a network that comes with a scheduler predicts what the teacher's does, at the same noise levels.

    Raises:
        ValueError: it does not.
    """
    if folder == teacher or not (folder / SCHEDULER_CONFIG).is_file():
        return
    try:
        found = layout.read_schedule(folder).predicts
    except ValueError:  # the scheduler of such a folder is not used
        return
    if found != (wanted := layout.read_schedule(teacher).predicts):
        raise ValueError(f"{flag} {folder}: its network predicts {found}, the teacher's {wanted}; give one that fits")


def _check_grids(method: MethodConfig, schedule: Schedule) -> None:
    try:
        schedule.default_sigmas(method.teacher_infer_steps)
    except ValueError as error:
        raise ValueError(f"--teacher_infer_steps {method.teacher_infer_steps}: {error}") from None
    try:
        schedule.parse_sigmas(method.student_sigmas, method.stu_inference_steps)
    except ValueError as error:
        raise ValueError(f"--student_sigmas: {error}") from None


def check_weights(config: Config, evaluation: EvalSetup) -> None:
    """Check that weights fit their architectures, and that the attention backend works. Takes seconds.

    Raises:
        ValueError: one line that names the flag or file and what to do.
    """
    from dpdmd.evaluation.scorers import check_scorer_contents
    from dpdmd.methods.perceptual import check_perceptual_contents
    from dpdmd.models.checks.contents import check_contents, full_network_config

    model, layout = config.model, LAYOUTS[config.model.family]
    check_contents(layout, Path(model.teacher_id), "--teacher_id", no_t5=model.no_t5)
    for flag, folder in (("--student_id", model.student_id), ("--fake_id", model.fake_id)):
        if folder != model.teacher_id:
            check_contents(layout, Path(folder), flag, network_only=True)
            found, expected = (full_network_config(layout, Path(place)) for place in (folder, model.teacher_id))
            _check_architecture(flag, folder, found, expected)
    check_scorer_contents(evaluation.paths)
    if config.optim.attention_backend:
        dtype = compute_dtype(config.optim.bf16)
        check_attention_backend(config.optim.attention_backend, local_device(), dtype, masked=layout.lengths_differ)
    if config.method.perceptual_path:
        check_perceptual_contents(config.method.perceptual, Path(config.method.perceptual_path))
