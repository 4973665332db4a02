"""The memory estimate of a configuration without a run: of its teacher's folder, or before anything is downloaded."""

import tempfile
from pathlib import Path

from dpdmd.config import Config
from dpdmd.config.variants import find_variant
from dpdmd.evaluation.in_loop_setup import set_up_evaluation
from dpdmd.models.memory_estimate import MemoryEstimate
from dpdmd.models.registry import LAYOUTS
from dpdmd.training.memory_items import Topology
from dpdmd.training.model_sources import locate_models
from dpdmd.training.preflight import estimate_of_process
from dpdmd.training.preflight_models import check_models


def preview_memory(config: Config, topology: Topology) -> tuple[MemoryEstimate, str]:
    """Return the estimate of one process, and the source of the model's shapes.

    If the teacher is not there, but its path or id is that of an official model, the shapes are those of this model
    (`Layout.official`, `Layout.other_official`).

    Raises:
        ValueError: one line that names the flag or file and what to do.
    """
    model, layout = config.model, LAYOUTS[config.model.family]
    variant = find_variant(model.family, Path(model.teacher_id))
    repository = variant.repository if variant else layout.repository
    if _is_there(Path(model.teacher_id)) or not model.teacher_id.partition("@")[0].endswith(repository):
        locate_models(config)
        return _estimate(config, topology), model.teacher_id
    from dpdmd.models.hollow import write_hollow  # imports diffusers, which takes seconds

    with tempfile.TemporaryDirectory() as work:
        missing, hollow = model.teacher_id, Path(work, "teacher")
        write_hollow(layout, hollow, variant.name if variant else "")
        for name in ("teacher_id", "student_id", "fake_id"):
            if getattr(model, name) == missing:
                setattr(model, name, str(hollow))
        return _estimate(config, topology), f"those of {repository}, since {missing} is not there"


def _is_there(teacher: Path) -> bool:
    """Return whether the path exists. An unreadable one counts: `locate_models` names it."""
    try:
        return teacher.exists()
    except OSError:
        return True


def _estimate(config: Config, topology: Topology) -> MemoryEstimate:
    check_models(config)
    evaluation = set_up_evaluation(config.eval, config.data.prompt_column, list(config.data.image_sizes))
    return estimate_of_process(config, evaluation, topology, on_gpu=True)
