"""What a family's folder must hold, read from its small files alone: everything that can be told before a model loads.

Imports neither torch nor diffusers, so a wrong path is told within a second.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dpdmd.families.call_memory import CallMemory, CallShape, sd3_call_memory
from dpdmd.weight_files import read_json, read_weights_header

NOTE = "dpdmd.json"  # beside model_index.json: how this folder wants to be sampled
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))


@dataclass(frozen=True)
class Note:
    """How a folder wants to be sampled: the defaults of SD3.5, unless its `dpdmd.json` says otherwise.

    Attributes:
        sigmas: the exact grid [steps + 1], final 0 included, where it is not the scheduler's own.
        base: pipeline folder that a LoRA changes; None in a pipeline folder.
    """

    steps: int = 30
    guidance_scale: float = 3.5
    max_sequence_length: int = 256
    sigmas: tuple[float, ...] | None = None
    base: str | None = None

    def write(self, folder: Path) -> None:
        """Save beside the pipeline; diffusers passes over files it does not know."""
        (folder / NOTE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_note(folder: Path) -> Note:
    """The folder's note, or SD3.5's defaults.

    Raises:
        ValueError: the note is unreadable or holds unknown entries.
    """
    if not (folder / NOTE).exists():
        return Note()
    try:
        note = Note(**read_json(folder / NOTE))
    except TypeError as error:
        raise ValueError(f"{folder / NOTE}: not of this version ({error})") from None
    return replace(note, sigmas=tuple(note.sigmas) if note.sigmas else None)


def count_numbers(header: Mapping[str, Any]) -> int:
    """Numbers in the tensors of a weights' header."""
    return sum(math.prod(entry["shape"]) for entry in header.values())


