"""Replace the models that a run's flags name by local folders: ids of the Hub, variants of weights."""

from functools import partial

from dpdmd.config import Config, from_dict
from dpdmd.config.hub_flags import HubOptions
from dpdmd.config.scorer_table import IN_LOOP_SCORERS
from dpdmd.config.variants import Variant, find_variant_of_teacher
from dpdmd.evaluation.scorer_files import scorer_sources
from dpdmd.models.hub_files import folder_files, network_files, pipeline_files
from dpdmd.models.hub_models import Source, locate_all
from dpdmd.models.registry import LAYOUTS
from dpdmd.run_folder import RunFolder
from dpdmd.utils.manifest import MANIFEST, read_manifest


def locate_models(config: Config) -> None:
    """Set the flags of models to local folders; config.yaml and checkpoints record "org/name@commit" of the Hub's.

    A resumed run takes the commits that its checkpoint recorded, even if a branch has moved since.

    Raises:
        ValueError, OSError: as `locate_all`; or a download shows that the teacher has defaults of its own.
    """
    before = _recorded(config)
    sources = {name: _pinned(source, before.get(name)) for name, source in _sources(config).items()}
    expected = _variant(config)
    found = dict(zip(sources, locate_all(list(sources.values()), HubOptions.of(config.hub)), strict=True))
    teacher = config.model.teacher_id
    if _variant(config) != expected:  # before the download, the flags got another model's defaults
        raise ValueError(
            f"--teacher_id {teacher}: was fetched, and its files show that it is a model with defaults of its own; "
            "give the same command again"
        )
    for name in ("student_id", "fake_id"):
        if getattr(config.model, name) == teacher:
            found[name] = found["teacher_id"]
    config.hub.revision = None  # now part of the id
    for name, located in found.items():
        group = next(group for group, values in config.as_dict().items() if name in values)
        config.locate(group, name, str(located.path), located.recorded)


def _variant(config: Config) -> Variant | None:
    model, hub = config.model, config.hub
    return find_variant_of_teacher(model.family, model.teacher_id, hub.revision, hub.cache_dir)


def _sources(config: Config) -> dict[str, Source]:
    """Return flag -> source of each model that the run reads; student and fake score only if not the teacher's."""
    model, layout = config.model, LAYOUTS[config.model.family]
    whole = partial(pipeline_files, no_t5=model.no_t5)
    hub = config.hub
    sources = {"teacher_id": Source("--teacher_id", model.teacher_id, whole, hub.revision, hub.variant)}
    network = partial(network_files, component=layout.network)
    for name, value in (("student_id", model.student_id), ("fake_id", model.fake_id)):
        if value != model.teacher_id:
            sources[name] = Source(f"--{name}", value, network)
    if config.method.perceptual_path and config.method.perceptual == "dino":
        select = partial(folder_files, weights=True)
        sources["perceptual_path"] = Source("--perceptual_path", config.method.perceptual_path, select)
    if config.eval.eval_every != 0:
        sources |= scorer_sources(vars(config.eval), IN_LOOP_SCORERS)
    return sources


def _recorded(config: Config) -> dict[str, object]:
    """Return what the checkpoint to resume from recorded, by flag; empty if there is none, or if it is damaged."""
    checkpoint = RunFolder.from_config(config.run).to_resume(config.run.resume_from_checkpoint)
    if not checkpoint:
        return {}
    try:
        groups = from_dict(read_manifest(checkpoint)["config"], MANIFEST).as_dict()
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # `resume.find` reports it
    return {name: value for values in groups.values() for name, value in values.items()}


def _pinned(source: Source, before: object) -> Source:
    """Return the source at the recorded commit, if it is of the same repository and no revision is given."""
    model = source.hub_id() if source.revision is None and "@" not in source.value else None
    if model is None or not str(before).startswith(f"{model.repository}@"):
        return source
    return Source(source.flag, str(before), source.select, None, source.variant, source.file)
