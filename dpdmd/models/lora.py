"""LoRA: teacher, student and fake score as three views of one frozen base (peft's layers, our switch).

The teacher is the base with its adapters off; student and fake score are an adapter each. peft's own switches
(`set_adapter`, `disable_adapters`) toggle requires_grad, and a switch between a forward pass and its backward then
loses gradients without an error. Here requires_grad stays on, and a switch only changes the layers' active adapter.

Dropout is on in calls with gradient inside `AdapterView.dropping_out`, and in no other call: the networks stay in
evaluation mode, in which peft's own dropout does nothing.

peft takes seconds to import: only when an adapter is made, so that wrong input is reported at once.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpdmd.utils.rng import mask_per_sample, torch_generator

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
        dropout: probability that a number of a layer's input is dropped.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    dropout: float = 0.0


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


@dataclass(frozen=True)
class DropoutCall:
    """The name of the dropout masks of one network call: a call that is recomputed draws the same masks.

    Attributes:
        samples: index of each row of the call in the step's global batch, [B].
        index: of the call in its micro-batch.
    """

    seed: int
    step: int
    samples: Sequence[int]
    index: int = 0


class NamedDropout(nn.Module):
    """The dropout of one adapter's layer; it does nothing in a call of the shared base without a `DropoutCall`."""

    def __init__(self, base: "SharedBaseModel", purpose: str, rate: float):
        super().__init__()
        self.base, self.purpose, self.rate = base, purpose, rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers of `x` [B, ...] and scale the rest by 1 / (1 - rate)."""
        call = self.base.dropout
        if call is None:
            return x
        if len(x) != len(call.samples):
            raise ValueError(f"--lora_dropout: a layer has {len(x)} rows for {len(call.samples)} samples")
        dropped = mask_per_sample(
            self.rate, x.shape[1:], call.seed, self.purpose, (call.step, call.index), call.samples, x.device
        )
        return x.masked_fill(dropped, 0) / (1 - self.rate)


class SharedBaseModel:
    """The frozen network, the name of its active adapter (None: the network's own weights alone), and its dropout."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.layers: list[BaseTunerLayer] = []
        self.active: str | None = None
        self.dropout: DropoutCall | None = None

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
        if adapter.dropout:
            for path, layer in self.network.named_modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.lora_dropout[name] = NamedDropout(self, f"dropout {name} {path}", adapter.dropout)
        self._activate(None)

    def weights(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name as in diffusers' LoRA files, parameter) of one adapter."""
        for path, parameter in self.network.named_parameters():
            if f".{name}." in path:
                yield path.replace(f".{name}.", "."), parameter

    @contextmanager
    def active_adapter(self, name: str | None, dropout: DropoutCall | None = None) -> Iterator[None]:
        """Run calls of the network with this adapter and these dropout masks."""
        before = self.active, self.dropout
        self._activate(name)
        self.dropout = dropout
        try:
            yield
        finally:
            self._activate(before[0])
            self.dropout = before[1]

    def _activate(self, name: str | None) -> None:
        for layer in self.layers:
            layer._disable_adapters = name is None
            layer._active_adapter = [] if name is None else [name]
        self.active = name

    def checkpointed(self, module: nn.Module, *arguments: Any) -> Tensor:
        """Call a module with gradient checkpointing; the recomputation uses adapter and masks of the forward pass."""
        name, dropout = self.active, self.dropout
        return checkpoint(
            module.__call__,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), self.active_adapter(name, dropout)),
        )


class AdapterView(nn.Module):
    """A shared base seen as one network: called like the base, but with only its adapter's parameters.

    So whatever trains, saves, counts or averages the parameters of a view handles the adapter. The base's parameters
    belong to no view.
    """

    def __init__(self, base: SharedBaseModel, name: str | None):
        super().__init__()
        self.base, self.name = base, name
        self._next_call: DropoutCall | None = None
        for path, parameter in base.weights(name) if name else ():
            _register(self, path, parameter)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        dropout = None
        if self._next_call and torch.is_grad_enabled():
            dropout, self._next_call = self._next_call, replace(self._next_call, index=self._next_call.index + 1)
        with self.base.active_adapter(self.name, dropout):
            return self.base.network(*arguments, **named)

    @contextmanager
    def dropping_out(self, seed: int, step: int, samples: Sequence[int]) -> Iterator[None]:
        """Run calls with the adapter's dropout if they have gradient; the masks are named by (seed, step, samples)."""
        self._next_call = DropoutCall(seed, step, samples)
        try:
            yield
        finally:
            self._next_call = None

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
