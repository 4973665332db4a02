"""Tokenizers and text encoders of the small world, in the layouts that SD3.5 ships: two CLIPs and a T5."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from dpdmd.shapes.world import World

MAX_LENGTH = 10  # tokens: the longest caption has 8 words, and CLIP adds a start and an end
CLIP_WIDTH = 64
T5_WIDTH = 2 * CLIP_WIDTH  # SD3 pads the two CLIPs' joined features to the T5's width: here nothing to pad
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-()&:;\"/"


def words_of(world: World) -> list[str]:
    """Each word of a world's captions, once, in a fixed order."""
    values = " ".join(value for values in world.ATTRIBUTES.values() for value in values)
    return list(dict.fromkeys(["a", "on", "shape", "background", *values.split()]))


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join each occurrence of `pair` in a word's pieces."""
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_clip_tokenizer(pad_token: str, world: World) -> CLIPTokenizer:
    """Byte-pair tokenizer that knows each word of the world as one token and spells out every other one.

    A word's merges are added after the earlier words' merges have been applied to it, since BPE applies the
    oldest merge first: "red" joins r + e, so "grey" has to go on from g, re, y.
    """
    merges: list[tuple[str, str]] = []
    for word in words_of(world):
        pieces = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:
            pieces = _merge(pieces, pair)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _merge(pieces, merges[-1])
    symbols = [*CHARACTERS, *(character + "</w>" for character in CHARACTERS)]
    tokens = dict.fromkeys(
        [*symbols, *(first + second for first, second in merges), "<|startoftext|>", "<|endoftext|>"]
    )
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=MAX_LENGTH)


def build_t5_tokenizer(world: World) -> T5TokenizerFast:
    """Unigram tokenizer: a piece a word of the world, then single characters at a lower score; ids 0, 1, 2 as T5's."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [("\u2581" + word, -2.0) for word in words_of(world) if len(word) > 1]
    letters = [(piece, -8.0) for piece in ("\u2581", *CHARACTERS)]
    return T5TokenizerFast(
        vocab=[*specials, *words, ("\u2581a", -2.0), *letters], extra_ids=0, model_max_length=MAX_LENGTH
    )


def build_clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Two-layer CLIP text encoder with projection, random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=4 * CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_t5_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """Two-layer T5 encoder, gated GELU as T5 v1.1, random weights."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=T5_WIDTH,
        d_kv=32,
        d_ff=2 * T5_WIDTH,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
    )
    return T5EncoderModel(config)


def train_text_encoder(
    encoder: CLIPTextModelWithProjection | T5EncoderModel,
    tokenizer: CLIPTokenizer | T5TokenizerFast,
    seed: int,
    world: World,
    num_steps: int,
) -> None:
    """Teach an encoder what captions say, in place and then frozen: linear heads on its summary name each attribute.

    The summary is the projected end token of a CLIP and the mean over tokens of a T5; "left open" is a class too.
    SD3's encoders come trained and frozen as well; the heads are thrown away.
    """
    torch.manual_seed(seed)
    captions = world.all_captions()
    named = [world.parse_caption(text) for text in captions]
    labels = {
        name: torch.tensor([values.index(n[name]) if name in n else len(values) for n in named])
        for name, values in world.ATTRIBUTES.items()
    }
    ids = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids
    width = encoder.config.d_model if isinstance(encoder, T5EncoderModel) else encoder.config.projection_dim
    heads = nn.ModuleDict({name: nn.Linear(width, len(values) + 1) for name, values in world.ATTRIBUTES.items()})
    trained = nn.ModuleList([encoder, heads]).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=num_steps)
    for _ in range(num_steps):
        rows = torch.randint(len(captions), (64,))
        output = encoder(ids[rows])
        summary = output[0].mean(dim=1) if isinstance(encoder, T5EncoderModel) else output.text_embeds
        loss = sum(F.cross_entropy(head(summary), labels[name][rows]) for name, head in heads.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    encoder.eval().requires_grad_(False)
