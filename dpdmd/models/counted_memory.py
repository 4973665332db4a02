"""Device memory of one network call, counted on tensors with shapes but no data (torch's FakeTensorMode).

The family's own code calls a network that is built from its configuration, so nothing about the network is repeated
here. It takes seconds: 2 for a transformer, 10 for a UNet with adapters. Operators are the CPU's, with CUDA's rule that
autocast computes norms in fp32; their attention keeps what a flash kernel keeps. The memory of libraries and of the
allocator comes on top.
"""

import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from dpdmd.models import lora
from dpdmd.models.activation_memory import CallMemory, CallShape
from dpdmd.models.base import Family, TextEmbedding

CPU = torch.device("cpu")
Run = Callable[..., Any]


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operators create, while they live; the storages of `known` are not counted."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self.sizes = {tensor.untyped_storage()._cdata: (0, None) for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes:
            return

        def end(_: object) -> None:
            self.sizes.pop(key, None)
            self.now -= size

        self.sizes[key] = (size, weakref.ref(storage, end))
        self.now += size
        self.peak = max(self.peak, self.now)


def held_by(network: nn.Module) -> list[Tensor]:
    """Return what a network holds between its calls: weights, buffers, and tables that are plain attributes."""
    tables = [value for part in network.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return [*network.parameters(), *network.buffers(), *tables]


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested containers."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Compute norms in fp32 under autocast, as on CUDA and unlike on a CPU."""

    def in_fp32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *given, **named: norm(x.float() if torch.is_autocast_enabled("cpu") else x, *given, **named)

    plain = F.rms_norm

    def rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            x, weight = x.float(), None if weight is None else weight.float()
        return plain(x, shape, weight, eps)

    with (
        patch.object(F, "layer_norm", in_fp32(F.layer_norm)),
        patch.object(F, "group_norm", in_fp32(F.group_norm)),
        patch.object(F, "rms_norm", rms_norm),
    ):
        yield


@contextmanager
def without_data() -> Iterator[None]:
    """Compute on tensors with shapes but no data, as on CUDA."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda():
        yield


class SavedStorages:
    """The storages that autograd keeps from one call, by the part that keeps them, and each part's inputs.

    A part is a module that the library recomputes under gradient checkpointing: a transformer block, or also a residual
    block of a UNet.

    Attributes:
        saved: part -> storages by address; None for what is kept outside the parts.
        inputs: part -> storages of its arguments.
        arguments: part -> its arguments.
    """

    def __init__(self, network: nn.Module):
        self.network, self.part = network, None
        self.own = {tensor.untyped_storage()._cdata for tensor in held_by(network)}
        self.saved: dict[nn.Module | None, dict[int, torch.UntypedStorage]] = {None: {}}
        self.inputs: dict[nn.Module, dict[int, torch.UntypedStorage]] = {}
        self.arguments: dict[nn.Module, tuple[Any, ...]] = {}

    def _run(self, part: nn.Module, *arguments: Any) -> Any:
        self.part = part
        self.saved[part], self.arguments[part] = {}, arguments
        storages = [tensor.untyped_storage() for tensor in tensors_in(arguments)]
        self.inputs[part] = {storage._cdata: storage for storage in storages if storage._cdata not in self.own}
        try:
            return part(*arguments)
        finally:
            self.part = None

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.saved[self.part][storage._cdata] = storage
        return tensor

    def record(self, call: Callable[[], Tensor]) -> None:
        """Run `call` once, without recomputation, and record what it keeps."""
        self.network.enable_gradient_checkpointing(self._run)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                call()
        finally:
            self.network.disable_gradient_checkpointing()

    def sizes(self, groups: list[dict[int, torch.UntypedStorage]], seen: set[int]) -> list[int]:
        """Return the bytes of each group that are in no group before it, nor in `seen`, which is added to."""
        found = []
        for group in groups:
            found.append(sum(storage.nbytes() for key, storage in group.items() if key not in seen))
            seen |= group.keys()
        return found


def build_network(family: Family, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """Build a network of this configuration with weights in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return family.network_class.from_config(dict(config)).eval()
    finally:
        torch.set_default_dtype(before)


def add_adapters(
    family: Family, network: nn.Module, config: Mapping[str, Any], rank: int, *, dropout: bool
) -> lora.AdapterView:
    """Return the network with the adapters of a run, seen as the student."""
    layout = family.layout
    targets, excluded = layout.peft_targets(config, layout.lora_targets), layout.lora_excluded(config)
    adapter = lora.Adapter(rank, float(rank), targets, 0.5 if dropout else 0.0, excluded)
    # peft moves new layers to their base's device and type; tensors without data cannot be moved in place. Drawing what
    # they hold only takes time.
    with (
        patch.object(nn.Module, "to", lambda module, *_, **__: module),
        patch.object(nn.init, "kaiming_uniform_", lambda tensor, *_, **__: tensor),
    ):
        return lora.share(network, adapter, adapter, 0)[1]


def count_part(part: nn.Module, arguments: tuple[Any, ...], run: Run, recompute: Run) -> tuple[int, int]:
    """Return the most that lives beside a part's graph, forward and backward, and the same if the part is recomputed.

    Args:
        run: calls a part with its arguments as in a call of the network.
        recompute: the same with gradient checkpointing.
    """

    def leaf(value: Any) -> Any:
        return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value

    arguments = tree_map(leaf, arguments)
    own = list(part.parameters())
    for parameter in own:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None  # counted elsewhere
    known = [*tensors_in(arguments), *own, *part.buffers(), *(p.grad for p in own if p.grad is not None)]
    found = []
    for call in (run, recompute):
        with LiveStorages(known) as live:
            # The backward pass makes the gradients of the outputs itself, and frees them as those of a next part.
            end = sum((each * 1.0).sum() for each in tensors_in(call(part, *arguments)))
            kept = live.now
            if end.requires_grad:  # with adapters some parts have nothing to train, nor has what comes before them
                end.backward()
        found.append(live.peak - kept)
        for each in tensors_in(arguments):
            each.grad = None
    for parameter in own:
        parameter.grad = None
    return found[0], found[1]


@dataclass(frozen=True)
class Call:
    """A call of a network without data: `network` with its weights, `caller` is the network or its adapter's view."""

    family: Family
    network: nn.Module
    caller: nn.Module
    z: Tensor
    sigma: Tensor
    text: TextEmbedding

    @staticmethod
    def build(family: Family, config: Mapping[str, Any], shape: CallShape, factor: int) -> "Call":
        """Build the network and its inputs.

        Args:
            config: the configuration of the network.
            factor: pixels a side of one latent.
        """
        dtype, layout, batch = family.compute_dtype, family.layout, shape.batch
        network = build_network(family, config, torch.float32 if shape.casts else dtype)
        caller, rank = network, shape.adapter_rank
        if rank is not None:
            caller = add_adapters(family, network, config, rank, dropout=shape.adapter_dropout)
        context, pooled = layout.text_widths(config)
        text = TextEmbedding(
            torch.empty(batch, shape.text_tokens, context, dtype=dtype),
            None if pooled is None else torch.empty(batch, pooled, dtype=dtype),
            (shape.text_tokens,) * batch if layout.lengths_differ else None,
        )
        z = torch.empty(batch, layout.latent_channels(config), shape.height // factor, shape.width // factor)
        return Call(family, network, caller, z, torch.empty(batch), text)

    @property
    def dropout(self) -> lora.DropoutCall:
        """The name of the masks of the adapters' dropout."""
        return lora.DropoutCall(0, 0, range(len(self.z)))

    def __call__(self) -> Tensor:
        adapted, names = isinstance(self.caller, lora.AdapterView), self.dropout
        with self.caller.dropping_out(names.seed, names.step, names.samples) if adapted else nullcontext():
            return self.family.predict(self.caller, self.z, self.sigma, self.text)

    def tensors(self) -> list[Tensor]:
        """Return weights and inputs, which are counted elsewhere."""
        return [*held_by(self.network), self.z, self.sigma, *self.text.tensors().values()]


def count_call(family: Family, config: Mapping[str, Any], shape: CallShape, factor: int) -> CallMemory:
    """Count the memory of one call, `passing` alone if nothing is trained; the arguments are those of `Call.build`."""
    with without_data():
        call = Call.build(family, config, shape, factor)
        network = call.network
        with torch.no_grad(), LiveStorages(call.tensors()) as passing:
            call()
        if not shape.trained:
            return CallMemory((), (), 0, 0, 0, (), passing.peak)
        saved = SavedStorages(network)
        saved.record(call)
        run, recompute = _ways_to_run(call)
        kinds: dict[tuple[Any, ...], tuple[int, int]] = {}
        working = {}
        for part, arguments in saved.arguments.items():
            shapes = [(tuple(each.shape), each.requires_grad) for each in (*tensors_in(arguments), *part.parameters())]
            kind = type(part), *shapes
            if kind not in kinds:
                kinds[kind] = count_part(part, arguments, run, recompute)
            working[part] = kinds[kind]
        blocks = family.blocks(network)
    return _summarise(saved, blocks, [part for part in working if part not in set(blocks)], passing.peak, working)


def _ways_to_run(call: Call) -> tuple[Run, Run]:
    """Return functions that run a block as in `call`, without and with gradient checkpointing."""
    caller, adapted = call.caller, isinstance(call.caller, lora.AdapterView)

    def in_a_call(run: Run) -> Run:
        def run_block(block: Callable[..., Any], *args: Any) -> Any:
            active = caller.base.active_adapter(caller.name, call.dropout) if adapted else nullcontext()
            with active, call.family.autocast(CPU):
                return run(block, *args)

        return run_block

    recompute = caller.base.checkpointed if adapted else partial(checkpoint, use_reentrant=False)
    return in_a_call(lambda block, *args: block(*args)), in_a_call(recompute)


def _summarise(
    saved: SavedStorages,
    blocks: list[nn.Module],
    others: list[nn.Module],
    passing: int,
    working: dict[nn.Module, tuple[int, int]],
) -> CallMemory:
    seen: set[int] = set()
    outside, *of_others = saved.sizes([saved.saved[each] for each in (None, *others)], seen)
    of_blocks = saved.sizes([saved.saved[each] for each in blocks], seen)
    seen = set(saved.saved[None])
    inputs_of_others = saved.sizes([saved.inputs[each] for each in others], seen)
    inputs = saved.sizes([saved.inputs[each] for each in blocks], seen)
    return CallMemory(
        blocks=tuple(of_blocks),
        block_inputs=tuple(inputs),
        outside=outside + sum(of_others),
        shared=sum(inputs_of_others) - sum(of_others),
        backward=max(backward for backward, _ in working.values()),
        recomputations=tuple(working[block][1] for block in blocks),
        passing=passing,
        others=max((working[other][1] for other in others), default=0),
    )


def count_calls_of(name: str) -> Callable[[Mapping[str, Any], CallShape, int], CallMemory]:
    """Return a `Layout.call_memory` that counts the calls of the family `name`; each count is made once."""

    @cache
    def count(entries: str, shape: CallShape, factor: int) -> CallMemory:
        dtype = torch.bfloat16 if shape.bf16 else torch.float32
        family = import_module(f"dpdmd.models.{name}.family").FAMILY(CPU, dtype)
        return count_call(family, json.loads(entries), shape, factor)

    def call_memory(config: Mapping[str, Any], shape: CallShape, factor: int) -> CallMemory:
        return count(json.dumps(dict(config), sort_keys=True), shape, factor)

    return call_memory
