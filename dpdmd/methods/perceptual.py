"""Perceptual distances of images, with gradient to the first image: LPIPS, DISTS, or patch features of a DINO.

The user gives the files of all weights; nothing is downloaded. LPIPS and DISTS are pyiqa's, on torchvision's VGG16.
"""

import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpdmd.methods import losses
from dpdmd.methods.perceptual_files import IMAGENET_VGG, PERCEPTUAL_FILES, where_to_get_perceptual
from dpdmd.models.checks.transformers_parts import check_dino, check_image_processor
from dpdmd.models.loading import load_strict
from dpdmd.models.network_files import read_checkpoint
from dpdmd.utils.error_lines import shorten_error

# (images [B, 3, H, W] with black 0 and white 1, partners [B, 3, H, W]) -> distances [B].
Distance = Callable[[Tensor, Tensor], Tensor]
DINO_LAYERS = 4
_VGG_LAYER = re.compile(r"^(?:net\.slice|stage)\d\.(\d+\.(?:weight|bias))$")  # parameter names of pyiqa's networks


class VGGDistance:
    """LPIPS (Zhang et al. 2018) or DISTS (Ding et al. 2020), by a `network` of two batches of images."""

    def __init__(self, network: nn.Module, device: torch.device):
        self.network = network.requires_grad_(False).eval().to(device)

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        return self.network(images, others).reshape(len(images))


class DinoDistance:
    """`losses.perceptual_distance` on DINO_LAYERS layers, evenly spaced up to the last.

    Images are resized to the network's training size and normalised with its processor's mean and deviation.
    """

    def __init__(self, folder: Path, device: torch.device):
        from transformers import AutoImageProcessor, AutoModel

        self.network = load_strict(AutoModel, folder).requires_grad_(False).eval().to(device)
        processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, backend="pil")
        self.mean, self.std = (
            torch.tensor(values, device=device).reshape(1, 3, 1, 1)
            for values in (processor.image_mean, processor.image_std)
        )
        config = self.network.config
        self.size = check_image_processor(folder)
        self.patches = (self.size[0] // config.patch_size) * (self.size[1] // config.patch_size)
        depth = config.num_hidden_layers
        self.layers = sorted({round(depth * (index + 1) / DINO_LAYERS) for index in range(DINO_LAYERS)} - {0})

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        return losses.perceptual_distance(self._features(images), self._features(others))

    def _features(self, images: Tensor) -> list[Tensor]:
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True, align_corners=False)
        states = self.network(pixel_values=(images - self.mean) / self.std, output_hidden_states=True).hidden_states
        return [states[layer][:, -self.patches :] for layer in self.layers]  # class and register tokens come first


def load_vgg_distance(name: str, folder: Path) -> nn.Module:
    """Load pyiqa's LPIPS or DISTS in fp32 with the weights in `folder`: VGG16 from torchvision, the others from pyiqa.

    Raises:
        ImportError: pyiqa is not installed.
        ValueError: a weight is missing or has another shape.
    """
    backbone, own = (read_checkpoint(folder / file) for file in (IMAGENET_VGG, PERCEPTUAL_FILES[name]))
    import torchvision  # after the files, so that a broken file is an error without pyiqa too
    from pyiqa.archs.dists_arch import DISTS
    from pyiqa.archs.lpips_arch import LPIPS

    build = torchvision.models.vgg16
    # pyiqa would download the ImageNet weights, which the file's weights then replace.
    with mock.patch.object(torchvision.models, "vgg16", lambda weights=None: build(weights=None)):
        network = LPIPS(net="vgg", pretrained=False) if name == "lpips" else DISTS(pretrained=False)
    state = {}
    for key in network.state_dict():
        if match := _VGG_LAYER.match(key):
            state[key] = backbone.get(f"features.{match[1]}")
        else:
            state[key] = own.get(key, own.get(re.sub(r"^lins\.(\d)\.", r"lin\1.", key)))
    missing = [key for key, _ in network.named_parameters() if state[key] is None]
    if missing:
        raise ValueError(f"{len(missing)} weights are missing ({missing[0]}, ...)")
    try:
        # Not strict: constant buffers are in no file.
        found = {key: value for key, value in state.items() if value is not None}
        network.load_state_dict(found, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {name} ({shorten_error(error)})") from None
    return network.float()  # the files may hold another type


def load_perceptual(name: str, path: Path, device: torch.device) -> Distance:
    """Load the distance of `--perceptual` `name` from `--perceptual_path`, frozen, in fp32.

    Raises:
        ImportError: pyiqa is not installed.
        ValueError: a weight is missing or has another shape.
    """
    if name == "dino":
        return DinoDistance(path, device)
    return VGGDistance(load_vgg_distance(name, path), device)


def check_perceptual_contents(name: str, folder: Path) -> None:
    """Check that the files of `--perceptual` `name` hold every weight, without reading the weights.

    Raises:
        ValueError: a file does not fit; one line that names the flag and the file.
    """
    try:
        if name in PERCEPTUAL_FILES:
            with torch.device("meta"):
                load_vgg_distance(name, folder)
        else:
            config = check_dino(folder)
            if not isinstance(getattr(config, "patch_size", None), int):
                raise ValueError(f"{folder / 'config.json'} is of a {config.model_type} without patches")
    except ImportError as error:
        raise ValueError(f"--perceptual {name}: pip install -e '.[quality]' first ({error})") from None
    except ValueError as error:
        raise ValueError(f"--perceptual_path {folder}: {error}; {where_to_get_perceptual(name, folder)}") from None
