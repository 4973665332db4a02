"""Find where the teacher and the students of a demo lie, before anything heavy is imported: on disk, or on the Hub."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dpdmd.config import Config, read_yaml
from dpdmd.config.hub_flags import HubOptions
from dpdmd.models.hub_models import Source, locate
from dpdmd.run_folder import RunFolder
from dpdmd.sampling.model_source import check_is_pipeline, locate_model, pipeline_with_text_of, place_or_none
from dpdmd.utils.paths import same_place


@dataclass(frozen=True)
class Sources:
    """Local folders of a demo's models.

    Attributes:
        students: (model, pipeline that a LoRA or a network alone changes) of each `--model`.
        teacher: `--teacher`, else the teacher of the runs; None if no run names one.
        run: configuration of the first run that was trained from the teacher.
    """

    students: Sequence[tuple[Path, Path | None]]
    teacher: Path | None
    run: Config | None


def find_sources(args: argparse.Namespace) -> Sources:
    """Find the models that the flags of `dpdmd.demo` name, and fetch those of the Hub if `--download` is given.

    `--revision` and `--variant` are those of the teacher. The base of a LoRA has the same variant.

    Raises:
        ValueError, OSError: as `locate_all`; the runs have several teachers; the teacher is a run; or a run's
            config.yaml is unreadable.
    """
    hub = HubOptions.of(args)
    if hub.revision is not None and args.teacher is None:
        raise ValueError(f"--revision {hub.revision}: is that of --teacher, which is not given; leave it out")
    own, base = replace(hub, revision=None), args.base_model and str(args.base_model)
    students = [locate_model(str(path), base, own, base_variant_only=True)[:2] for path in args.model]
    runs = {path: run for path, (student, _) in zip(args.model, students, strict=True) if (run := _run_of(student))}
    # The teacher is sampled with the text of the first student.
    select = pipeline_with_text_of(place_or_none(students[0][0]) or students[0][0])
    if args.teacher is not None:
        found = locate(Source("--teacher", str(args.teacher), select, hub.revision, hub.variant), hub)
        check_is_pipeline("--teacher", found.path)
        places = [str(args.teacher), str(found.path), found.recorded or ""]
        trained = (run for run in runs.values() if any(same_place(run.model.teacher_id, place) for place in places))
        return Sources(students, found.path, next(trained, None))
    if not runs:
        return Sources(students, None, None)
    first, run = next(iter(runs.items()))
    teacher = run.model.teacher_id
    for path, other in runs.items():
        if not same_place(other.model.teacher_id, teacher):
            raise ValueError(
                f"--model {path}: its teacher is {other.model.teacher_id}, and that of {first} is {teacher}; give "
                "--teacher"
            )
    variant = hub.variant or run.hub.variant
    found = locate(Source(f"--model {first}: its teacher", teacher, select, variant=variant), own)
    return Sources(students, found.path, run)


def _run_of(model: Path) -> Config | None:
    """Return the configuration of the run that a model belongs to, or None if it belongs to none.

    Raises:
        ValueError: the file is unreadable.
    """
    place = (place_or_none(model) or model).absolute()
    for folder in place.parents[:4]:  # RUN/ckpts/step_000600/student
        run = RunFolder.of(folder)
        if run.config.is_file() and place.is_relative_to(run.ckpts.absolute()):  # any project may have a config.yaml
            return read_yaml(run.config)
    return None
