"""Scorers on small models in the official layouts: their values, strict loading, batches of any size."""

import json
import runpy
from pathlib import Path

import numpy as np
import open_clip
import PIL
import pytest
import torch
from PIL import Image
from small_models import save_open_clip
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, Dinov2Model

from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.evaluation.scorers import build_scorer, check_scorer_contents, imagereward
from dpdmd.evaluation.scorers.base import Sample
from dpdmd.evaluation.scorers.visualquality import parse_rating
from dpdmd.evaluation.scoring import score_batch
from dpdmd.models.network_files import read_checkpoint
from dpdmd.shapes.scorer_models import build_bert_tokenizer

ROOT = Path(__file__).parents[3]

CPU = torch.device("cpu")
IN_LOOP = ("div_clip", "div_dino", "pickscore", "imagereward", "clip_score")
PROMPTS = ["a red circle", "ein grünes Dreieck, 猫 и кот", "a shape " * 250, "a small blue cross on a grey background"]


def samples(count: int = 8, size: int = 64) -> list[Sample]:
    """Return images of coarse noise with PROMPTS, repeated."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = [Image.fromarray(c).resize((size, size), Image.BICUBIC) for c in coarse]
    return [Sample(image, PROMPTS[i % len(PROMPTS)], (i, 0)) for i, image in enumerate(images)]


def outputs(scorer, batch: list[Sample]) -> np.ndarray:
    """Return the features or the scores of a batch, a row for each sample."""
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
    assert np.ptp(together.reshape(len(batch), -1), axis=0).max() > 1e-4  # the image matters


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
    scorer = build_scorer("pickscore", scorer_paths["pickscore"], CPU)
    scores = scorer.score(batch)
    assert [s.value for s in scores] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    release = [row.values["pickscore_release"] for row in score_batch(batch, [scorer])]
    assert release == [1 / 26 * score.value for score in scores]


def test_open_clip_folders_are_read(tmp_path):
    """Same two roles, from an OpenCLIP folder; the class token is the one before the last norm."""
    model = save_open_clip(tmp_path)
    paths, batch = {"clip_path": str(tmp_path), "clip_score_path": str(tmp_path)}, samples(3)
    found = check_scorer_paths(paths, ("div_clip", "clip_score"))
    check_scorer_contents(found)
    diversity = build_scorer("div_clip", found["div_clip"], CPU)
    kept = []
    model.visual.transformer.register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        model.encode_image(diversity.clip.pixels([s.image for s in batch]))
    expected = torch.nn.functional.normalize(kept[0][:, 0], dim=-1)
    torch.testing.assert_close(diversity.features(batch).float(), expected, rtol=0, atol=1e-5)
    scorer = build_scorer("clip_score", found["clip_score"], CPU)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([s.prompt for s in batch])
    with torch.no_grad():
        sides = model.encode_image(scorer.clip.pixels([s.image for s in batch])), model.encode_text(tokens)
    expected = 100 * torch.cosine_similarity(*sides)
    assert [score.value for score in scorer.score(batch)] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)
    assert expected.unique().numel() == 3


def test_an_open_clip_without_a_class_token_measures_agreement_alone(tmp_path):
    save_open_clip(tmp_path, layers=[1, 1, 1, 1])  # a ResNet
    paths = check_scorer_paths(
        {"clip_path": str(tmp_path), "clip_score_path": str(tmp_path)}, ("div_clip", "clip_score")
    )
    check_scorer_contents({"clip_score": paths["clip_score"]})
    with pytest.raises(
        ValueError, match=r"^--clip_path .*: its image encoder has no class token .*; give a CLIP with a"
    ):
        check_scorer_contents({"div_clip": paths["div_clip"]})


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
        paths = {"ir_model_path": path, "ir_med_config": med, "ir_tokenizer_path": tokenizer}
        return build_scorer("imagereward", paths, CPU)

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
    tolerance = np.full(len(images), 2e-5)
    if int(PIL.__version__.partition(".")[0]) < 13:
        # The rewards are of Pillow 13. Earlier versions resize this size differently, for the package and for us.
        tolerance[[image.size for image in images].index((300, 640))] = 0.05
    assert (np.abs(np.array(found) - np.array(case["rewards"])).max(axis=0) < tolerance).all()


def test_imagereward_reads_the_text_in_both_directions(tiny_scorers, scorer_paths):
    """A causal text encoder would give token 0 no view of the prompt; vision's epsilon is BLIP's."""
    scorer = build_scorer("imagereward", scorer_paths["imagereward"], CPU)
    image = samples(1)[0].image
    first, second = scorer.score([Sample(image, text, (0, 0)) for text in ("a red circle", "a blue square")])
    assert abs(first.value - second.value) > 1e-5
    assert scorer.network.vision.config.layer_norm_eps == 1e-6
    assert not scorer.network.training


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
