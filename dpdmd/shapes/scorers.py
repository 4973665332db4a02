"""Train the small world's scorers in the official layouts: a CLIP, a PickScore, a DINOv2 and an ImageReward.

They score images of this world as the official scorers score photographs, so that evaluation in the training loop is
meaningful. `dpdmd.shapes.measure_scorers` measures their quality; weights/tiny/README.md has the results.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import BertTokenizer, BitImageProcessor, CLIPModel, CLIPProcessor, Dinov2Model

from dpdmd.evaluation.scorers import imagereward
from dpdmd.shapes.scorer_models import (
    WIDTH,
    build_clip,
    build_dinov2,
    build_imagereward,
    save_imagereward,
    save_model,
)
from dpdmd.shapes.text import MAX_LENGTH
from dpdmd.shapes.world import ATTRIBUTES, Scene, caption, render, sample_scene
from dpdmd.utils.folders import creating_folder
from dpdmd.utils.rng import numpy_generator

BATCH_SIZE = 48
NUM_STEPS = {"clip": 1500, "pickscore": 1500, "dinov2": 1200, "ImageReward": 1500}
LEARNING_RATE = 1e-3
SIMILARITY_WEIGHT = 10.0
DEGRADED = 0.5  # share of the images that are degraded in PickScore's training
NUM_OTHERS = 4  # other images that ImageReward compares with a caption's own image

logger = logging.getLogger("dpdmd.shapes.build")


def sample_batch(seed: int, purpose: str, step: int) -> tuple[list[Scene], list[dict[str, str]]]:
    """Return scenes, and for each the attributes of a true caption, each named with probability 1/2."""
    scenes = [sample_scene(seed, step * BATCH_SIZE + index) for index in range(BATCH_SIZE)]
    keep = numpy_generator(seed, f"{purpose} caption", step).random((BATCH_SIZE, len(ATTRIBUTES))) < 0.5
    named = [
        {name: getattr(scene, name) for name, kept in zip(ATTRIBUTES, row, strict=True) if kept}
        for scene, row in zip(scenes, keep, strict=True)
    ]
    return scenes, named


def matches(named: list[dict[str, str]], scenes: list[Scene]) -> Tensor:
    """Return whether each caption is true of each scene: [captions, scenes] bool."""
    return torch.tensor([[all(getattr(s, k) == v for k, v in n.items()) for s in scenes] for n in named])


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade images as a poor generator does: blend with another image, blur and add noise, by random amounts."""
    amount = torch.rand(len(images), 3, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (4, 4, 4, 4), mode="replicate"), 9, stride=1)
    images = images + amount[:, 0] * (blurred - images)
    images = images + 0.5 * amount[:, 1] * (images.roll(1, 0) - images)
    noise = torch.randn(images.shape, generator=generator)
    return (images + 0.1 * amount[:, 2] * noise).clamp(0, 1)


