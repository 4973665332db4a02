"""The three steps of imagereward_parity.sh: images, package, ours.

`package` runs in the environment of the old package and imports nothing of ours.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PROMPTS = ["a red circle", "a small cross on a grey background", "ein grünes Dreieck", "a shape " * 60]
# After the resize, the long side exceeds 224 by 0, 253, 0, 266, 79, 79, 103, 103 and 3. torchvision's centre crop
# rounds half of that to even, so at 3 modulo 4 a crop that rounds down lies one pixel beside it.
SIZES = (
    *((512, 512), (300, 640), (224, 224), (700, 320)),
    *((454, 335), (335, 454), (832, 1216), (1216, 832), (227, 224)),
)
MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1}
SMALL_MED_CONFIG = {
    **MED_CONFIG,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "max_position_embeddings": 40,
    "vocab_size": 124,
}


def formula_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return reproducible weights: normal, seeded by the index of a weight's name among the sorted names."""
    weights = {}
    for index, name in enumerate(sorted(shapes)):
        draw = np.random.default_rng(index).standard_normal(shapes[name], dtype=np.float32)
        scale = 1.5 / shapes[name][-1] ** 0.5 if len(shapes[name]) > 1 else 0.05
        norm = "norm" in name.lower() and name.endswith("weight")
        weights[name] = torch.from_numpy(draw * np.float32(scale)) + float(norm)
    return weights


def refill(model: torch.nn.Module) -> dict[str, list[int]]:
    """Load `formula_weights` and return their shapes; with its initial weights the model ignores its input."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict(formula_weights(shapes), strict=False)
    return shapes


def score_all(model: torch.nn.Module, work: Path) -> list[list[float]]:
    """Return rewards [prompts][images], scored one by one, as the package does."""
    return [[model.score(prompt, str(work / f"{index}.png")) for index in range(len(SIZES))] for prompt in PROMPTS]


def coarse_images() -> list[Image.Image]:
    """Return images of coarse noise in four sizes."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in SIZES]
    return [image.resize(size, Image.BICUBIC) for image, size in zip(coarse, SIZES, strict=True)]


def make_images(work: Path) -> None:
    """Write the images, the tokenizer and med_config.json."""
    from dpdmd.shapes.scorer_models import build_bert_tokenizer

    for index, image in enumerate(coarse_images()):
        image.save(work / f"{index}.png")
    tokenizer = build_bert_tokenizer()
    tokenizer.save_pretrained(work / "tokenizer")
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (work / "tokenizer" / "vocab.txt").write_text("\n".join(token for token, _ in vocab) + "\n", encoding="utf-8")
    (work / "med_config.json").write_text(json.dumps(MED_CONFIG))


def score_with_package(work: Path) -> None:
    """Score every pair of prompt and image with the package's own classes."""
    import ImageReward as package
    from ImageReward.models.BLIP import blip, blip_pretrain, vit
    from transformers import BertTokenizer

    def init_tokenizer() -> BertTokenizer:
        tokenizer = BertTokenizer(str(work / "tokenizer" / "vocab.txt"))
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        tokenizer.enc_token_id = tokenizer.additional_special_tokens_ids[0]
        return tokenizer

    def small_vit(_: str, image_size: int, *rest) -> tuple[torch.nn.Module, int]:
        small = {name: SMALL[name] for name in ("embed_dim", "depth", "num_heads")}
        return vit.VisionTransformer(img_size=image_size, patch_size=16, **small), SMALL["embed_dim"]

    blip.init_tokenizer = blip_pretrain.init_tokenizer = init_tokenizer
    model = package.ImageReward(device="cpu", med_config=str(work / "med_config.json")).eval()
    refill(model)
    torch.save(model.state_dict(), work / "ImageReward.pt")
    (work / "package.json").write_text(json.dumps(score_all(model, work)))
    del model

    # The same with a small model, for the tests. Its weights are by formula, so only the rewards are stored.
    module = sys.modules["ImageReward.ImageReward"]
    blip_pretrain.create_vit, head = small_vit, module.MLP
    module.MLP = lambda _: head(SMALL_MED_CONFIG["hidden_size"])
    (work / "small_med_config.json").write_text(json.dumps(SMALL_MED_CONFIG))
    small = package.ImageReward(device="cpu", med_config=str(work / "small_med_config.json")).eval()
    shapes = refill(small)
    rewards = score_all(small, work)
    case = {"med_config": SMALL_MED_CONFIG, "shapes": shapes, "prompts": PROMPTS, "sizes": SIZES, "rewards": rewards}
    (work / "small.json").write_text(json.dumps(case))


def compare(work: Path) -> None:
    """Compare our rewards with the package's and write the table and the test's data."""
    import datetime

    from result_file import used_versions, write_result

    from dpdmd.evaluation.scorers.base import Sample
    from dpdmd.evaluation.scorers.imagereward import ImageReward
    from dpdmd.utils.atomic_files import write_text

    scorer = ImageReward(work / "ImageReward.pt", work / "med_config.json", work / "tokenizer", torch.device("cpu"))
    images = [Image.open(work / f"{index}.png").convert("RGB") for index in range(len(SIZES))]
    samples = [Sample(image, prompt, (0, 0)) for prompt in PROMPTS for image in images]
    theirs = np.array(json.loads((work / "package.json").read_text())).ravel()

    def difference(batches: list[list[Sample]]) -> float:
        ours = [score.value for batch in batches for score in scorer.score(batch)]
        return np.abs(np.array(ours) - theirs).max()

    scorer.network.float()  # as on a GPU, and as the package computes
    single, batched = difference([[sample] for sample in samples]), difference([samples])
    scorer.network.double()  # as on a CPU
    exact = difference([samples])
    date = datetime.date.today().isoformat()
    text = f"""# ImageReward: ours against the package ({date})

`bash benchmarks/imagereward_parity.sh`

Random weights of the official size (normal, 1.5 / sqrt(inputs)); {len(PROMPTS)} prompts x {len(SIZES)} images:
squares, portraits and landscapes, of even and odd differences of the sides; the package in fp32; CPU.
Ours: {used_versions()}. The package: image-reward 1.5, transformers 4.49.0, timm 0.6.13, torch 2.15.0.

| | |
|---|---|
| rewards | {theirs.min():.4f} to {theirs.max():.4f}, standard deviation {theirs.std():.4f} |
| largest difference, fp32, one by one | {single:.2e} |
| largest difference, fp32, all in one batch | {batched:.2e} |
| largest difference, fp64 as on a CPU, all in one batch (the package's own rounding) | {exact:.2e} |
"""
    write_result(Path("benchmarks/results"), "imagereward_parity", [text])
    write_text(Path("tests/data/imagereward_small.json"), (work / "small.json").read_text() + "\n")
    sys.stdout.write(text)


if __name__ == "__main__":
    {"images": make_images, "package": score_with_package, "ours": compare}[sys.argv[1]](Path(sys.argv[2]))
