"""What the families have in common whose pipeline, network and autoencoder are classes of diffusers."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from dpdmd.models import lora_files
from dpdmd.models.base import Family, ImageDecoder
from dpdmd.models.image_decoder import KLImageDecoder
from dpdmd.models.loading import load_strict
from dpdmd.models.lora import Adapter
from dpdmd.models.noise_schedule import Schedule
from dpdmd.models.pipeline_export import export_network, export_unchanged
from dpdmd.models.sampling_defaults import SamplingDefaults


class DiffusersFamily(Family):
    """A family of diffusers' classes, with an AutoencoderKL.

    Attributes:
        network_class, pipeline_class: diffusers' classes of the distilled network and of the pipeline.
    """

    network_class: type[ModelMixin]
    pipeline_class: type[DiffusionPipeline]

    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        return load_strict(self.network_class, folder / self.layout.network, dtype, exact=True)

    def load_image_decoder(self, folder: Path) -> ImageDecoder:
        return KLImageDecoder(folder, self.device, self.compute_dtype)

    def load_schedule(self, folder: Path) -> Schedule:
        return self.layout.read_schedule(folder)

    @abstractmethod
    def export_scheduler(self, folder: Path, source: Path, defaults: SamplingDefaults) -> SamplingDefaults:
        """Write scheduler/ of an exported student or LoRA of `source`. Return `defaults` with what it changes."""

    def export(
        self, folder: Path, network_state: dict[str, Tensor], source: Path, defaults: SamplingDefaults, *, copy: bool
    ) -> None:
        components = self.layout.components(source, no_t5=defaults.no_t5)
        unchanged = [name for name in components if name not in (self.layout.network, "scheduler")]
        export_unchanged(folder, source, unchanged, without=self.layout.t5 if defaults.no_t5 else (), copy=copy)
        network = self.layout.network
        export_network(self.network_class, folder / network, network_state, source / network)
        self.export_scheduler(folder, source, defaults).write(folder)

    def export_lora(
        self, folder: Path, state: dict[str, Tensor], adapter: Adapter, source: Path, defaults: SamplingDefaults
    ) -> None:
        lora_files.save_lora(folder, state, adapter, self.pipeline_class, self.layout.network, self.comfyui_name)
        self.export_scheduler(folder, source, defaults).with_base(source, folder).write(folder)

    def comfyui_name(self, name: str) -> str:
        """Return ComfyUI's name of a LoRA weight with diffusers' name `name`."""
        return name

    def read_lora(self, folder: Path) -> dict[str, Tensor]:
        return lora_files.read_lora(folder, self.layout.network)

    def load_lora(self, network: nn.Module, folder: Path) -> None:
        lora_files.load_lora(network, folder, self.pipeline_class, self.layout.network)

    def autocast(self, device: torch.device, **options: Any) -> torch.autocast:
        """Return the context in which a network computes in the compute type."""
        return torch.autocast(device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32, **options)