def normalise(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Normalise 64 x 64 images as the image processors do."""
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def fit(name: str, trained: nn.Module, loss_of: Callable[[int], Tensor]) -> None:
    """Minimise `loss_of(step)` over the parameters of `trained`, in place."""
    steps = NUM_STEPS[name]
    optimizer = torch.optim.AdamW(trained.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.1)
    trained.train()
    bar = tqdm(range(steps), desc=name)
    for step in bar:
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    trained.eval()


def train_clip(name: str, seed: int) -> tuple[CLIPModel, CLIPProcessor]:
    """Train with a contrastive loss in which every image that a caption is true of is a positive.

    A PickScore also learns to prefer clean images: half of its images are degraded, and a degraded image is a negative
    of every caption.
    """
    torch.manual_seed(seed)
    model, processor = build_clip()
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std

    def loss_of(step: int) -> Tensor:
        scenes, named = sample_batch(seed, name, step)
        images, right = torch.from_numpy(render(scenes)), matches(named, scenes).float()
        if name == "pickscore":
            generator = torch.Generator().manual_seed(seed * NUM_STEPS[name] + step)
            degraded = torch.rand(len(scenes), generator=generator) < DEGRADED
            images = torch.where(degraded[:, None, None, None], degrade(images, generator), images)
            right = right * (~degraded).float()
        text = processor.tokenizer(
            [caption(n) for n in named], padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"
        )
        out = model(**text, pixel_values=normalise(images, mean, std))
        loss = contrastive_loss(out.logits_per_text, right)
        if name == "clip":  # the diversity score compares class tokens
            loss = loss + SIMILARITY_WEIGHT * similarity_loss(out.vision_model_output.last_hidden_state[:, 0], scenes)
        return loss

    fit(name, model, loss_of)
    return model, processor


def similarity_loss(features: Tensor, scenes: list[Scene]) -> Tensor:
    """Return the mean squared error between the cosine of two features and the share of equal attributes.

    With it, the diversity of a set follows the variety of every attribute. Large models learn this from their data.
    """
    unit = F.normalize(features, dim=-1)
    values = torch.tensor([[v.index(getattr(s, k)) for k, v in ATTRIBUTES.items()] for s in scenes])
    shared = (values[:, None] == values[None]).float().mean(-1)
    return ((unit @ unit.T - shared) ** 2).mean()


def contrastive_loss(logits: Tensor, right: Tensor) -> Tensor:
    """Return the cross entropy to the uniform distribution over positives, along both axes of [captions, images]."""

    def one_direction(logits: Tensor, right: Tensor) -> Tensor:
        has_positive = right.sum(1) > 0
        target = right[has_positive] / right[has_positive].sum(1, keepdim=True)
        return -(target * logits[has_positive].log_softmax(1)).sum(1).mean()

    return (one_direction(logits, right) + one_direction(logits.T, right.T)) / 2


def train_dinov2(seed: int) -> tuple[Dinov2Model, BitImageProcessor]:
    """Train a DINOv2 with linear heads that predict the attributes and the position from its pooled output.

    The heads are then dropped. Self-distillation, as in the original, needs more images than a CPU can process here.
    """
    torch.manual_seed(seed)
    model, processor = build_dinov2()
    heads = nn.ModuleDict({key: nn.Linear(WIDTH, len(values)) for key, values in ATTRIBUTES.items()})
    position = nn.Linear(WIDTH, 2)

    def loss_of(step: int) -> Tensor:
        scenes, _ = sample_batch(seed, "dinov2", step)
        pixels = normalise(torch.from_numpy(render(scenes)), processor.image_mean, processor.image_std)
        pooled = F.normalize(model(pixel_values=pixels).pooler_output, dim=-1) * WIDTH**0.5
        losses = [
            F.cross_entropy(head(pooled), torch.tensor([ATTRIBUTES[key].index(getattr(s, key)) for s in scenes]))
            for key, head in heads.items()
        ]
        position_loss = F.mse_loss(position(pooled), torch.tensor([s.position for s in scenes]))
        return sum(losses) + position_loss + SIMILARITY_WEIGHT * similarity_loss(pooled, scenes)

    fit("dinov2", nn.ModuleList([model, heads, position]), loss_of)
    return model, processor


def train_imagereward(seed: int) -> tuple[imagereward.ImageRewardNetwork, dict[str, Any], BertTokenizer]:
    """Train an ImageReward to prefer true captions and clean images; the loss is -log sigmoid(better - worse)."""
    torch.manual_seed(seed)
    network, med_config, tokenizer = build_imagereward()

    def loss_of(step: int) -> Tensor:
        scenes, named = sample_batch(seed, "ImageReward", step)
        generator = torch.Generator().manual_seed(seed * NUM_STEPS["ImageReward"] + step)
        clean = torch.from_numpy(render(scenes))
        pixels = normalise(torch.cat([clean, degrade(clean, generator)]), imagereward.CLIP_MEAN, imagereward.CLIP_STD)
        features, degraded = network.encode_images(pixels).chunk(2)
        true = matches(named, scenes)
        text = tokenizer([caption(n) for n in named], padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
        # Worse than the caption's own image: the same image degraded, and other images that the caption is not true of.
        shifts = range(1, NUM_OTHERS + 1)
        images = [features, degraded, *(features.roll(shift, 0) for shift in shifts)]
        decided = torch.stack([torch.ones(len(scenes), dtype=bool), *(~true.roll(s, 1).diagonal() for s in shifts)])
        copies = len(images)
        better, *worse = network.rewards(
            torch.cat(images), text.input_ids.repeat(copies, 1), text.attention_mask.repeat(copies, 1)
        ).chunk(copies)
        return -(F.logsigmoid(better - torch.stack(worse)) * decided).sum() / decided.sum()

    fit("ImageReward", network, loss_of)
    return network, med_config, tokenizer


def build_scorers(out: Path, seed: int) -> None:
    """Train the four scorers and save them below `out`; an existing one is kept."""
    builders: dict[str, Callable[[Path], None]] = {
        "clip": lambda folder: save_model(folder, *train_clip("clip", seed)),
        "pickscore": lambda folder: save_model(folder, *train_clip("pickscore", seed + 1)),
        "dinov2": lambda folder: save_model(folder, *train_dinov2(seed + 2)),
        "ImageReward": lambda folder: save_imagereward(folder, *train_imagereward(seed + 3)),
    }
    for name, build in builders.items():
        if (out / name).exists():
            logger.info("%s exists already", out / name)
        else:
            with creating_folder(out / name) as folder:
                build(folder)
