"""Write a family's official model with random weights: real shapes and tokenizer files, nothing is downloaded."""

import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import open_clip
import sentencepiece
import torch

from dpdmd.models.hollow import write_hollow
from dpdmd.models.registry import LAYOUTS

ROOT = Path(__file__).parents[1]
CHUNK = 2**24  # numbers that are drawn and written at a time
NUM_MERGES = 49152 - 256 - 2  # of CLIP's vocabulary: its bytes and their word ends, the merges, and two specials


def write_real_size(family: str, folder: Path) -> None:
    """Write the pipeline folder of a family's official model, with random weights in bf16."""
    layout = LAYOUTS[family]
    write_hollow(layout, folder)
    torch.manual_seed(0)
    for path in sorted(folder.rglob("*.safetensors")):
        fill_weights(path)
    for name, config in layout.official.items():
        if name.startswith("tokenizer"):
            (folder / name / "tokenizer.json").unlink()
            TOKENIZERS[config["tokenizer_class"]](folder / name, config)


def fill_weights(path: Path) -> None:
    """Fill the tensors of a .safetensors file in place: norms 1, biases 0, all else normal by the number of inputs."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            file.seek(8 + size + entry["data_offsets"][0])
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


def _write_clip_tokenizer(folder: Path, config: dict) -> None:
    """Write CLIP's vocab.json and merges.txt, from the vocabulary in open_clip."""
    with gzip.open(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : NUM_MERGES + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    end = "<|endoftext|>"
    specials = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | specials, indent=2) + "\n", encoding="utf-8")


def _write_t5_tokenizer(folder: Path, config: dict) -> None:
    """Write a spiece.model with T5's special tokens, trained on this checkout's prompts."""
    with tempfile.TemporaryDirectory() as work:
        text = Path(work, "text.txt")
        files = sorted((ROOT / "data").glob("*.txt"))
        text.write_text("\n".join(path.read_text(encoding="utf-8") for path in files), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=f"{work}/spiece",
            model_type="unigram",
            vocab_size=32000,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
        (folder / "spiece.model").write_bytes(Path(work, "spiece.model").read_bytes())
    specials = {"eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 100}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | specials, indent=2) + "\n", encoding="utf-8")


TOKENIZERS = {"CLIPTokenizer": _write_clip_tokenizer, "T5Tokenizer": _write_t5_tokenizer}


def known_families() -> list[str]:
    """Return the families whose tokenizers can be written here."""
    classes = {
        family: {config["tokenizer_class"] for name, config in layout.official.items() if name.startswith("tokenizer")}
        for family, layout in LAYOUTS.items()
    }
    return [family for family, needed in classes.items() if needed <= TOKENIZERS.keys()]
