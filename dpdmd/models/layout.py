"""The folder layout of a model family, and what the small files of a folder say about the model.

Does not import diffusers, which takes seconds, so a wrong path is reported at once.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpdmd.config.precisions import UNQUANTIZED, bytes_of_linear
from dpdmd.models.activation_memory import FP32, CallMemory, CallShape
from dpdmd.models.comfyui_workflow import ComfyUINames
from dpdmd.models.deciding_files import deciding_files
from dpdmd.models.layout_values import AUTOENCODER_KL, CLASSIFIER_FREE, Autoencoder, Guidance, WeightBytes
from dpdmd.models.noise_schedule import Schedule
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults
from dpdmd.models.weight_files import Shape, find_weight_files, read_all_shapes, stem_of
from dpdmd.utils.paths import SCHEDULER_CONFIG
from dpdmd.utils.text_files import expecting_mapping_keys, read_json

_TABLES = ("relative_attention_bias.weight",)  # in a block of a T5, but an embedding
DEFAULT_SIZE = 1024  # pixels a side, of a network whose configuration does not say


def count_numbers(shapes: Mapping[str, Shape]) -> int:
    """Return how many numbers tensors of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def read_scheduler_config(folder: Path, scheduler: str) -> tuple[Path, dict[str, Any]]:
    """Return the path of a pipeline's scheduler_config.json, and the values of the model's own scheduler.

    The file of an exported student may have others, that make the student's grid (`SamplingDefaults.own_scheduler`).

    Raises:
        ValueError: the file is missing, unreadable, or of another class than `scheduler`.
    """
    path = folder / SCHEDULER_CONFIG
    config = read_json(path)
    if config.get("_class_name") != scheduler:
        raise ValueError(f"{path} is of a {config.get('_class_name')}, but a {scheduler} is needed")
    defaults = read_sampling_defaults(folder, SamplingDefaults())
    return path, config | ({"shift": defaults.shift} if defaults.shift else {}) | (defaults.own_scheduler or {})


def _is_named(name: str, endings: Sequence[str]) -> bool:
    """Return whether a layer's dotted name ends in one of `endings`, as peft compares them."""
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def _modules(weights: Iterable[str]) -> list[str]:
    """Return the dotted names of all modules that hold one of the weights, and of those before one in a list."""
    names = {}
    for path in (name.split(".")[:-1] for name in weights):
        for depth, last in enumerate(path):
            earlier = range(int(last)) if last.isdigit() else ()  # such as activations, which have no weights
            names |= dict.fromkeys(".".join([*path[:depth], str(part)]) for part in (*earlier, last))
    return list(names)


def clip_tokens(folder: Path, default: int) -> int:
    """Return the tokens of a prompt by the configuration of the first tokenizer."""
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = read_json(path)
    with expecting_mapping_keys(path):
        return int(config.get("model_max_length", default))


def _clip_and_t5_tokens(folder: Path, max_sequence_length: int) -> int:
    """Return CLIP's tokens and T5's."""
    return clip_tokens(folder, 77) + max_sequence_length


def in_numbered_block(name: str) -> bool:
    """Return whether the dotted name of a weight or layer leads through a numbered list, as those of blocks do."""
    return any(part.isdigit() for part in name.split("."))


