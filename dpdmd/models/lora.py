"""LoRA: teacher, student and fake score as three views of one frozen base (peft's layers, our switch).

The teacher is the base with its adapters off; student and fake score are an adapter each. peft's own switches
(`set_adapter`, `disable_adapters`) toggle requires_grad, and a switch between a forward pass and its backward then
loses gradients without an error. Here requires_grad stays on, and a switch only changes the layers' active adapter.

peft takes seconds to import: only when an adapter is made, so that wrong input is reported at once.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpdmd.utils.rng import torch_generator

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

STUDENT, FAKE = "student", "fake"


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter.

    Attributes:
        alpha: the update is B A alpha / rank.
        targets: endings of the names of its layers.
        excluded: endings of the names of layers that get no adapter, though a target names them.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapters:
    """The adapters of the two trained networks (`--lora_rank`)."""

    student: Adapter
    fake: Adapter


def peft_config(adapter: Adapter) -> "LoraConfig":
    """Return peft's configuration of the adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=list(adapter.targets),
        exclude_modules=list(adapter.excluded) or None,
    )


class SharedBaseModel:
    """The frozen network and the name of its active adapter (None: the network's own weights alone)."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.layers: list[BaseTunerLayer] = []
        self.active: str | None = None

    def add(self, name: str, adapter: Adapter, seed: int) -> None:
        """Add an adapter: A drawn from (seed, name, layer), B zero, both fp32 (beside a bf16 base peft makes bf16)."""
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        with warnings.catch_warnings():  # peft warns about a second adapter, which is intended here
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(peft_config(adapter), self.network, adapter_name=name)
        self.layers = [module for module in self.network.modules() if isinstance(module, BaseTunerLayer)]
        for layer, weight in self.weights(name):
            values = torch.zeros(weight.shape)
            if ".lora_A." in layer:  # as in peft and in the LoRA paper
                nn.init.kaiming_uniform_(values, math.sqrt(5), generator=torch_generator(seed, f"lora {name} {layer}"))
            weight.data = values.to(weight.device)
        self._activate(None)

    def weights(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name as in diffusers' LoRA files, parameter) of one adapter."""
        for path, parameter in self.network.named_parameters():
            if f".{name}." in path:
                yield path.replace(f".{name}.", "."), parameter

    @contextmanager
    def active_adapter(self, name: str | None) -> Iterator[None]:
        """Run calls of the network with this adapter."""
        before = self.active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, name: str | None) -> None:
        for layer in self.layers:
            layer._disable_adapters = name is None
            layer._active_adapter = [] if name is None else [name]
        self.active = name

    def checkpointed(self, module: nn.Module, *arguments: Any) -> Tensor:
        """Call a module with gradient checkpointing; the recomputation uses the adapter of the forward pass."""
        name = self.active
        return checkpoint(
            module.__call__,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), self.active_adapter(name)),
        )


class AdapterView(nn.Module):
    """A shared base seen as one network: called like the base, but with only its adapter's parameters.

    So whatever trains, saves, counts or averages the parameters of a view handles the adapter. The base's parameters
    belong to no view.
    """

    def __init__(self, base: SharedBaseModel, name: str | None):
        super().__init__()
        self.base, self.name = base, name
        for path, parameter in base.weights(name) if name else ():
            _register(self, path, parameter)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        with self.base.active_adapter(self.name):
            return self.base.network(*arguments, **named)

    def enable_gradient_checkpointing(self, checkpointed: Callable[..., Any] | None = None) -> None:
        """Enable it as diffusers' networks do, through `checkpointed(module, *arguments)`; by default the base's."""
        self.base.network.enable_gradient_checkpointing(checkpointed or self.base.checkpointed)

    def disable_gradient_checkpointing(self) -> None:
        self.base.network.disable_gradient_checkpointing()


def _register(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Register a parameter under its dotted name, inside empty modules."""
    *parents, last = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root._modules[parent]
    root.register_parameter(last, parameter)


def share(
    network: nn.Module, student: Adapter, fake: Adapter, seed: int
) -> tuple[AdapterView, AdapterView, AdapterView]:
    """Return teacher, student and fake score on one frozen base; at first neither adapter changes the output."""
    base = SharedBaseModel(network.requires_grad_(False))
    base.add(STUDENT, student, seed)
    base.add(FAKE, fake, seed)
    for name in (STUDENT, FAKE):
        for _, parameter in base.weights(name):
            parameter.requires_grad_(True)  # peft switched it off when the second adapter was added
    return AdapterView(base, None), AdapterView(base, STUDENT), AdapterView(base, FAKE)


def merged(network: nn.Module) -> nn.Module:
    """Add the network's one adapter to its weights, remove the adapter, and return the network."""
    network.fuse_lora(safe_fusing=True)
    network.unload_lora()
    return network
