"""MANIQA and VisualQuality-R1 on random weights in the official layouts."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.evaluation.scorers import build_scorer, check_scorer_contents
from dpdmd.evaluation.scorers.base import Sample
from dpdmd.evaluation.scorers.visualquality import VisualQualityR1

CPU = torch.device("cpu")


def samples(count: int, size: int) -> list[Sample]:
    """Return images of coarse noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = [Image.fromarray(c).resize((size, size), Image.BICUBIC) for c in coarse]
    return [Sample(image, "", (index, 0)) for index, image in enumerate(images)]


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory) -> Path:
    """A Qwen2.5-VL of random weights with its processor, in the official layout."""
    folder = tmp_path_factory.mktemp("qwen")
    specials = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    alphabet = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    vocab = {token: index for index, token in enumerate([*alphabet, *specials])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": specials[3:]})
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=template,
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "rope_theta": 1e4,
            "bos_token_id": vocab["<|im_start|>"],
            "eos_token_id": vocab["<|im_end|>"],
            "pad_token_id": vocab["<|endoftext|>"],
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        image_token_id=vocab["<|image_pad|>"],
        video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"],
        vision_end_token_id=vocab["<|vision_end|>"],
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_visualquality_without_a_chat_template_is_an_error(tiny_qwen, tmp_path):
    folder = Path(shutil.copytree(tiny_qwen, tmp_path / "qwen"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"^--vq_path .* needs the model's chat template"):
        check_scorer_contents({"vqr1": {"vq_path": folder}})


def test_visualquality_runs_and_keeps_what_it_cannot_parse(tiny_qwen, monkeypatch):
    """Random weights answer nonsense: missing, with the answer kept; greedy twice the same, drawn per image's key."""
    monkeypatch.setattr("dpdmd.evaluation.scorers.visualquality.NUM_NEW_TOKENS", 8)
    paths = check_scorer_paths({"vq_path": str(tiny_qwen)}, ("vqr1",))["vqr1"]
    check_scorer_contents({"vqr1": paths})
    batch = samples(3, size=56)
    greedy = build_scorer("vqr1", paths, CPU)
    first = greedy.score(batch)
    assert first == greedy.score(batch)
    assert [s.value for s in first] == [None] * 3 and all(s.text for s in first)
    drawn = build_scorer("vqr1", paths, CPU, sample=True, seed=1)
    state = torch.get_rng_state()
    answers = drawn.score(batch)
    assert answers == drawn.score(batch[::-1])[::-1]  # each by its own key
    assert len({s.text for s in answers}) > 1
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(VisualQualityR1, "_answers", lambda self, samples: ["<answer>4.5</answer>"] * len(samples))
    assert [s.value for s in greedy.score(batch)] == [4.5] * 3


def test_maniqa_crops_by_the_images_key(tmp_path):
    """Random weights in the official file's layout; a score depends on the image's key and on nothing else."""
    pytest.importorskip("pyiqa", reason="pip install -e '.[quality]'")
    from unittest import mock

    import timm
    from pyiqa.archs.maniqa_arch import MANIQA

    torch.manual_seed(0)
    build = timm.create_model
    with mock.patch.object(timm, "create_model", lambda name, pretrained: build(name, pretrained=False)):
        network = MANIQA(pretrained=False)
    for layer in (network.fc_score[-2], network.fc_weight[-2]):
        torch.nn.init.constant_(layer.bias, 0.5)  # away from the ReLU's flat side
    state = network.state_dict()
    torch.save({"params": state}, tmp_path / "maniqa.pth")
    torch.save({"params": {key: value for key, value in state.items() if "fc_score" not in key}}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"^--maniqa_path .*half.pth is no MANIQA checkpoint \(.*fc_score"):
        check_scorer_contents({"maniqa": {"maniqa_path": tmp_path / "half.pth"}})
    del network, state
    paths = check_scorer_paths({"maniqa_path": str(tmp_path / "maniqa.pth")}, ("maniqa",))["maniqa"]
    check_scorer_contents({"maniqa": paths})
    scorer = build_scorer("maniqa", paths, CPU, num_crops=1, seed=0)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8))
    twice, other = Sample(noise, "", (0, 0)), Sample(noise, "", (1, 0))
    values = [score.value for score in scorer.score([twice, other, twice])]
    assert values[0] == values[2] != values[1]
    small = scorer._crops(samples(1, size=64)[0])
    assert small.shape == (1, 3, 225, 225)
    array = np.asarray(noise, dtype=np.float32) / 255
    crop = scorer._crops(twice)[0, :, :224, :224].permute(1, 2, 0).numpy()
    corners = np.argwhere((array[:77, :37] == crop[0, 0]).all(axis=-1))
    assert any(np.array_equal(array[top : top + 224, left : left + 224], crop) for top, left in corners)
