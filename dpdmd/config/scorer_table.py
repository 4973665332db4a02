"""The table of scorers: each states its name, label, flags, files and class here, once.

Flags, checks of files, the memory estimate, the report and the root programs read this table. To add a scorer, write
its class in `evaluation/scorers/` and add a row. Imports nothing, so that all of them can read it without torch.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# What a flag's path must hold: parts of a folder, or one file.
MODEL, IMAGE_PROCESSOR, TOKENIZER = FOLDER_PARTS = ("model", "image processor", "tokenizer")
CHECKPOINT, JSON = "checkpoint", "json"
# What a scorer compares: a prompt's images with each other, an image with its prompt, or nothing.
DIVERSITY, PREFERENCE, QUALITY = "diversity", "preference", "quality"


@dataclass(frozen=True)
class ScorerFile:
    """One flag of a scorer: the path of a file or folder.

    Attributes:
        holds: what must be there, in the order of the checks.
        repository: official repository on the Hugging Face hub.
        others: other repositories that fit; a missing path with the name of one is to be fetched from there.
        source: where the flag comes from: the authors' release, or ours.
        open_clip: whether a folder in OpenCLIP's layout is accepted as well.
        loaded: prefix of the names of the weights that the scorer loads; "" for all of them.
        beside: flag of a file; if this flag is not given, that file's folder is used.
        name: of the file in its repository, if the flag takes a file.
    """

    flag: str
    help: str
    holds: tuple[str, ...]
    repository: str
    others: tuple[str, ...] = ()
    source: str = "release"
    open_clip: bool = False
    loaded: str = ""
    beside: str | None = None
    name: str = ""


@dataclass(frozen=True)
class ScorerOption:
    """One argument of a scorer's class, and the flag of the root programs that sets it.

    Attributes:
        help: "" for a flag that every root program has.
        bounds: least and most value of a number, which is a whole one if the most is an int. None for a switch.
    """

    argument: str
    flag: str
    help: str = ""
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class ScorerRow:
    """All facts about one scorer.

    Attributes:
        name: in metrics and tables; begins with div_ if the scorer measures diversity.
        label: in the report.
        kind: DIVERSITY, PREFERENCE or QUALITY.
        implementation: "module:class", imported when the scorer is checked or loaded.
        files: in the order of the class's arguments.
        in_loop: whether `dpdmd.train` has its flags.
        rescaled: other names under which the score is reported, each with the divisor of the score.
        options: further arguments of the class.
    """

    name: str
    label: str
    kind: str
    implementation: str
    files: tuple[ScorerFile, ...]
    in_loop: bool = False
    rescaled: Mapping[str, int] = field(default_factory=dict)
    options: tuple[ScorerOption, ...] = ()

    @property
    def weights(self) -> list[ScorerFile]:
        """Return the files that hold weights."""
        return [file for file in self.files if {MODEL, CHECKPOINT} & set(file.holds)]


SEED = ScorerOption("seed", "seed")
_ROWS = (
    ScorerRow(
        "div_clip",
        "CLIP diversity",
        DIVERSITY,
        "dpdmd.evaluation.scorers.clip:ClipDiversity",
        (
            ScorerFile(
                "clip_path",
                "folder of CLIP, for diversity; the release uses clip-vit-large-patch14",
                (MODEL, IMAGE_PROCESSOR),
                "openai/clip-vit-large-patch14",
                open_clip=True,
                loaded="vision_model.",
            ),
        ),
        in_loop=True,
    ),
    ScorerRow(
        "div_dino",
        "DINO diversity",
        DIVERSITY,
        "dpdmd.evaluation.scorers.dino:DinoDiversity",
        (
            ScorerFile(
                "dino_path",
                "folder of DINOv2 or DINOv3; the release trains with dinov2-base",
                (MODEL, IMAGE_PROCESSOR),
                "facebook/dinov2-base",
                others=("facebook/dinov3-vitl16-pretrain-lvd1689m",),
            ),
        ),
        in_loop=True,
    ),
    ScorerRow(
        "pickscore",
        "PickScore",
        PREFERENCE,
        "dpdmd.evaluation.scorers.pickscore:PickScore",
        (
            ScorerFile(
                "pick_processor_path",
                "folder of PickScore's processor, CLIP-ViT-H-14-laion2B-s32B-b79K",
                (TOKENIZER, IMAGE_PROCESSOR),
                "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            ),
            ScorerFile("pick_model_path", "folder of PickScore_v1", (MODEL,), "yuvalkirstain/PickScore_v1"),
        ),
        in_loop=True,
        rescaled={"pickscore_release": 26},  # as the authors' release reports it
    ),
    ScorerRow(
        "imagereward",
        "ImageReward",
        PREFERENCE,
        "dpdmd.evaluation.scorers.imagereward:ImageReward",
        (
            ScorerFile("ir_model_path", "ImageReward.pt", (CHECKPOINT,), "zai-org/ImageReward", name="ImageReward.pt"),
            ScorerFile(
                "ir_med_config",
                "ImageReward's med_config.json",
                (JSON,),
                "zai-org/ImageReward",
                name="med_config.json",
            ),
            ScorerFile(
                "ir_tokenizer_path",
                "folder of the bert-base-uncased tokenizer; without it the folder of ImageReward.pt",
                (TOKENIZER,),
                "google-bert/bert-base-uncased",
                source="ours",
                beside="ir_model_path",
            ),
        ),
        in_loop=True,
    ),
    ScorerRow(
        "clip_score",
        "CLIP score",
        PREFERENCE,
        "dpdmd.evaluation.scorers.clip:ClipScore",
        (
            ScorerFile(
                "clip_score_path",
                "folder of CLIP, for the agreement of image and prompt",
                (MODEL, IMAGE_PROCESSOR, TOKENIZER),
                "openai/clip-vit-large-patch14",
                source="ours",
                open_clip=True,
            ),
        ),
        in_loop=True,
    ),
    ScorerRow(
        "maniqa",
        "MANIQA",
        QUALITY,
        "dpdmd.evaluation.scorers.maniqa:Maniqa",
        (
            ScorerFile(
                "maniqa_path",
                "MANIQA's .pth",
                (CHECKPOINT,),
                "chaofengc/IQA-PyTorch-Weights",
                name="MANIQA_PIPAL-ae6d356b.pth",
            ),
        ),
        options=(
            ScorerOption("num_crops", "num_crops", "random crops that MANIQA takes of an image", (1, 100_000)),
            ScorerOption(
                "scale", "maniqa_scale", "MANIQA's residual scale: 0.8 in the release, 0.13 in pyiqa", (0, math.inf)
            ),
            SEED,
        ),
    ),
    ScorerRow(
        "vqr1",
        "VisualQuality-R1",
        QUALITY,
        "dpdmd.evaluation.scorers.visualquality:VisualQualityR1",
        (
            ScorerFile(
                "vq_path",
                "folder of VisualQuality-R1",
                (MODEL, TOKENIZER, IMAGE_PROCESSOR),
                "TianheWu/VisualQuality-R1-7B",
            ),
        ),
        options=(
            ScorerOption(
                "sample", "vq_sample", "draw VisualQuality-R1's answers, as the paper does; else take the likeliest"
            ),
            SEED,
        ),
    ),
)
SCORERS = {row.name: row for row in _ROWS}
DIVERSITY_SCORERS = {row.name for row in _ROWS if row.kind == DIVERSITY}
PREFERENCE_SCORERS = {row.name for row in _ROWS if row.kind == PREFERENCE}
IN_LOOP_SCORERS = tuple(row.name for row in _ROWS if row.in_loop)
RESCALED_METRICS = {metric for row in _ROWS for metric in row.rescaled}
METRIC_LABELS = {row.name: row.label for row in _ROWS} | {
    metric: f"{row.label} / {divisor}" for row in _ROWS for metric, divisor in row.rescaled.items()
}


def in_loop_files() -> list[ScorerFile]:
    """Return the files of the in-loop scorers; scorers may share a flag."""
    return list({file.flag: file for name in IN_LOOP_SCORERS for file in SCORERS[name].files}.values())


def metric_names(scorers: Iterable[str]) -> list[str]:
    """Return the names of all metrics that these scorers report, in their order."""
    return [metric for name in scorers for metric in (name, *SCORERS[name].rescaled)]
