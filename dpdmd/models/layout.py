"""What a family's folder must hold, read from its small files alone: everything that can be told before a model loads.

Does not import diffusers, which takes seconds, so a wrong path is told at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.models.activation_memory import CallMemory, CallShape
from dpdmd.models.noise_schedule import Schedule
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.weight_files import DIFFUSERS_STEM, TRANSFORMERS_STEM, read_weights_header
from dpdmd.utils.text_files import expecting_mapping_keys, read_json

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name


def count_numbers(header: Mapping[str, Any]) -> int:
    """Numbers in the tensors of a weights' header."""
    return sum(math.prod(entry["shape"]) for entry in header.values())


@dataclass(frozen=True)
class Layout:
    """The folder layout of one family.

    Attributes:
        pipeline: class name that model_index.json must give.
        network: component that is distilled.
        classes: component -> the class that it must be, of those whose weights we read.
        repository: where the official weights come from, for the messages.
        shapes: of some of the network's weights, by its configuration; enough to tell another model's.
        blocks: (prefix of the numbered blocks, how many there are by its configuration).
        latents: by its configuration, what the latents a side must be a multiple of, and how many there may be.
        needed: components that must be there, beside the network.
        schedule: reads the scheduler's file, refusing what our arithmetic would be wrong for.
        defaults: sampling defaults of a folder without a dpdmd.json.
        fixed_text: a prompt is as long as the tokenizer says, and nothing else has a say in it.
        factor: pixels a side of one latent, where the network is told its image's size in pixels.
        lora_targets: layers that get a LoRA adapter, by the ends of their names.
        t5: components that a pipeline of this family can do without (`--no_t5`); none where it cannot.
        fixed: entries of the network's weights that are no parameters, so are not trained.
        call_memory: device memory of one call, by configuration, shape and pixels of a latent; None: not known.
    """

    pipeline: str
    network: str
    classes: Mapping[str, str]
    repository: str
    shapes: Callable[[Mapping[str, Any]], dict[str, tuple[int, ...]]]
    blocks: tuple[str, Callable[[Mapping[str, Any]], int]]
    latents: Callable[[Mapping[str, Any]], tuple[int, float]]
    needed: tuple[str, ...]
    schedule: Callable[[Path], Schedule]
    defaults: SamplingDefaults
    lora_targets: tuple[str, ...]
    fixed_text: bool = False
    factor: int | None = None
    t5: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    call_memory: Callable[[Mapping[str, Any], CallShape, int], CallMemory] | None = None

    def parts(self, folder: Path, *, no_t5: bool = False) -> list[str]:
        """Components that model_index.json lists and that are not null; without the T5 if `no_t5`."""
        return list(self.listed(folder, no_t5=no_t5))

    def listed(self, folder: Path, *, no_t5: bool = False) -> dict[str, str]:
        """Each of those components with its class, by model_index.json."""
        index = read_json(folder / "model_index.json")
        listed = {
            name: value[1]
            for name, value in index.items()
            if isinstance(value, list) and len(value) == 2 and all(isinstance(word, str) for word in value)
        }
        return {name: kind for name, kind in listed.items() if not (no_t5 and name in self.t5)}

    def check_index(self, folder: Path) -> None:
        """Check that model_index.json gives each component a library and a class, or null for both.

        Raises:
            ValueError: it says something else of one, which `listed` would leave out.
        """
        index = read_json(folder / "model_index.json")
        for name in (self.network, *self.classes, *self.needed, *self.t5):
            value = index.get(name, [None, None])
            whole = isinstance(value, list) and len(value) == 2
            if not whole or any(isinstance(word, str) != isinstance(value[0], str) for word in value):
                raise ValueError(f"model_index.json says {name} is {value!r}, where a library and a class belong")

    def weights_header(self, folder: Path, part: str) -> dict[str, Any]:
        """Header of a component's weights, under the name that its library reads."""
        diffusers = part in (self.network, "vae")
        return read_weights_header(folder / part, (DIFFUSERS_STEM if diffusers else TRANSFORMERS_STEM,))

    def text_length(self, folder: Path, asked: int | None, defaults: SamplingDefaults) -> int:
        """Tokens of a prompt: those asked for, else the sampling defaults', unless the folder's tokenizer decides.

        Raises:
            ValueError: the model cannot read so many.
        """
        if not self.fixed_text:
            return asked or defaults.max_sequence_length
        length = _clip_tokens(folder, self.defaults.max_sequence_length)
        if asked not in (None, length):
            raise ValueError(f"--max_sequence_length {asked}: this model's prompts have {length} tokens; leave it out")
        return length

    def network_config(self, folder: Path) -> dict[str, Any]:
        """Configuration of the network that is distilled, without the entries that only tell where it came from."""
        config = read_json(folder / self.network / "config.json")
        return {name: value for name, value in config.items() if not name.startswith("_")}

    def count_parameters(self, folder: Path) -> int:
        """Numbers in the weights of the network that is distilled."""
        return count_numbers(self.weights_header(folder, self.network))

    def count_trained(self, folder: Path) -> int:
        """Those of them that full fine-tuning trains."""
        header = self.weights_header(folder, self.network)
        return count_numbers({name: entry for name, entry in header.items() if name not in self.fixed})

    def count_blocks(self, folder: Path) -> int:
        """How many blocks `blocks` numbers."""
        return self.blocks[1](self.network_config(folder))

    def text_parts(self, folder: Path, *, no_t5: bool = False) -> list[str]:
        """The text encoders' components."""
        return [part for part in self.parts(folder, no_t5=no_t5) if part.startswith("text_encoder")]

    def text_tokens(self, folder: Path, max_sequence_length: int) -> int:
        """Tokens that the network sees of a prompt: CLIP's, then T5's."""
        return _clip_tokens(folder, 77) + max_sequence_length

    def memory_of_call(self, folder: Path, shape: CallShape) -> CallMemory | None:
        """Device memory of one call of the network, or None where the family does not know."""
        if self.call_memory is None:
            return None
        return self.call_memory(self.network_config(folder), shape, self.factor_of(folder))

    def adapted_layers(self, folder: Path, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Layer -> (outputs, inputs) of the linear layers of the network whose names end in one of `targets`.

        Raises:
            ValueError: a target that no layer has.
        """
        header = self.weights_header(folder, self.network)
        linear = {
            name.removesuffix(".weight"): tuple(entry["shape"])
            for name, entry in header.items()
            if name.endswith(".weight") and len(entry["shape"]) == 2
        }
        for target in targets:
            if not any(f".{name}".endswith(f".{target}") for name in linear):
                raise ValueError(f"no linear layer of {folder / self.network} is called {target}")
        return {
            name: shape
            for name, shape in linear.items()
            if any(f".{name}".endswith(f".{target}") for target in targets)
        }

    def count_adapter_parameters(self, folder: Path, targets: Sequence[str], rank: int) -> int:
        """Numbers in a LoRA adapter of `rank`."""
        return sum(rank * (outputs + inputs) for outputs, inputs in self.adapted_layers(folder, targets).values())

    def bytes_beside_network(self, folder: Path, *, no_t5: bool = False) -> int:
        """Size of every file of the pipeline but the network's: what a whole export copies."""
        parts = [folder / part for part in self.parts(folder, no_t5=no_t5) if part != self.network]
        return sum(path.stat().st_size for part in parts for path in part.rglob("*") if path.is_file())

    def factor_of(self, folder: Path) -> int:
        """Pixels of one latent."""
        return 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)

    def default_size(self, folder: Path) -> int:
        """Height and width, in pixels, that the network was made for."""
        return int(self.network_config(folder).get("sample_size", 128)) * self.factor_of(folder)

    def check_size(self, folder: Path, height: int, width: int) -> None:
        """Check that the network can make images of this size.

        Raises:
            ValueError: not a multiple of the autoencoder's factor times the patch, or beyond the position table.
        """
        multiple, largest = (self.factor_of(folder) * number for number in self.latents(self.network_config(folder)))
        for flag, value in (("--height", height), ("--width", width)):
            if value <= 0 or value % multiple:
                raise ValueError(f"{flag} {value}: must be a multiple of {multiple} for this model")
            if value > largest:
                raise ValueError(f"{flag} {value}: this model has positions for {largest} pixels at most")


def _clip_tokens(folder: Path, default: int) -> int:
    """Tokens of a prompt, by the first tokenizer's own configuration."""
    path = folder / "tokenizer" / "tokenizer_config.json"
    said = read_json(path)
    with expecting_mapping_keys(path):
        return int(said.get("model_max_length", default))
