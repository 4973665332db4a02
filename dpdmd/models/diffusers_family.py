"""What the families have in common whose pipeline, network, scheduler and autoencoder are classes of diffusers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import Tensor, nn

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.precisions import UNQUANTIZED
from dpdmd.models import lora_files
from dpdmd.models.base import Family, ImageDecoder, TextEncoder
from dpdmd.models.comfyui_workflow import build_workflow, write_workflow
from dpdmd.models.image_decoder import AutoencoderDecoder, KLImageDecoder
from dpdmd.models.loading import load_quantized_network, load_strict
from dpdmd.models.lora import Adapter
from dpdmd.models.noise_schedule import Schedule
from dpdmd.models.pipeline_export import export_pipeline, export_settings, makes_grid, set_steps
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults
from dpdmd.models.tensor_files import LazyTensor, Weights, open_weights, write_tensors
from dpdmd.models.weight_files import Shape, stem_of

SchedulerValues = dict[str, float | bool | None]  # entries of scheduler_config.json


class DiffusersFamily(Family):
    """A family of diffusers' classes.

    Attributes:
        network_class, pipeline_class, scheduler_class: diffusers' classes of the distilled network, the pipeline and
            its scheduler.
        text_encoder_class: called with the arguments of `load_text_encoder`, after the family.
        decoder_class: the decoder of its autoencoder.
    """

    network_class: type[ModelMixin]
    pipeline_class: type[DiffusionPipeline]
    scheduler_class: type[SchedulerMixin]
    text_encoder_class: type[TextEncoder]
    decoder_class: type[AutoencoderDecoder] = KLImageDecoder

    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        network, precision = folder / self.layout.network, self.precisions.base
        if precision == UNQUANTIZED:
            return load_strict(self.network_class, network, dtype, exact=True)
        prefixes = self.layout.block_prefixes(folder)
        return load_quantized_network(self.network_class, network, prefixes, precision, dtype, self.device)

    def load_text_encoder(self, folder: Path, max_sequence_length: int, *, no_t5: bool = False) -> TextEncoder:
        return self.text_encoder_class(self, folder, max_sequence_length, no_t5=no_t5)

    def load_image_decoder(self, folder: Path) -> ImageDecoder:
        return self.decoder_class(folder, self.device, self.compute_dtype)

    def load_schedule(self, folder: Path) -> Schedule:
        return self.layout.read_schedule(folder)

    def load_scheduler(self, folder: Path, values: SchedulerValues | None = None) -> Any:
        """Load the scheduler of a folder, with `values` in its configuration."""
        return self.scheduler_class.from_pretrained(
            folder, subfolder="scheduler", local_files_only=True, **(values or {})
        )

    def pipeline_times(self, steps: int) -> list[float] | None:
        """Return the times that the pipeline gives its scheduler to shift; None if the scheduler spaces them itself."""
        return None

    def pipeline_mu(self, scheduler: Any, steps: int, size: ImageSize) -> float | None:
        """Return the dynamic shift that the pipeline computes for its scheduler; None if it computes none."""
        return None

    def _image_size(self, folder: Path, defaults: SamplingDefaults) -> ImageSize:
        """Return the size of the sampling defaults, else the one that the network was made for."""
        if defaults.height and defaults.width:
            return ImageSize(defaults.height, defaults.width)
        side = self.layout.default_size(folder)
        return ImageSize(defaults.height or side, defaults.width or side)

    def library_sigmas(self, folder: Path, steps: int | None = None, size: ImageSize | None = None) -> Tensor:
        defaults = read_sampling_defaults(folder, self.layout.defaults)
        own = self.own_values(self.load_schedule(folder)) if steps else None
        scheduler, number = self.load_scheduler(folder, own), steps or defaults.steps
        mu = self.pipeline_mu(scheduler, number, size or self._image_size(folder, defaults))
        given = defaults.sigmas_argument if steps is None else None
        set_steps(scheduler, number, given or self.pipeline_times(number), mu)
        return scheduler.sigmas

    @abstractmethod
    def own_values(self, schedule: Schedule) -> SchedulerValues:
        """Return the values of the model's own scheduler that an exported scheduler may change."""

    @abstractmethod
    def fit_scheduler(self, schedule: Schedule, sigmas: Sequence[float]) -> SchedulerValues:
        """Propose values with which the scheduler may make the grid `sigmas` [N + 1] from the number of steps.

        Raises:
            ValueError: no values do.
        """

    @abstractmethod
    def for_given_sigmas(
        self, schedule: Schedule, sigmas: tuple[float, ...], defaults: SamplingDefaults
    ) -> tuple[SchedulerValues, SamplingDefaults]:
        """Return the values of a scheduler that takes the grid `sigmas` as an argument, and `defaults` with both."""

    def export_scheduler(self, folder: Path, source: Path, defaults: SamplingDefaults) -> SamplingDefaults:
        """Write scheduler/ of an exported student or LoRA, which makes its grid from the number of steps if it can.

        A plain `pipe(num_inference_steps=N)` is right on the default grid, and on every grid that the scheduler makes
        with other values. Any other grid is given as `sigmas=`. A named grid that depends on the image size keeps the
        model's own dynamic shift, so the pipeline makes it at every size; given numbers are the same at every size.

        Returns:
            `defaults` with what the scheduler needs (`SamplingDefaults.on_grid`).
        """
        size, sigmas = self._image_size(source, defaults), defaults.sigmas
        schedule = self.load_schedule(source).at_size(*size)
        own = values = self.own_values(schedule)
        defaults = defaults.on_grid()
        # The scheduler may fail to make its own default grid: it divides 0 by 0 for one step with a `shift_terminal`.
        if sigmas and not (_is_default(schedule, sigmas) and self._makes(source, own, sigmas, size)):
            fitted = self._fitted(source, schedule, sigmas, size)
            if fitted:
                values, defaults = fitted, defaults.on_grid(own_scheduler=own)
            else:
                values, defaults = self.for_given_sigmas(schedule, sigmas, defaults)
        self.load_scheduler(source, values).save_pretrained(folder / "scheduler")
        return defaults

    def _fitted(
        self, source: Path, schedule: Schedule, sigmas: Sequence[float], size: ImageSize
    ) -> SchedulerValues | None:
        """Return the values with which the scheduler makes `sigmas` from the number of steps; None if none do."""
        try:
            values = self.fit_scheduler(schedule, sigmas)
        except ValueError:
            return None
        return values if self._makes(source, values, sigmas, size) else None

    def _makes(self, source: Path, values: SchedulerValues, sigmas: Sequence[float], size: ImageSize) -> bool:
        """Return whether the scheduler of `source` with these values makes the grid `sigmas` from its steps alone."""
        scheduler, steps = self.load_scheduler(source, values), len(sigmas) - 1
        mu = self.pipeline_mu(scheduler, steps, size)
        with np.errstate(invalid="ignore"):
            return makes_grid(scheduler, sigmas, self.pipeline_times(steps), mu)

    def export(
        self,
        folder: Path,
        weights: Weights,
        source: Path,
        defaults: SamplingDefaults,
        *,
        copy: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        export_pipeline(self.layout, folder, weights, source, no_t5=defaults.no_t5, copy=copy, dtype=dtype)
        self.export_scheduler(folder, source, defaults).write(folder)

    def original_layout(self, parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
        """Return the weights of all components under the names of the family's original checkpoints.

        Args:
            parts: weights of each component under the library's names.
            source: pipeline folder with the configurations.

        Raises:
            ValueError: the original layout has no place for a part, or the family has no such file.
        """
        raise ValueError(f"--single_file: diffusers reads no {self.layout.pipeline} from one file; leave the flag out")

    def export_single_file(
        self,
        path: Path,
        weights: Weights,
        source: Path,
        defaults: SamplingDefaults,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        layout = self.layout
        export_settings(layout, path.parent, source, no_t5=defaults.no_t5)
        parts = {
            name: open_weights(source / name, stem_of(name, layout.network))
            for name in layout.components(source, no_t5=defaults.no_t5)
            if name in layout.classes and name != layout.network
        }
        parts[layout.network] = {name: value.to(torch.float32) for name, value in weights.items()}
        tensors = self.original_layout(parts, source)
        write_tensors(path, {name: value.to(dtype) if dtype else value for name, value in tensors.items()})
        self.export_scheduler(path.parent, source, defaults).write(path.parent)
        self._write_workflow(path.parent, source, defaults, checkpoint=path.name)

    def export_lora(
        self, folder: Path, state: dict[str, Tensor], adapter: Adapter, source: Path, defaults: SamplingDefaults
    ) -> None:
        lora_files.save_lora(folder, state, adapter, self.layout.network, self.layout.comfyui_name)
        self.export_scheduler(folder, source, defaults).with_base(source, folder).write(folder)
        read_by_comfyui = lora_files.COMFYUI_WEIGHTS if self.layout.comfyui_name else lora_files.LORA_WEIGHTS
        self._write_workflow(folder, source, defaults, lora=read_by_comfyui)

    def _write_workflow(self, folder: Path, source: Path, defaults: SamplingDefaults, **files: str) -> None:
        """Write a ComfyUI workflow beside an export, if the family has one. `files` as in `build_workflow`."""
        if names := self.layout.comfyui:
            size = self._image_size(source, defaults)
            schedule = self.load_schedule(source).at_size(*size)
            sigmas = defaults.sigmas or schedule.named_sigmas(defaults.grid, defaults.steps).tolist()
            write_workflow(folder, build_workflow(names.for_base(source), defaults, sigmas, size, **files))

    def read_lora(self, folder: Path) -> dict[str, Tensor]:
        return lora_files.read_lora(folder, self.layout.network)

    def check_lora(self, folder: Path, expected: Mapping[str, Shape]) -> None:
        lora_files.check_lora(expected, folder, self.pipeline_class, self.layout.network)

    def load_lora(self, network: nn.Module, folder: Path) -> None:
        lora_files.load_lora(network, folder, self.pipeline_class, self.layout.network)

    def merge_lora(self, weights: Weights, folder: Path) -> Weights:
        return lora_files.merge_lora(weights, folder, self.pipeline_class, self.layout.network)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which a network computes in the compute type."""
        enabled = self.compute_dtype != torch.float32
        # A call uses each weight once, so autocast's cache of their bf16 copies would only hold memory.
        return torch.autocast(device.type, self.compute_dtype, enabled=enabled, cache_enabled=False)


def _is_default(schedule: Schedule, sigmas: Sequence[float]) -> bool:
    """Return whether `sigmas` are the schedule's default grid, which some numbers of steps do not have."""
    try:
        return torch.equal(torch.tensor(sigmas), schedule.default_sigmas(len(sigmas) - 1))
    except ValueError:
        return False