@dataclass(frozen=True)
class Layout:
    """The folder layout of one family.

    Attributes:
        pipeline: class name that model_index.json must give.
        network: component that is distilled.
        repository: where the official weights come from, for the messages.
        shapes: of some of the network's weights, by its configuration; enough to tell another model's.
        blocks: (prefix of the numbered blocks, entry of the configuration that counts them).
        lora_targets: layers that get a LoRA adapter, by the ends of their names.
        fixed: entries of the network's weights that are no parameters, so are not trained.
        call_memory: device memory of one call, by configuration, shape and pixels of a latent; None: not known.
    """

    pipeline: str
    network: str
    repository: str
    shapes: Callable[[Mapping[str, Any]], dict[str, tuple[int, ...]]]
    blocks: tuple[str, str]
    lora_targets: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    call_memory: Callable[[Mapping[str, Any], CallShape, int], CallMemory] | None = None

    def parts(self, folder: Path) -> list[str]:
        """Components that model_index.json lists and that are not null."""
        index = read_json(folder / "model_index.json")
        return [name for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[0]]

    def _check_part(self, folder: Path, part: str) -> None:
        if not (folder / part).is_dir():
            raise ValueError(f"{folder / part} is missing")
        if part == "scheduler":
            self.shift(folder)
        elif part.startswith("tokenizer"):
            if not any(all((folder / part / name).exists() for name in names) for names in _TOKENIZER_FILES):
                raise ValueError(
                    f"{folder / part} holds no tokenizer (tokenizer.json, vocab.json + merges.txt or spiece.model)"
                )
        elif not part.startswith("feature_extractor"):
            read_json(folder / part / "config.json")
            header = read_weights_header(folder / part)
            if part == self.network:
                self._check_network(folder / part, header)

    def _check_network(self, folder: Path, header: Mapping[str, Any]) -> None:
        """Compare the weights' names and shapes with the configuration beside them."""
        config = read_json(folder / "config.json")
        prefix, entry = self.blocks
        found = {name.removeprefix(prefix).partition(".")[0] for name in header if name.startswith(prefix)}
        try:
            expected = self.shapes(config)
            if len(found) != config[entry]:
                raise ValueError(f"{folder}: its weights have {len(found)} blocks, its config.json {config[entry]}")
        except KeyError as error:
            raise ValueError(f"{folder / 'config.json'} lacks {error}") from None
        for name, shape in expected.items():
            if name not in header:
                raise ValueError(f"{folder}: its weights lack {name}: another model's?")
            if tuple(header[name]["shape"]) != shape:
                raise ValueError(
                    f"{folder}: {name} has shape {tuple(header[name]['shape'])}, by its config.json {shape}: "
                    "another model's weights?"
                )

    def check(self, folder: Path, flag: str, *, network_only: bool = False) -> None:
        """Check a pipeline folder, or only the part that is distilled.

        Raises:
            ValueError: one line that names the flag, the file, and where to get it.
        """
        hint = f"get it from https://huggingface.co/{self.repository} (scripts/download_weights.sh)"
        if not folder.is_dir():
            raise ValueError(f"{flag} {folder}: no such folder; {hint}")
        try:
            parts = [self.network] if network_only else self.parts(folder)
            if not network_only:
                found = read_json(folder / "model_index.json").get("_class_name")
                if found != self.pipeline:
                    raise ValueError(f"model_index.json is of a {found}, but a {self.pipeline} is needed")
            for part in parts:
                self._check_part(folder, part)
        except ValueError as error:
            raise ValueError(f"{flag} {folder}: {error}; {hint}") from None

    def shift(self, folder: Path) -> float:
        """The scheduler's shift; refuses schedules on which our own sigma arithmetic would be wrong.

        Raises:
            ValueError: another scheduler class, or a schedule bent by an option we do not reproduce.
        """
        path = folder / "scheduler" / "scheduler_config.json"
        config = read_json(path)
        if config.get("_class_name") != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(
                f"{path} is of a {config.get('_class_name')}, but a FlowMatchEulerDiscreteScheduler is needed"
            )
        bent = [
            name
            for name in (
                "use_dynamic_shifting",
                "use_karras_sigmas",
                "use_exponential_sigmas",
                "use_beta_sigmas",
                "invert_sigmas",
                "stochastic_sampling",
                "shift_terminal",
            )
            if config.get(name)
        ]
        if bent or config.get("num_train_timesteps", 1000) != 1000:
            raise ValueError(f"{path} sets {', '.join(bent) or 'num_train_timesteps'}, which this family does not use")
        return float(config.get("shift", 1.0))

    def network_config(self, folder: Path) -> dict[str, Any]:
        """Configuration of the network that is distilled, without the entries that only tell where it came from."""
        config = read_json(folder / self.network / "config.json")
        return {name: value for name, value in config.items() if not name.startswith("_")}

    def count_parameters(self, folder: Path) -> int:
        """Numbers in the weights of the network that is distilled."""
        return count_numbers(read_weights_header(folder / self.network))

    def count_trained(self, folder: Path) -> int:
        """Those of them that full fine-tuning trains."""
        header = read_weights_header(folder / self.network)
        return count_numbers({name: entry for name, entry in header.items() if name not in self.fixed})

    def text_parts(self, folder: Path) -> list[str]:
        """The text encoders' components."""
        return [part for part in self.parts(folder) if part.startswith("text_encoder")]

    def text_tokens(self, folder: Path, max_sequence_length: int) -> int:
        """Tokens that the network sees of a prompt: CLIP's, then T5's."""
        settings = read_json(folder / "tokenizer" / "tokenizer_config.json")
        return int(settings.get("model_max_length", 77)) + max_sequence_length

    def memory_of_call(self, folder: Path, shape: CallShape) -> CallMemory | None:
        """Device memory of one call of the network, or None where the family does not know."""
        if self.call_memory is None:
            return None
        return self.call_memory(self.network_config(folder), shape, self._factor(folder))

    def adapted_layers(self, folder: Path, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Layer -> (outputs, inputs) of the linear layers of the network whose names end in one of `targets`.

        Raises:
            ValueError: a target that no layer has.
        """
        header = read_weights_header(folder / self.network)
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

    def bytes_beside_network(self, folder: Path) -> int:
        """Size of every file of the pipeline but the network's: what a whole export copies."""
        parts = [folder / part for part in self.parts(folder) if part != self.network]
        return sum(path.stat().st_size for part in parts for path in part.rglob("*") if path.is_file())

    def _factor(self, folder: Path) -> int:
        """Pixels of one latent."""
        return 2 ** (len(read_json(folder / "vae" / "config.json").get("block_out_channels", ())) - 1)

    def default_size(self, folder: Path) -> int:
        """Height and width, in pixels, that the network was made for."""
        return int(self.network_config(folder).get("sample_size", 128)) * self._factor(folder)

    def check_size(self, folder: Path, height: int, width: int) -> None:
        """Check that the network can make pictures of this size.

        Raises:
            ValueError: not a multiple of the autoencoder's factor times the patch, or beyond the position table.
        """
        config = self.network_config(folder)
        multiple = self._factor(folder) * int(config.get("patch_size", 2))
        largest = multiple * int(config.get("pos_embed_max_size", 96))
        for flag, value in (("--height", height), ("--width", width)):
            if value <= 0 or value % multiple:
                raise ValueError(f"{flag} {value}: must be a multiple of {multiple} for this model")
            if value > largest:
                raise ValueError(f"{flag} {value}: this model has positions for {largest} pixels at most")


def _sd3_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch = config["patch_size"]
    return {
        "pos_embed.proj.weight": (width, config["in_channels"], patch, patch),
        "context_embedder.weight": (config["caption_projection_dim"], config["joint_attention_dim"]),
        "time_text_embed.text_embedder.linear_1.weight": (width, config["pooled_projection_dim"]),
        "proj_out.weight": (patch * patch * (config["out_channels"] or config["in_channels"]), width),
    }


SD35 = Layout(
    pipeline="StableDiffusion3Pipeline",
    network="transformer",
    repository="stabilityai/stable-diffusion-3.5-medium",
    shapes=_sd3_shapes,
    blocks=("transformer_blocks.", "num_layers"),
    lora_targets=(
        *("to_q", "to_k", "to_v", "to_out.0"),  # of the pictures, and of attn2
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the text
        *("net.0.proj", "net.2"),  # feed-forward, both
    ),
    fixed=("pos_embed.pos_embed",),
    call_memory=sd3_call_memory,
)
LAYOUTS = {"sd35": SD35}
