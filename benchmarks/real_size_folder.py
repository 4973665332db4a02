"""Write a family's official model with random weights: real shapes and tokenizer files, nothing is downloaded."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizer_folders import TOKENIZERS

from dpdmd.models.hollow import write_hollow
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.tensor_files import file_head
from dpdmd.utils.atomic_files import write_json

CHUNK = 2**24  # numbers that are drawn and written at a time
SHARD_BYTES = 10**10  # of one file at most, as diffusers writes them
Entries = Mapping[str, Mapping[str, Any]]  # of the header of a .safetensors file, by the weights' names


def write_real_size(family: str, folder: Path, model: str = "", *, hollow: bool = False) -> None:
    """Write the pipeline folder of a family's official model, with random weights in bf16, tensor by tensor.

    Args:
        model: another model of the family (`Layout.other_official`).
        hollow: write no numbers, so that the weights take no disk space.
    """
    layout = LAYOUTS[family]
    write_hollow(layout, folder, model)
    torch.manual_seed(0)
    for path in [] if hollow else sorted(folder.rglob("*.safetensors")):
        write_weights(path)
    for name, config in layout.official.items():
        if name.startswith("tokenizer"):
            (folder / name / "tokenizer.json").unlink()
            TOKENIZERS[config["tokenizer_class"]](folder / name, config)


def write_weights(path: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the tensors of a .safetensors file that has only a header: norms 1, biases 0, all else normal.

    The deviation is that of a layer's number of inputs. More than `shard_bytes` become shards with an index.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    shards = list(_divide(header, shard_bytes))
    if len(shards) == 1:
        _write_file(path, header)
        return
    path.unlink()
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{path.stem}-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(path.with_name(name), shard)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(map(_size, header.values()))}, "weight_map": places}
    write_json(path.with_name(f"{path.name}.index.json"), index)


def _size(entry: Mapping[str, Any]) -> int:
    first, last = entry["data_offsets"]
    return last - first


def _divide(header: Entries, shard_bytes: int) -> Iterator[Entries]:
    shard: dict[str, Mapping[str, Any]] = {}
    for name, entry in header.items():
        if shard and sum(map(_size, shard.values())) + _size(entry) > shard_bytes:
            yield shard
            shard = {}
        shard[name] = entry
    yield shard


def _write_file(path: Path, entries: Entries) -> None:
    head, _ = file_head({name: (torch.bfloat16, entry["shape"]) for name, entry in entries.items()})
    with path.open("wb") as file:
        file.write(head)
        for name, entry in entries.items():
            for part in _values(name, entry["shape"]):
                file.write(part.view(torch.uint8).numpy())


def _values(name: str, shape: list[int]) -> Iterator[torch.Tensor]:
    count = torch.Size(shape).numel()
    for start in range(0, count, CHUNK):
        part = torch.empty(min(CHUNK, count - start), dtype=torch.bfloat16)
        if len(shape) < 2:
            yield part.fill_(0 if name.endswith("bias") else 1)
        else:
            yield part.normal_(0, (shape[0] / count) ** 0.5)


def known_families() -> list[str]:
    """Return the families whose tokenizers can be written here."""
    classes = {
        family: {config["tokenizer_class"] for name, config in layout.official.items() if name.startswith("tokenizer")}
        for family, layout in LAYOUTS.items()
    }
    return [family for family, needed in classes.items() if needed <= TOKENIZERS.keys()]
