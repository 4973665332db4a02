"""Write tokenizer folders with the official number of tokens, trained on this checkout's prompts.

A pipeline's templates are in the training text, so each of their words is one token, as in the official vocabularies.
"""

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import open_clip
import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import GemmaTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

ROOT = Path(__file__).parents[1]
NUM_MERGES = 49152 - 256 - 2  # of CLIP's vocabulary: its bytes and their word ends, the merges, and two specials
QWEN_TOKENS, GEMMA_TOKENS = 151643, 256000  # Qwen's without special tokens, Gemma's with them
QWEN_SPECIAL = (  # Qwen3's, from number QWEN_TOKENS on; Qwen2.5's are the first 22
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
CHAT_TEMPLATE = (  # a conversation as Qwen3's own template writes it
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TEMPLATES = (  # of Qwen-Image and Lumina-Image 2.0
    "system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of "
    "the objects and background:\nuser\nassistant\n",
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> ",
)


def training_text() -> list[str]:
    """Return the prompts of this checkout and the pipelines' templates."""
    files = sorted((ROOT / "data").glob("*.txt"))
    return [*TEMPLATES, *(line for path in files for line in path.read_text(encoding="utf-8").splitlines())]


def train_merges(
    split: pre_tokenizers.PreTokenizer, text: Sequence[str], alphabet: Sequence[str], count: int
) -> list[tuple[str, str]]:
    """Return `count` merges of byte-pair encoding: those of `text`, then new pairs of a token and a letter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    size = len(alphabet) + count
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    merges = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    merges = [pair for pair in merges if set("".join(pair)) <= set(alphabet)][:count]
    return merges + list(_more_pairs(alphabet, merges, count - len(merges)))


def _more_pairs(alphabet: Sequence[str], merges: Sequence[tuple[str, str]], count: int) -> Iterator[tuple[str, str]]:
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    known = set(tokens)
    for left in tokens:  # which grows
        for right in alphabet:
            if count == 0:
                return
            if left + right not in known:
                known.add(left + right)
                tokens.append(left + right)
                count -= 1
                yield left, right


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_vocabulary(folder: Path, letters: Sequence[str], merges: Sequence[str], special: Sequence[str] = ()) -> None:
    """Write vocab.json and merges.txt; each merge is two tokens with a space between them."""
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges), *special]
    _write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def write_qwen(folder: Path, config: dict) -> None:
    """Write vocab.json, merges.txt and the configuration of Qwen2Tokenizer, with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    merges = train_merges(split, training_text(), alphabet, QWEN_TOKENS - len(alphabet))
    _write_vocabulary(folder, alphabet, [" ".join(pair) for pair in merges])
    added = {
        str(QWEN_TOKENS + number): {"content": token, "special": "|" in token, "normalized": False}
        | dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        for number, token in enumerate(QWEN_SPECIAL)
    }
    more = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    _write_json(folder / "tokenizer_config.json", config | more)


def write_gemma(folder: Path, config: dict) -> None:
    """Write the tokenizer.json of GemmaTokenizer: spaces are letters, other letters than ASCII are bytes."""
    first = [*GEMMA_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = ["▁", *(chr(code) for code in range(33, 127))]
    text = [" ".join(f"▁{word}" for word in line.split()) for line in training_text()]
    merges = train_merges(pre_tokenizers.WhitespaceSplit(), text, alphabet, GEMMA_TOKENS - len(first) - len(alphabet))
    tokens = [*first, *alphabet, *("".join(pair) for pair in merges)]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges, padding_side=config["padding_side"])
    tokenizer.add_bos_token = True
    tokenizer.save_pretrained(folder)


def write_clip(folder: Path, config: dict) -> None:
    """Write CLIP's vocab.json and merges.txt, from the vocabulary in open_clip."""
    with gzip.open(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : NUM_MERGES + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    start, end = "<|startoftext|>", "<|endoftext|>"
    _write_vocabulary(folder, [*letters, *(letter + "</w>" for letter in letters)], merges, (start, end))
    specials = {"bos_token": start, "eos_token": end, "unk_token": end}
    _write_json(folder / "tokenizer_config.json", config | specials)


def write_t5(folder: Path, config: dict) -> None:
    """Write a spiece.model with T5's special tokens."""
    with tempfile.TemporaryDirectory() as work:
        text = Path(work, "text.txt")
        text.write_text("\n".join(training_text()), encoding="utf-8")
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
    _write_json(folder / "tokenizer_config.json", config | specials)


TOKENIZERS: dict[str, Callable[[Path, dict], None]] = {
    "CLIPTokenizer": write_clip,
    "T5Tokenizer": write_t5,
    "Qwen2Tokenizer": write_qwen,
    "GemmaTokenizer": write_gemma,
}
