"""Find the teacher and the students of a demo, check that they can start from the same noises, and load them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dpdmd.config import Config
from dpdmd.demo.sources import Sources
from dpdmd.models.base import Family, ImageDecoder, TextEncoder
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.identity import same_content
from dpdmd.models.noise_schedule import DEFAULT
from dpdmd.models.registry import LAYOUTS, family_of, sampling_defaults
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.sampling.find_model import Model, find_model, warn_of_unused_base
from dpdmd.sampling.load_model import image_size, load_network, model_family, sampler_settings, uses_bf16
from dpdmd.sampling.sampler import Sampler, SamplerSettings
from dpdmd.utils import precision
from dpdmd.utils.logging import logger
from dpdmd.utils.paths import distinct_names

TEACHER = "teacher"


@dataclass(frozen=True)
class CheckedModel:
    """A model whose files are checked, and how to sample it.

    Attributes:
        name: "teacher", or the name of the student's folder.
        text_length: tokens of the T5 text encoder.
    """

    name: str
    model: Model
    family: Family
    settings: SamplerSettings
    text_length: int

    def latents(self) -> tuple[int, int, int]:
        """Return the shape of the latents that a sample starts from: (channels, height, width)."""
        layout = self.model.layout
        factor = layout.read_vae_factor(self.model.folder)
        channels = int(layout.latent_channels(layout.network_config(self.model.folder)))
        return channels, self.settings.height // factor, self.settings.width // factor

    def text_components(self) -> dict[str, Path]:
        """Return the folders of the text encoders and tokenizers, by component."""
        components = self.model.layout.components(self.model.folder, no_t5=self.model.defaults.no_t5)
        return {name: self.model.folder / name for name in components if name.startswith(("text_encoder", "tokenizer"))}

    def shares_text_with(self, other: "CheckedModel") -> bool:
        """Return whether both models encode every prompt to the same embedding."""
        mine, theirs = self.text_components(), other.text_components()
        if self.text_length != other.text_length or mine.keys() != theirs.keys():
            return False
        return all(same_content(folder, theirs[name]) for name, folder in mine.items())

    def shares_decoder_with(self, other: "CheckedModel") -> bool:
        """Return whether both models decode every latent to the same image."""
        return same_content(self.model.folder / "vae", other.model.folder / "vae")


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to sample. Models may share `encoder` and the sampler's decoder."""

    name: str
    sampler: Sampler
    encoder: TextEncoder


def check_models(args: argparse.Namespace, sources: Sources, device: torch.device) -> list[CheckedModel]:
    """Check the files of the teacher and of all students, without loading a model. The teacher comes first.

    All models compute in one type, so that they differ by their weights alone: bf16 if `--bf16` is given or all
    students use it, else fp32.

    Raises:
        ValueError: a model is missing or broken, no teacher is known, or the models cannot share their noises.
    """
    students = [find_model(path, base) for path, base in sources.students]
    if all(student.source == student.folder for student in students):
        warn_of_unused_base(students[0], args.base_model)
    dtype = precision.set_up(all(uses_bf16(student, args.bf16) for student in students))
    families = [model_family(student, device, dtype) for student in students]
    teacher = _find_teacher(sources, students, args.model[0])
    families.insert(0, model_family(teacher, device, dtype, flag="--teacher"))
    height, width = _common_size(students, args.height, args.width)
    image_size(teacher, height, width)
    checked = []
    names = [TEACHER, *distinct_names(args.model)]
    for name, model, family in zip(names, [teacher, *students], families, strict=True):
        schedule = family.load_schedule(model.folder).at_size(height, width)
        settings = sampler_settings(model, schedule, height, width)
        length = model.layout.text_length(model.folder, None, model.defaults)
        checked.append(CheckedModel(name, model, family, settings, length))
    for one in checked[1:]:
        if one.latents() != checked[0].latents():
            raise ValueError(
                f"--model {one.model.source}: its latents are {list(one.latents())}, and the teacher's "
                f"{list(checked[0].latents())}, so the two cannot start from the same noises; give models of one kind"
            )
    return checked


def _find_teacher(sources: Sources, students: Sequence[Model], first: Path) -> Model:
    """Return the teacher: that of `sources`, else the pipeline that a LoRA changes.

    It is sampled with the steps and the guidance of the first run that was trained from it, else with those of its own
    folder, and with the text of the first student.
    """
    folder = sources.teacher or next((student.folder for student in students if student.lora), None)
    if folder is None:
        raise ValueError(f"--teacher: {first} has no config.yaml that names its teacher; give the pipeline folder")
    family = family_of(folder)
    text = students[0].defaults
    no_t5 = text.no_t5 and bool(LAYOUTS[family].t5)
    check_folder(LAYOUTS[family], folder, "--teacher", no_t5=no_t5)
    defaults = sampling_defaults(folder)
    defaults = replace(defaults, no_t5=no_t5, max_sequence_length=text.max_sequence_length)
    return Model(folder, _as_trained_from(defaults, sources.run) if sources.run else defaults)


def _as_trained_from(defaults: SamplingDefaults, config: Config) -> SamplingDefaults:
    """Return the teacher's sampling defaults with the steps and the guidance scale of a run."""
    steps, guidance = config.method.teacher_infer_steps, config.method.teacher_guidance_scale
    return replace(defaults, steps=steps, guidance_scale=guidance, sigmas=None, grid=DEFAULT)


def _common_size(students: Sequence[Model], height: int | None, width: int | None) -> tuple[int, int]:
    """Return the image size of all models: as given, else the one that all students were trained at."""
    sizes = {student.source: image_size(student, height, width) for student in students}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{path} {size[0]} x {size[1]}" for path, size in sizes.items())
        raise ValueError(f"--model: the students make images of different sizes ({listed}); give --height and --width")
    return next(iter(sizes.values()))


def load_models(checked: Sequence[CheckedModel]) -> list[LoadedModel]:
    """Load the models in order. Text encoders and decoders that models share are loaded once."""
    loaded: list[LoadedModel] = []
    for number, one in enumerate(checked):
        logger.info("loading %d of %d: %s (%s)", number + 1, len(checked), one.name, one.model.source)
        before = list(zip(checked, loaded, strict=False))
        encoder = next((done.encoder for other, done in before if one.shares_text_with(other)), None)
        decoder = next((done.sampler.decoder for other, done in before if one.shares_decoder_with(other)), None)
        loaded.append(_load(one, encoder, decoder))
        shared = [name for name, part in (("text encoders", encoder), ("decoder", decoder)) if part]
        if shared:
            logger.info("%s: %s shared with a model before", one.name, " and ".join(shared))
    return loaded


def _load(one: CheckedModel, encoder: TextEncoder | None, decoder: ImageDecoder | None) -> LoadedModel:
    folder, family = one.model.folder, one.family
    encoder = encoder or family.load_text_encoder(folder, one.text_length, no_t5=one.model.defaults.no_t5)
    network = load_network(family, one.model, family.compute_dtype).requires_grad_(False).to(family.device)
    decoder = decoder or family.load_image_decoder(folder)
    schedule = family.load_schedule(folder).at_size(one.settings.height, one.settings.width)
    null = encoder.encode([family.layout.guidance.null_prompt])
    return LoadedModel(one.name, Sampler(family, network, schedule, decoder, null, one.settings), encoder)
