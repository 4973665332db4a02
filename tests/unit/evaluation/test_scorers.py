"""Every scorer on small models in the official layouts: what it computes, strict loading, batches of any size."""

import json
import runpy
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    Dinov2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from dpdmd.evaluation.diversity import diversity_per_image
from dpdmd.evaluation.scorer_checks import check_scorer_contents
from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.evaluation.scorers import SCORERS, build_scorer, imagereward
from dpdmd.evaluation.scorers.base import Sample
from dpdmd.evaluation.scorers.visualquality import VisualQualityR1, parse_rating
from dpdmd.evaluation.scoring import score_batch
from dpdmd.models.weight_files import read_checkpoint
from dpdmd.shapes.scorer_models import build_bert_tokenizer

ROOT = Path(__file__).parents[3]

CPU = torch.device("cpu")
IN_LOOP = ("div_clip", "div_dino", "pickscore", "imagereward", "clip_score")
PROMPTS = ["a red circle", "ein grünes Dreieck, 猫 и кот", "a shape " * 250, "a small blue cross on a grey background"]


def samples(count: int = 8, size: int = 64) -> list[Sample]:
    """Pictures of noise at two scales, with prompts in turn."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = [Image.fromarray(c).resize((size, size), Image.BICUBIC) for c in coarse]
    return [Sample(image, PROMPTS[i % len(PROMPTS)], (i, 0)) for i, image in enumerate(images)]


def outputs(scorer, batch: list[Sample]) -> np.ndarray:
    """What the runner gets of a batch."""
    rows = score_batch(batch, [scorer])
    found = [row.features[scorer.name].numpy() if row.features else row.values[scorer.name] for row in rows]
    return np.array(found)


@pytest.fixture(scope="session")
def scorer_paths(tiny_scorers: dict[str, str]) -> dict[str, dict[str, Path]]:
    return check_scorer_paths(tiny_scorers, IN_LOOP)


@pytest.mark.parametrize("name", IN_LOOP)
def test_a_score_depends_on_neither_batch_size_nor_order(name, scorer_paths):
    """To 1e-6: all at once, one by one, and backwards."""
    scorer, batch = build_scorer(name, scorer_paths[name], CPU), samples()
    together = outputs(scorer, batch)
    one_by_one = np.concatenate([outputs(scorer, [sample]) for sample in batch])
    backwards = outputs(scorer, batch[::-1])[::-1]
    assert np.abs(one_by_one - together).max() < 1e-6
    assert np.abs(backwards - together).max() < 1e-6
    assert np.ptp(together.reshape(len(batch), -1), axis=0).max() > 1e-4  # it looks at what it is given


def test_clip_diversity_is_the_class_token_before_the_last_norm(tiny_scorers, scorer_paths):
    folder, batch = tiny_scorers["clip_path"], samples(3)
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(
        [sample.image for sample in batch], return_tensors="pt"
    )
    with torch.no_grad():
        vision = CLIPModel.from_pretrained(folder).vision_model(**pixels)
    expected = torch.nn.functional.normalize(vision.last_hidden_state[:, 0], dim=-1)
    found = build_scorer("div_clip", scorer_paths["div_clip"], CPU).features(batch).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, torch.nn.functional.normalize(vision.pooler_output, dim=-1), atol=1e-4)


def test_dino_diversity_is_the_pooled_output(tiny_scorers, scorer_paths):
    folder, batch = tiny_scorers["dino_path"], samples(3)
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")([s.image for s in batch], return_tensors="pt")
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(folder)(**pixels).pooler_output
    found = build_scorer("div_dino", scorer_paths["div_dino"], CPU).features(batch).float()
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1), rtol=0, atol=1e-6)


def test_pickscore_is_the_scaled_cosine(tiny_scorers, scorer_paths):
    batch = samples(4)
    model = CLIPModel.from_pretrained(tiny_scorers["pick_model_path"])
    processor = tiny_scorers["pick_processor_path"]
    text = AutoTokenizer.from_pretrained(processor)(
        [s.prompt for s in batch], padding=True, truncation=True, max_length=10, return_tensors="pt"
    )
    pixels = AutoImageProcessor.from_pretrained(processor, backend="pil")([s.image for s in batch], return_tensors="pt")
    with torch.no_grad():
        expected = model(**text, **pixels).logits_per_text.diagonal()
    scores = build_scorer("pickscore", scorer_paths["pickscore"], CPU).score(batch)
    assert [s.value for s in scores] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    assert SCORERS["pickscore"].also == {"pickscore_release": 1 / 26}


def test_open_clip_folders_are_read(tmp_path):
    """Same two roles, from an OpenCLIP folder; the class token is the one before the last norm."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    preprocess = {
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    model = open_clip.CLIP(
        **{
            **config,
            "vision_cfg": open_clip.CLIPVisionCfg(**config["vision_cfg"]),
            "text_cfg": open_clip.CLIPTextCfg(**config["text_cfg"]),
        }
    ).eval()
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    paths, batch = {"clip_path": str(tmp_path), "clip_score_path": str(tmp_path)}, samples(3)
    found = check_scorer_paths(paths, ("div_clip", "clip_score"))
    diversity = build_scorer("div_clip", found["div_clip"], CPU)
    kept = []
    model.visual.transformer.register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        model.encode_image(diversity.clip.pixels([s.image for s in batch]))
    expected = torch.nn.functional.normalize(kept[0][:, 0], dim=-1)
    torch.testing.assert_close(diversity.features(batch).float(), expected, rtol=0, atol=1e-5)
    scores = build_scorer("clip_score", found["clip_score"], CPU).score(batch)
    assert all(-100 <= score.value <= 100 for score in scores)


