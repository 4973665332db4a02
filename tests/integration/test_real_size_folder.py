"""The folders of benchmarks/rehearsal.py: tokenizers of the official size, and weights that are written in shards."""

import json

import pytest
import tokenizer_folders
import torch
from real_size_folder import known_families, write_weights
from safetensors.torch import load_file, save_file
from tokenizer_folders import TOKENIZERS
from transformers import GemmaTokenizer, Qwen2Tokenizer

from dpdmd.models.registry import LAYOUTS
from dpdmd.models.weight_files import find_weight_files

SYSTEM = (  # of Qwen-Image: diffusers drops it by the number of its tokens, 34
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)


def test_a_qwen_tokenizer_has_the_official_numbers(tmp_path):
    config = LAYOUTS["zimage"].official["tokenizer"]
    TOKENIZERS["Qwen2Tokenizer"](tmp_path, config)
    tokenizer = Qwen2Tokenizer.from_pretrained(tmp_path)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    assert tokenizer.convert_tokens_to_ids(special) == [151643, 151644, 151645, 151667, 151668]
    assert len(tokenizer) == 151669 and tokenizer.pad_token_id == 151643 and tokenizer.padding_side == "right"
    assert len(tokenizer(SYSTEM).input_ids) == 34
    text = "a photo of 3 cats, été"
    assert tokenizer.decode(tokenizer(text).input_ids) == text and len(tokenizer(text).input_ids) < 14
    turn = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], **turn)
    assert prompt == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_a_gemma_tokenizer_has_the_official_size(tmp_path, monkeypatch):
    """But here fewer tokens, since the official number takes seconds."""
    assert LAYOUTS["lumina2"].official["text_encoder"]["vocab_size"] == tokenizer_folders.GEMMA_TOKENS
    monkeypatch.setattr(tokenizer_folders, "GEMMA_TOKENS", 20000)
    TOKENIZERS["GemmaTokenizer"](tmp_path, LAYOUTS["lumina2"].official["tokenizer"])
    tokenizer = GemmaTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 20000 and tokenizer.padding_side == "right" and tokenizer("").input_ids == [2]
    text = "superior images with été"
    assert tokenizer.decode(tokenizer(text).input_ids[1:]) == text and len(tokenizer(text).input_ids) < 14


def test_large_weights_become_shards(tmp_path):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    shapes = {"a.weight": (64, 32), "a.bias": (64,), "norm.weight": (64,), "b.weight": (32, 64), "count": ()}
    save_file({name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, path)
    write_weights(path, shard_bytes=4400)
    assert not path.exists()
    files = find_weight_files(tmp_path)
    assert [file.name.split("-", 1)[1] for file in files] == [f"0000{n}-of-00002.safetensors" for n in (1, 2)]
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert {name: tuple(value.shape) for name, value in found.items()} == shapes
    assert found["a.weight"].float().std().item() * 32**0.5 == pytest.approx(1, rel=0.1)
    assert not found["a.bias"].any() and (found["norm.weight"] == 1).all()
    index = json.loads((tmp_path / f"{path.name}.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(2 * value.numel() for value in found.values())


def test_every_family_can_be_rehearsed():
    assert known_families() == list(LAYOUTS)
