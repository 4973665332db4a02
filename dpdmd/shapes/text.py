"""Build and train the small world's tokenizers and text encoders in SD3.5's layout: two CLIPs and a T5."""

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
T5_WIDTH = 2 * CLIP_WIDTH  # SD3 pads the concatenated CLIP features to the T5's width; here no padding is needed
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-()&:;\"/"


def words_of(world: World) -> list[str]:
    """Return each word of a world's captions once, in a fixed order."""
    values = " ".join(value for values in world.ATTRIBUTES.values() for value in values)
    return list(dict.fromkeys(["a", "on", "shape", "background", *values.split()]))


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Merge each occurrence of `pair` in the pieces of a word."""
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_clip_tokenizer(pad_token: str, world: World) -> CLIPTokenizer:
    """Build a byte-pair tokenizer with one token per word of the world; other words are split into characters.

    The merges of a word start from its pieces after the merges of the earlier words, since BPE applies older merges
    first: "red" merges r + e, so "grey" starts from g, re, y.
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
    """Build a unigram tokenizer: one piece per word of the world, characters with a lower score, ids 0-2 as in T5."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [("\u2581" + word, -2.0) for word in words_of(world) if len(word) > 1]
    letters = [(piece, -8.0) for piece in ("\u2581", *CHARACTERS)]
    return T5TokenizerFast(
        vocab=[*specials, *words, ("\u2581a", -2.0), *letters], extra_ids=0, model_max_length=MAX_LENGTH
    )


def build_clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Build a two-layer CLIP text encoder with projection and random weights."""
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
    """Build a two-layer T5 encoder with random weights; gated GELU as in T5 v1.1."""
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
    """Train an encoder in place with linear heads that predict each attribute of a caption, then freeze it.

    The heads see the projected end token of a CLIP, or the mean over tokens of a T5, and are dropped afterwards. "Not
    named" is one of the classes.
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