@dataclass(frozen=True)
class Layout:
    """The folder layout of one family. "By its configuration": a function of the values in the network's config.json.

    Attributes:
        pipeline: class name in model_index.json.
        network: component that is distilled.
        classes: component -> required class, for the components whose weights are loaded.
        other_classes: component -> further classes that model_index.json may name, whose weights `classes` loads.
        repository: source of the official weights, for messages.
        licence: entries about the licence in the head of the official weights' model card.
        official: configurations of that repository's components, by component; the classes' defaults may be left out.
        other_official: name of another model of the family -> component -> what differs from `official`.
        shapes: shapes of some of the network's weights by its configuration, enough to recognise another model.
        blocks: the numbered lists of transformer blocks by its configuration, in the order of a call: name prefix ->
            count.
        latents: (divisor, maximum) of the latents a side, by its configuration.
        required: components that must be present, beside the network.
        read_schedule: reads the scheduler's file; rejects a scheduler that the schedule does not reproduce.
        defaults: sampling defaults of a folder without a dpdmd.json.
        lora_targets: layers that get a LoRA adapter, by the endings of their names.
        guidance: formula and scale of guidance, and the unconditional prompt.
        text_tensors: the tensors of an embedding (`TextEmbedding.to_cache`).
        latent_channels: channels of the sampler's latents, by the network's configuration.
        check_tokenizer: raises a ValueError if a loaded tokenizer is another model's; None for no such check.
        unread: beginnings of the names of the text encoder's weights that are not loaded.
        fixed_text_length: the length of a prompt is the tokenizer's and cannot be chosen.
        vae_factor: pixels a side of one latent, if the network takes the size of its image in pixels.
        t5: components that a pipeline can do without (`--no_t5`); empty if it cannot.
        buffers: weights of the network that are no parameters, so are not trained.
        frozen: parameters of the network that no loss reaches, by its configuration: they are not trained.
        lora_excluded: layers without a LoRA adapter though a target names them, by the configuration, as endings of
            their names.
        lora_full_names: layers whose ending is also that of a module without weights, by the configuration; peft must
            get their full names.
        text_layers: the first layers of the text encoder, which alone are loaded; None for all.
        autoencoder: what the autoencoder's configuration says about latents.
        text_widths: the numbers of a token of the context, and of the pooled vector or None, by the configuration.
        encoder_widths: the same by the configurations of the text encoders (component -> configuration); None for a
            width that they do not decide.
        text_tokens: the tokens of a prompt in the network's input, by (folder, `max_sequence_length`).
        longest_text: the most tokens of a prompt, by the network's configuration.
        beside_single_file: components that diffusers does not find in the single file, though it holds them.
        image_first: the first argument of the pipeline's call is an image, so the prompt needs its name.
        single_file_network: the original files hold the network alone, so the single file does too.
        comfyui_name: converts the name of a LoRA weight to the one that ComfyUI reads; None if it reads diffusers'.
        comfyui_reads_lora: whether ComfyUI has names for a LoRA of the family at all.
        comfyui: what ComfyUI calls the parts, for the workflow beside an export; None for no workflow.
        call_memory: device memory of one call by (configuration, shape, pixels a side of a latent); None if unknown.
    """

    pipeline: str
    network: str
    classes: Mapping[str, str]
    repository: str
    licence: Mapping[str, str]
    official: Mapping[str, Mapping[str, Any]]
    shapes: Callable[[Mapping[str, Any]], dict[str, Shape]]
    blocks: Callable[[Mapping[str, Any]], dict[str, int]]
    latents: Callable[[Mapping[str, Any]], tuple[int, float]]
    required: tuple[str, ...]
    read_schedule: Callable[[Path], Schedule]
    defaults: SamplingDefaults
    lora_targets: tuple[str, ...]
    text_widths: Callable[[Mapping[str, Any]], tuple[int, int | None]]
    other_official: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    other_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    guidance: Guidance = CLASSIFIER_FREE
    text_tensors: tuple[str, ...] = ("context", "pooled")
    latent_channels: Callable[[Mapping[str, Any]], int] = lambda config: config.get("in_channels")
    check_tokenizer: Callable[[Any], None] | None = None
    unread: tuple[str, ...] = ()
    fixed_text_length: bool = False
    vae_factor: int | None = None
    t5: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    frozen: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda _: ()
    lora_excluded: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda _: ()
    lora_full_names: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda _: ()
    text_layers: int | None = None
    autoencoder: Autoencoder = AUTOENCODER_KL
    encoder_widths: Callable[[Mapping[str, Any]], tuple[int | None, int | None]] = lambda encoders: (
        encoders["text_encoder"].hidden_size,
        None,
    )
    text_tokens: Callable[[Path, int], int] = _clip_and_t5_tokens
    longest_text: Callable[[Mapping[str, Any]], int] = lambda _: 512
    beside_single_file: tuple[str, ...] = ()
    image_first: bool = False
    single_file_network: bool = False
    comfyui_name: Callable[[str], str] | None = None
    comfyui_reads_lora: bool = True
    comfyui: ComfyUINames | None = None
    call_memory: Callable[[Mapping[str, Any], CallShape, int], CallMemory] | None = None

    @property
    def lengths_differ(self) -> bool:
        """Return whether the prompts of a batch have different lengths, so that attention needs a mask."""
        return "lengths" in self.text_tensors

    def components(self, folder: Path, *, no_t5: bool = False) -> dict[str, str]:
        """Return the components of model_index.json that are not null, each with its class; no T5 if `no_t5`."""
        index = read_json(folder / "model_index.json")
        return {
            name: value[1]
            for name, value in index.items()
            if isinstance(value, list)
            and len(value) == 2
            and all(isinstance(word, str) for word in value)
            and not (no_t5 and name in self.t5)
        }

    def check_index(self, folder: Path) -> None:
        """Check that model_index.json gives each component a library and a class, or null for both.

        Raises:
            ValueError: an entry is something else, which `components` would leave out.
        """
        index = read_json(folder / "model_index.json")
        for name in (self.network, *self.classes, *self.required, *self.t5):
            value = index.get(name, [None, None])
            whole = isinstance(value, list) and len(value) == 2
            if not whole or any(isinstance(word, str) != isinstance(value[0], str) for word in value):
                raise ValueError(f"model_index.json says {name} is {value!r}, where a library and a class belong")

    def text_encoders(self, folder: Path, *, no_t5: bool = False) -> list[str]:
        """Return the components that are text encoders."""
        return [name for name in self.components(folder, no_t5=no_t5) if name.startswith("text_encoder")]

    def weight_files(self, folder: Path, component: str) -> list[Path]:
        """Return the files of a component's weights, by the name that the component's library reads."""
        return find_weight_files(folder / component, (stem_of(component, self.network),))

    def weight_shapes(self, folder: Path, component: str) -> dict[str, Shape]:
        """Return the shapes of a component's weights."""
        return read_all_shapes(self.weight_files(folder, component))

    def block_prefixes(self, folder: Path) -> tuple[str, ...]:
        """Return how the names of all weights in the network's blocks begin."""
        return tuple(self.blocks(self.network_config(folder)))

    def linear_of_blocks(self, folder: Path, component: str) -> dict[str, Shape]:
        """Return the shapes of the weights of linear layers in the blocks of the network or of a text encoder."""
        prefixes = self.block_prefixes(folder) if component == self.network else None
        return {
            name: shape
            for name, shape in self.loaded_shapes(folder, component).items()
            if len(shape) == 2 and name.endswith(".weight") and not name.endswith(_TABLES)
            if (in_numbered_block(name) if prefixes is None else name.startswith(prefixes))
        }

    def weight_bytes(self, folder: Path, components: Sequence[str], precision: str, number: int) -> WeightBytes:
        """Return the memory of the weights of some components.

        Args:
            precision: one of `PRECISIONS`, of the linear layers in the blocks.
            number: bytes of a number that is not quantised.
        """
        whole = sum(count_numbers(self.loaded_shapes(folder, component)) for component in components)
        if precision == UNQUANTIZED:
            return WeightBytes(whole * number, 0, 0, whole)
        shapes = [shape for each in components for shape in self.linear_of_blocks(folder, each).values()]
        sizes = [math.prod(shape) for shape in shapes]
        others = whole - sum(sizes)
        held = sum(bytes_of_linear(precision, shape) for shape in shapes) + others * number
        return WeightBytes(held, max(sizes, default=0) * (FP32 + number), sum(sizes), others)

    def loaded_shapes(self, folder: Path, component: str) -> dict[str, Shape]:
        """Return the shapes of the weights of a component that are loaded (`unread`, `text_layers`)."""
        shapes = self.weight_shapes(folder, component)
        if component.startswith("text_encoder"):
            return {name: shape for name, shape in shapes.items() if self._is_read(name)}
        return shapes

    def _is_read(self, name: str) -> bool:
        layer = re.match(r"(?:model\.)?layers\.(\d+)\.", name)
        beyond = bool(self.text_layers and layer) and int(layer[1]) >= self.text_layers
        return not (beyond or name.startswith(self.unread))

    def network_config(self, folder: Path) -> dict[str, Any]:
        """Return the configuration of the network, without the entries about where it came from."""
        config = read_json(folder / self.network / "config.json")
        return {name: value for name, value in config.items() if not name.startswith("_")}

    def count_parameters(self, folder: Path) -> int:
        """Return how many numbers the network's weights hold."""
        return count_numbers(self.weight_shapes(folder, self.network))

    def count_trained(self, folder: Path) -> int:
        """Return how many numbers full fine-tuning trains."""
        shapes = self.weight_shapes(folder, self.network)
        untrained = {*self.buffers, *self.frozen(self.network_config(folder))}
        return count_numbers({name: shape for name, shape in shapes.items() if name not in untrained})

    def count_buffers(self, folder: Path) -> int:
        """Return how many numbers of the network's weights are no parameters."""
        shapes = self.weight_shapes(folder, self.network)
        return count_numbers({name: shapes[name] for name in self.buffers if name in shapes})

    def count_blocks(self, folder: Path) -> int:
        """Return the number of blocks (`blocks`)."""
        return sum(self.blocks(self.network_config(folder)).values())

    def adapted_layers(self, folder: Path, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of each linear layer of the network whose name ends in one of `targets`.

        Raises:
            ValueError: no layer's name ends in one of the targets, or the name of another module does, which peft
                would adapt or reject.
        """
        config, shapes = self.network_config(folder), self.weight_shapes(folder, self.network)
        modules = [name for name in _modules(shapes) if not _is_named(name, self.lora_excluded(config))]
        weights = {name: shapes.get(f"{name}.weight", ()) for name in modules}
        linear = {name: shape for name, shape in weights.items() if len(shape) == 2}
        targets = self.peft_targets(config, targets)
        for target in targets:
            named = [name for name in modules if _is_named(name, (target,))]
            fitting = [name for name in named if name in linear]
            if not fitting:
                raise ValueError(f"no linear layer of {folder / self.network} is called {target}")
            if others := [name for name in named if name not in linear]:
                raise ValueError(
                    f"{target} names {others[0]} of {folder / self.network}, too, which is no linear layer; give more "
                    f"of the names, as in {fitting[0]}"
                )
        return {name: shape for name, shape in linear.items() if _is_named(name, targets)}

    def peft_targets(self, config: Mapping[str, Any], targets: Sequence[str]) -> tuple[str, ...]:
        """Return the names by which peft finds the layers of `targets` in a network of this configuration."""
        full = self.lora_full_names(config)
        found = ([name for name in full if _is_named(name, (target,))] or [target] for target in targets)
        return tuple(dict.fromkeys(name for names in found for name in names))

    def count_adapter_parameters(self, folder: Path, targets: Sequence[str], rank: int) -> int:
        """Return how many numbers a LoRA adapter of `rank` holds."""
        return sum(rank * (outputs + inputs) for outputs, inputs in self.adapted_layers(folder, targets).values())

    def memory_of_call(self, folder: Path, shape: CallShape) -> CallMemory | None:
        """Return the device memory of one call of the network, or None if it is unknown for this family."""
        if self.call_memory is None:
            return None
        return self.call_memory(self.network_config(folder), shape, self.read_vae_factor(folder))

    def bytes_beside_network(self, folder: Path, *, no_t5: bool = False) -> int:
        """Return the size of the pipeline's files that are loaded except the network's: what a whole export copies."""
        others = [folder / name for name in self.components(folder, no_t5=no_t5) if name != self.network]
        return sum(path.stat().st_size for other in others for path in deciding_files(other))

    def text_length(
        self, folder: Path, requested: int | None, defaults: SamplingDefaults, source: Path | None = None
    ) -> int:
        """Return the tokens of a prompt: as `requested`, else as in `defaults`; or the tokenizer's if that is fixed.

        Args:
            source: the model that has the defaults, for messages, if it is not `folder`.

        Raises:
            ValueError: the length is fixed and another one is requested, or the network takes fewer tokens.
        """
        if not self.fixed_text_length:
            length, longest = requested or defaults.max_sequence_length, self.longest_text(self.network_config(folder))
            if length > longest:
                place = f"--max_sequence_length {length}:"
                if not requested:
                    place = f"{source or folder}: max_sequence_length is {length} by its dpdmd.json or its family, but"
                raise ValueError(f"{place} this model takes {longest} tokens at most")
            return length
        length = clip_tokens(folder, self.defaults.max_sequence_length)
        if requested not in (None, length):
            raise ValueError(
                f"--max_sequence_length {requested}: this model's prompts have {length} tokens; leave it out"
            )
        return length

    def read_vae_factor(self, folder: Path) -> int:
        """Return the pixels a side of one latent."""
        return self.autoencoder.factor(read_json(folder / "vae" / "config.json"))

    def default_size(self, folder: Path) -> int:
        """Return the height and width, in pixels, that the network was made for."""
        size = self.network_config(folder).get("sample_size")
        return DEFAULT_SIZE if size is None else int(size) * self.read_vae_factor(folder)

    def check_size(self, folder: Path, height: int, width: int, flag: str = "") -> None:
        """Check that the network can make images of this size.

        Args:
            flag: the flag with its value, if it gives both sides.

        Raises:
            ValueError: no multiple of the autoencoder's factor times the patch, or beyond the position table.
        """
        for side, value in (("height", height), ("width", width)):
            self.check_side(folder, value, f"{flag}: {side} {value}" if flag else f"--{side} {value}:")

    def check_side(self, folder: Path, value: int, place: str) -> None:
        """Check one side of an image (`check_size`).

        Args:
            place: how a message begins: the flag with the value, or what else gives the value.

        Raises:
            ValueError: as `check_size`.
        """
        factor, config = self.read_vae_factor(folder), self.network_config(folder)
        multiple, largest = (factor * number for number in self.latents(config))
        if value <= 0 or value % multiple:
            raise ValueError(f"{place} must be a multiple of {multiple} for this model")
        if value > largest:
            large = "" if place.endswith(":") else " is too large;"
            raise ValueError(f"{place}{large} this model has positions for {largest} pixels at most")
