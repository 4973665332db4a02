"""LoRA: teacher, student and fake score as three roles of one frozen base (peft's layers, our switch).

The teacher is the base with its adapters off, student and fake score are an adapter each. peft's own switches
(`set_adapter`, `disable_adapters`) toggle requires_grad, and a switch between a forward pass and its backward then
loses gradients without an error; here requires_grad stays on, and a switch touches the layers' active adapter alone.

peft takes seconds to import: only when an adapter is made, so that wrong input is told at once.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpdmd.models.lora_config import Adapter
from dpdmd.utils.rng import torch_generator

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

STUDENT, FAKE = "student", "fake"
COMFYUI_WEIGHTS = "comfyui_lora.safetensors"


def peft_config(adapter: Adapter) -> "LoraConfig":
    """The adapter as peft describes it."""
    from peft import LoraConfig

    return LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=list(adapter.targets))


class SharedBaseModel:
    """The frozen network, and whose adapter it runs with at the moment (None: its own weights alone)."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.layers: list[BaseTunerLayer] = []
        self.playing: str | None = None

    def add(self, name: str, adapter: Adapter, seed: int) -> None:
        """Put one adapter beside its layers: A drawn from (seed, name, layer), B zero, both fp32 (a bf16 base would
        make them bf16)."""
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        with warnings.catch_warnings():  # peft warns of a second adapter, which is the point
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(peft_config(adapter), self.network, adapter_name=name)
        self.layers = [module for module in self.network.modules() if isinstance(module, BaseTunerLayer)]
        for layer, weight in self.weights(name):
            values = torch.zeros(weight.shape)
            if ".lora_A." in layer:  # as peft and the LoRA paper start it
                nn.init.kaiming_uniform_(values, math.sqrt(5), generator=torch_generator(seed, f"lora {name} {layer}"))
            weight.data = values.to(weight.device)
        self._switch(None)

    def weights(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """(name as in diffusers' LoRA files, parameter) of one adapter."""
        for path, parameter in self.network.named_parameters():
            if f".{name}." in path:
                yield path.replace(f".{name}.", "."), parameter

    @contextmanager
    def active_adapter(self, name: str | None) -> Iterator[None]:
        """Calls inside run with this adapter."""
        before = self.playing
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str | None) -> None:
        for layer in self.layers:
            layer._disable_adapters = name is None
            layer._active_adapter = [] if name is None else [name]
        self.playing = name

    def checkpointed(self, module: nn.Module, *arguments: Any) -> Tensor:
        """Gradient checkpointing in which the recomputation sees the adapter that the forward pass saw."""
        name = self.playing
        return checkpoint(
            module.__call__,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), self.active_adapter(name)),
        )


class AdapterView(nn.Module):
    """A shared base seen as one network: called as the base is, and holding its adapter's parameters alone.

    Whoever trains, saves, counts or averages a Role's parameters therefore means the adapter; those of the base belong
    to no Role.
    """

    def __init__(self, base: SharedBaseModel, name: str | None):
        super().__init__()
        self.base, self.name = base, name
        for path, parameter in base.weights(name) if name else ():
            _plant(self, path, parameter)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        with self.base.active_adapter(self.name):
            return self.base.network(*arguments, **named)

    def enable_gradient_checkpointing(self, checkpointed: Callable[..., Any] | None = None) -> None:
        """As diffusers' networks: by calls of `checkpointed(module, *arguments)`, the base's own if not given."""
        self.base.network.enable_gradient_checkpointing(checkpointed or self.base.checkpointed)

    def disable_gradient_checkpointing(self) -> None:
        self.base.network.disable_gradient_checkpointing()


def _plant(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Register a parameter under its dotted name, in modules that are there for their names alone."""
    *folders, last = path.split(".")
    for folder in folders:
        if folder not in root._modules:
            root.add_module(folder, nn.Module())
        root = root._modules[folder]
    root.register_parameter(last, parameter)


def share(
    network: nn.Module, student: Adapter, fake: Adapter, seed: int
) -> tuple[AdapterView, AdapterView, AdapterView]:
    """Teacher, student and fake score on one base, which is frozen as it is; both adapters start as no change."""
    base = SharedBaseModel(network.requires_grad_(False))
    base.add(STUDENT, student, seed)
    base.add(FAKE, fake, seed)
    for name in (STUDENT, FAKE):
        for _, parameter in base.weights(name):
            parameter.requires_grad_(True)  # injecting the second switched the first off
    return AdapterView(base, None), AdapterView(base, STUDENT), AdapterView(base, FAKE)


def for_comfyui(state: dict[str, Tensor], alpha: float, prefix: str) -> dict[str, Tensor]:
    """The weights under the names that ComfyUI reads: diffusers' ones, with alpha as a tensor beside each pair, since
    it does not look into the file's metadata and would take alpha for the rank."""
    named = {f"{prefix}.{path}": value for path, value in state.items()}
    layers = {path.removesuffix(".lora_A.weight") for path in named if path.endswith(".lora_A.weight")}
    return named | {f"{layer}.alpha": torch.tensor(float(alpha)) for layer in sorted(layers)}


def merged(network: nn.Module) -> nn.Module:
    """The network with its one adapter added into its weights, and no trace of it left."""
    network.fuse_lora(safe_fusing=True)
    network.unload_lora()
    return network
