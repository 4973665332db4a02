"""VisualQuality-R1: a Qwen2.5-VL that answers in words when it is asked for a rating from 1 to 5."""

import math
import re
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dpdmd.evaluation.scorers.base import Check, Sample, Score, ValueScorer
from dpdmd.models.checks.transformers_parts import check_image_processor, check_network, check_tokenizer
from dpdmd.models.loading import load_strict, raise_as_value_error
from dpdmd.utils.rng import derive_seed

# The model was trained with exactly this question, "picture" included; another one gives other ratings.
QUESTION = (
    "You are doing the image quality assessment task. Here is the question: What is your overall rating on the quality "
    "of this picture? The rating should be a float between 1 and 5, rounded to two decimal places, with 1 representing "
    "very poor quality and 5 representing excellent quality. Please only output the final answer with only one score "
    "in <answer> </answer> tags."
)
LOWEST, HIGHEST = 1.0, 5.0
NUM_NEW_TOKENS = 512
TOP_K = 50  # of the paper's sampling
MAX_RATIO = 200  # of an image's sides at the network's size; the processor raises above it
NUM_IMAGE_TOKENS = (4, 16384)  # least and most of an image, from qwen_vl_utils
# A number that stands alone: not a part of 4,5 or 1e1 or 1-5.
_NUMBER = re.compile(r"(?<![\w.,-])-?\d+(?:\.\d+)?(?!\w|[.,-]\d)")


def parse_rating(answer: str) -> float | None:
    """Return the rating in an answer: the first number in the last <answer> tag, or without a tag the only number.

    Returns:
        None if there is no number, if it is outside 1 to 5, or if there is no tag and there are several numbers or a
        <think> tag, as in reasoning that was cut off.
    """
    tagged = re.findall(r"<answer>(.*?)</answer>", answer, re.DOTALL)
    numbers = _NUMBER.findall(tagged[-1] if tagged else answer)
    if not numbers or not (tagged or ("<think>" not in answer and len(numbers) == 1)):
        return None
    return float(numbers[0]) if LOWEST <= float(numbers[0]) <= HIGHEST else None


def network_size(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Return the (width, height) to which qwen_vl_utils resizes an image: multiples of `factor`, about as many pixels.

    Args:
        factor: pixels along a side of the square that becomes one token.
    """
    sides = [max(factor, round(side / factor) * factor) for side in size]
    least, most = (count * factor**2 for count in NUM_IMAGE_TOKENS)
    if math.prod(sides) > most:
        shrink = math.sqrt(math.prod(size) / most)
        sides = [math.floor(side / shrink / factor) * factor for side in size]
    elif math.prod(sides) < least:
        grow = math.sqrt(least / math.prod(size))
        sides = [math.ceil(side * grow / factor) * factor for side in size]
    return sides[0], sides[1]


class VisualQualityR1(ValueScorer):
    """VisualQuality-R1's rating, 1 to 5 (paper, table 1). Greedy by default.

    Args:
        sample: draw the answer as the authors did (top-k 50, top-p 1), with a seed per image.
    """

    @classmethod
    def checks(cls, folder: Path) -> Sequence[Check]:
        return [lambda: _check_folder(folder)]

    def __init__(self, folder: Path, device: torch.device, *, sample: bool = False, seed: int = 0):
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        # 7 B parameters: bf16 as released; on a CPU fp32, which is faster there and exact.
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        network = load_strict(Qwen2_5_VLForConditionalGeneration, folder, dtype=dtype)
        self.processor = AutoProcessor.from_pretrained(str(folder), local_files_only=True)
        self.processor.tokenizer.padding_side = "left"
        self.sample, self.seed = sample, seed
        self.set_network(network, device, widen=False)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        # `generate` draws from the global generator only, so an answer with a seed of its own needs a call of its own.
        # On a CPU a batch saves no time, and the last bits of an answer would depend on it.
        one_by_one = self.sample or self.device.type == "cpu"
        taken = [self._takes(sample.image) for sample in samples]
        usable = list(compress(samples, taken))
        groups = [[sample] for sample in usable] if one_by_one or not usable else [usable]
        answers = [answer for group in groups for answer in self._answers(group)]
        ratings = [(parse_rating(answer), answer) for answer in answers]
        rated = iter([Score(rating, answer if rating is None else "") for rating, answer in ratings])
        narrow = Score(None, f"sides in a ratio above {MAX_RATIO}")
        return [next(rated) if each else narrow for each in taken]

    def _size(self, image: Image.Image) -> tuple[int, int]:
        processor = self.processor.image_processor
        return network_size(image.size, processor.patch_size * processor.merge_size)

    def _takes(self, image: Image.Image) -> bool:
        """Return whether the processor takes an image of this shape."""
        sides = self._size(image)
        return max(sides) <= MAX_RATIO * min(sides)

    def resized(self, samples: Sequence[Sample]) -> list[Image.Image]:
        """Return images at the network's sizes, resized by Pillow as in the authors' code (qwen_vl_utils).

        The processor would resize with torchvision, which gives other pixels. It leaves these sizes as they are.
        """
        return [sample.image.resize(self._size(sample.image), Image.BICUBIC) for sample in samples]

    @torch.no_grad()
    def _answers(self, samples: Sequence[Sample]) -> list[str]:
        inputs = self.processor(
            text=[_question(self.processor)] * len(samples),
            images=self.resized(samples),
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        decoding = {"do_sample": True, "top_k": TOP_K, "top_p": 1.0} if self.sample else {"do_sample": False}
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.seed, "VisualQuality-R1 answer", *samples[0].key))
            tokens = self.network.generate(**inputs, max_new_tokens=NUM_NEW_TOKENS, use_cache=True, **decoding)
        return self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _question(processor: Any) -> str:
    """Return the question about an image as the processor's chat template writes it."""
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    return processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True, add_vision_id=True)


def _check_folder(folder: Path) -> None:
    from transformers import AutoProcessor

    check_network("Qwen2_5_VLForConditionalGeneration", folder)
    check_tokenizer("AutoTokenizer", folder)
    check_image_processor(folder)
    with raise_as_value_error(f"{folder} cannot write its question, for which it needs the model's chat template"):
        _question(AutoProcessor.from_pretrained(str(folder), local_files_only=True))
