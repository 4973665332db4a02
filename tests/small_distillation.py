"""A distillation of small random SD3 networks, whose family records its calls."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dpdmd.config import Config
from dpdmd.config.method_table import DISCRIMINATOR, METHODS
from dpdmd.config.options import MethodConfig
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.discriminator import Discriminator, DiscriminatorContext, choose_blocks, token_widths
from dpdmd.methods.networks import Networks, blocks_owner, load_networks
from dpdmd.methods.registry import trained_networks
from dpdmd.models.base import Family, ImageDecoder, TextEmbedding
from dpdmd.models.sd35.family import SD35
from dpdmd.shapes.text import MAX_LENGTH

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a large square on a white background", "a shape", "a small cyan cross"]
STEPS, TEACHER_STEPS, K, SCALE = 4, 6, 2, 3.5
# SD3's last block drops its text stream: its text queries are computed and used by nothing.
UNUSED = ("transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.norm_added_q")


@dataclass
class Call:
    """The inputs and the prediction of one network call."""

    network: nn.Module
    z: Tensor
    sigma: Tensor
    text: TextEmbedding
    prediction: Tensor


class SpyFamily(SD35):
    """SD3.5 that records its calls; predictions in a graph retain their gradient."""

    def __init__(self, compute_dtype: torch.dtype = torch.float32):
        super().__init__(CPU, compute_dtype)
        self.calls: list[Call] = []

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        prediction = super().predict(network, z, sigma, text)
        if prediction.requires_grad:
            prediction.retain_grad()
        self.calls.append(Call(network, z.detach(), sigma, text, prediction))
        return prediction

    def of(self, network: nn.Module) -> list[Call]:
        return [call for call in self.calls if call.network is network]


@dataclass(frozen=True)
class Embedded:
    """The embeddings of the empty prompt and of PROMPTS."""

    null: TextEmbedding
    prompts: TextEmbedding


@pytest.fixture(scope="session")
def embedded(tiny_pipeline: Path) -> Embedded:
    encoder = SD35(CPU, torch.float32).load_text_encoder(tiny_pipeline, MAX_LENGTH)
    return Embedded(encoder.encode([""]), encoder.encode(PROMPTS))


def perturb(network: nn.Module, seed: int) -> None:
    """Move every weight by 10% of its tensor's size, so that student, fake score and teacher are three networks."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=random).to(parameter.dtype)
            parameter.add_(0.1 * parameter.square().mean().sqrt() * noise)


@pytest.fixture(scope="session")
def trio(tiny_pipeline: Path) -> Networks:
    """Return the three networks; tests change only copies."""
    config = Config()
    config.model.teacher_id = config.model.fake_id = str(tiny_pipeline)
    networks = load_networks(config, SD35(CPU, torch.float32), tiny_pipeline)
    perturb(networks.student, 1)
    perturb(networks.fake, 2)
    return networks


@pytest.fixture(scope="session")
def decoder(tiny_pipeline: Path) -> ImageDecoder:
    return SD35(CPU, torch.float32).load_image_decoder(tiny_pipeline)


def squared_distance(images: Tensor, others: Tensor) -> Tensor:
    """Return the mean squared difference of each image, [B], in place of a perceptual distance."""
    return (images - others).square().mean(dim=(1, 2, 3))


def make_discriminator(
    family: Family, network: nn.Module, null: TextEmbedding, latent_shape: Sequence[int] = (8, 8, 8)
) -> DiscriminatorContext:
    """Return a discriminator on the features of `network`, built as `build_training_state` does."""
    blocks = choose_blocks(family, blocks_owner(network))
    heads = Discriminator(token_widths(family, network, blocks, null, latent_shape), seed=0)
    return DiscriminatorContext(heads, heads, network, blocks)


def method_flags(method: str, scorers: dict[str, str]) -> list[str]:
    """Return the flags that choose a method, with its required flags."""
    perceptual = ["--perceptual", "dino", "--perceptual_path", scorers["dino_path"]]
    return ["--method", method, *(perceptual if "perceptual_path" in METHODS[method].required else [])]


def only(monkeypatch: pytest.MonkeyPatch, method: str, *terms: str) -> None:
    """Reduce a method to some of its student terms; the roll-out stays as the method has it."""
    assert set(terms) <= set(METHODS[method].student_terms)
    monkeypatch.setitem(METHODS, method, replace(METHODS[method], student_terms=terms))


Make = Callable[..., DistillationContext]


@pytest.fixture
def make(trio: Networks, embedded: Embedded, tiny_pipeline: Path, decoder: ImageDecoder) -> Make:
    """Return a function that builds a context on fresh copies of the networks, with a `SpyFamily`."""

    def build(family: SD35 | None = None, networks: Networks | None = None, **options) -> DistillationContext:
        family = family or SpyFamily()
        networks = networks or copy.deepcopy(trio)
        values = {"teacher_infer_steps": TEACHER_STEPS, "k_anchor": K, "stu_inference_steps": STEPS, **options}
        config = MethodConfig(**values)
        schedule = family.load_schedule(tiny_pipeline)
        discriminator = None
        if DISCRIMINATOR in trained_networks(config):
            discriminator = make_discriminator(family, getattr(networks, config.gan_features), embedded.null)
            family.calls.clear()
        return DistillationContext(
            config=config,
            family=family,
            schedule=schedule,
            networks=networks,
            student_forward=networks.student,
            fake_forward=networks.fake,
            null=embedded.null,
            latent_shapes=[(8, 8, 8)],
            seed=0,
            decoder=decoder,
            perceptual=squared_distance,
            discriminator=discriminator,
            **DistillationContext.grids(config, schedule, CPU),
        )

    return build


@pytest.fixture
def batch(embedded: Embedded) -> Callable[..., MicroBatch]:
    """Return a function from sample indices to their micro-batch, of step 5 by default; sample i has prompt i."""

    def build(*samples: int, step: int = 5) -> MicroBatch:
        rows = list(samples)
        text = TextEmbedding(embedded.prompts.context[rows], embedded.prompts.pooled[rows])
        return MicroBatch(text, step, rows, step)

    return build


def gradients(network: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in network.parameters()]


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Return whether both have the same names and the same bits."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