def test_imagereward_is_read_strictly(tiny_scorers, tmp_path):
    """Every official key has a place; what no forward pass reads may be there; nothing else may lack or be extra."""
    official = read_checkpoint(Path(tiny_scorers["ir_model_path"]))
    assert all(key.startswith(("blip.visual_encoder.", "blip.text_encoder.", "mlp.layers.")) for key in official)
    ours = imagereward.from_official(official)
    assert imagereward.to_official(ours).keys() == official.keys()
    med, tokenizer = Path(tiny_scorers["ir_med_config"]), Path(tiny_scorers["ir_model_path"]).parent

    def load(state):
        path = tmp_path / "changed.pt"
        torch.save(state, path)
        return build_scorer("imagereward", {"a": path, "b": med, "c": tokenizer}, CPU)

    unread = {"blip.vision_proj.weight": torch.ones(2), "blip.text_encoder.embeddings.position_ids": torch.ones(2)}
    assert load({**official, **unread}).score(samples(2))
    key = "blip.visual_encoder.blocks.1.attn.qkv.bias"
    with pytest.raises(ValueError, match="no whole ImageReward"):
        load({k: v for k, v in official.items() if k != key})
    with pytest.raises(ValueError, match=r"unknown weight blip\.something"):
        load({**official, "blip.something": torch.ones(2)})


def test_imagereward_gives_the_packages_rewards(tmp_path):
    """A small model scored by the `image-reward` package itself, stored by benchmarks/imagereward_parity.sh."""
    parity = runpy.run_path(str(ROOT / "benchmarks" / "imagereward_parity.py"))
    case = json.loads((ROOT / "tests" / "data" / "imagereward_small.json").read_text())
    torch.save(parity["formula_weights"](case["shapes"]), tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text(json.dumps(case["med_config"]))
    build_bert_tokenizer().save_pretrained(tmp_path)
    paths = {"ir_model_path": str(tmp_path / "ImageReward.pt"), "ir_med_config": str(tmp_path / "med_config.json")}
    scorer = build_scorer("imagereward", check_scorer_paths(paths, ("imagereward",))["imagereward"], CPU)
    images = parity["coarse_images"]()
    found = [[s.value for s in scorer.score([Sample(p, text, (0, 0)) for p in images])] for text in case["prompts"]]
    assert np.std(case["rewards"]) > 1
    assert np.abs(np.array(found) - np.array(case["rewards"])).max() < 2e-5


def test_imagereward_reads_the_text_in_both_directions(tiny_scorers, scorer_paths):
    """A causal text encoder would give token 0 no view of the prompt; vision's epsilon is BLIP's."""
    scorer = build_scorer("imagereward", scorer_paths["imagereward"], CPU)
    image = samples(1)[0].image
    first, second = scorer.score([Sample(image, text, (0, 0)) for text in ("a red circle", "a blue square")])
    assert abs(first.value - second.value) > 1e-5
    assert scorer.network.vision.config.layer_norm_eps == 1e-6
    assert not scorer.network.training


def test_pickles_that_could_run_code_are_refused(tmp_path):
    torch.save({"params": {"weight": torch.ones(1)}, "extra": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="refused"):
        read_checkpoint(tmp_path / "bad.pt")
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="no torch checkpoint"):
        read_checkpoint(tmp_path / "text.pt")


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("<answer>4.25</answer>", 4.25),
        ("<think>1</think><answer> 3 </answer>", 3.0),
        ("<answer>2</answer> no, <answer>4.5/5</answer>", 4.5),
        ("The rating is 4.0.", 4.0),
        ("<answer>excellent</answer> 4", None),
        ("", None),
        ("<answer>7.5</answer>", None),
        ("<answer>-3</answer>", None),
        ("<answer>0.5</answer>", None),
        ("<answer>4.5, good</answer>", 4.5),
        ("<answer>4,5</answer>", None),
        ("<answer>1e1</answer>", None),
        ("the rating from 1 to 5 is 4.5", None),
        ("a rating between 1-5", None),
        ("<think>It has 2 birds, the quality", None),
        ("<think>It has 2 birds and 3 trees, the quality", None),
    ],
)
def test_ratings_are_parsed_or_missing(answer, rating):
    assert parse_rating(answer) == rating


def test_diversity_of_known_features():
    assert diversity_per_image(torch.ones(9, 5)) == pytest.approx([0] * 9, abs=1e-12)
    assert diversity_per_image(torch.eye(9)) == pytest.approx([1] * 9, abs=1e-12)
    half = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # pairs: 1, 0, 0
    values = diversity_per_image(half)
    assert values == pytest.approx([0.5, 0.5, 1.0])
    assert np.mean(values) == pytest.approx(1 - 1 / 3)
    with pytest.raises(ValueError, match="at least two"):
        diversity_per_image(torch.ones(1, 5))


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


def test_visualquality_runs_and_keeps_what_it_cannot_parse(tiny_qwen, monkeypatch):
    """Random weights answer nonsense: missing, with the answer kept; greedy twice the same, drawn per image's key."""
    monkeypatch.setattr("dpdmd.evaluation.scorers.visualquality.NUM_NEW_TOKENS", 8)
    paths = check_scorer_paths({"vq_path": str(tiny_qwen)}, ("vqr1",))["vqr1"]
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
    small = scorer._crops(samples(1)[0])
    assert small.shape == (1, 3, 225, 225)
    array = np.asarray(noise, dtype=np.float32) / 255
    crop = scorer._crops(twice)[0, :, :224, :224].permute(1, 2, 0).numpy()
    corners = np.argwhere((array[:77, :37] == crop[0, 0]).all(axis=-1))
    assert any(np.array_equal(array[top : top + 224, left : left + 224], crop) for top, left in corners)
