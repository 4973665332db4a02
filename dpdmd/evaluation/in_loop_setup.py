"""Set up evaluation in the loop: check its scorers and read its prompts before any model loads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.options import EvalConfig
from dpdmd.config.sampling_flags import check_total
from dpdmd.config.scorer_table import DIVERSITY_SCORERS, IN_LOOP_SCORERS, SCORERS
from dpdmd.data.prompt_files import read_prompts
from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.utils.paths import distinct_names, same_place

# Prompt files of the authors' release -> their names in its metrics.
RELEASE_NAMES = {"pick2pic_sfw_test": "pic", "training_div_test_coco": "coco"}


@dataclass(frozen=True)
class ImageSet:
    """Images that are generated once and scored by several scorers.

    Attributes:
        name: the prompt file's stem, or the release's name of that file; if both sets have the same, its folders and
            name. With `size`, the size follows.
        num_samples: images of each prompt.
        scorers: names of the scorers.
        size: size of the images; None for the run's first.
    """

    name: str
    prompts: list[str]
    num_samples: int
    scorers: tuple[str, ...]
    size: ImageSize | None = None

    def at_size(self, size: ImageSize) -> "ImageSet":
        """Return the same images at another size, under a name of their own."""
        return replace(self, name=f"{self.name}_{size}", size=size)

    def metric_key(self, metric: str) -> str:
        """Return the key of metrics.jsonl, as in the release: eval/pic_div_clip, eval/coco_preference_pickscore."""
        kind = "" if metric in DIVERSITY_SCORERS else "preference_"
        return f"eval/{self.name}_{kind}{metric}"


@dataclass(frozen=True)
class EvalSetup:
    """Setup of evaluation in the loop.

    Attributes:
        sets: empty if there is no evaluation.
        paths: scorer -> flag -> path.
        skipped: one line about the scorers that are not configured; "" if all are.
    """

    sets: list[ImageSet]
    paths: dict[str, dict[str, Path]]
    skipped: str


def set_up_evaluation(config: EvalConfig, prompt_column: str | None, sizes: Sequence[ImageSize] = ()) -> EvalSetup:
    """Check the scorers' files and read the prompts.

    Diversity and preference share their images if they share the prompt file. With `--eval_sizes all` each of the run's
    `sizes` after the first has image sets of its own.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    if config.eval_every == 0:
        return EvalSetup([], {}, "")
    paths = check_scorer_paths(vars(config), IN_LOOP_SCORERS)
    missing = [f"{name} (--{SCORERS[name].files[0].flag})" for name in IN_LOOP_SCORERS if name not in paths]
    skipped = f"not scored in the loop, because their flags are not given: {', '.join(missing)}" if missing else ""
    if config.best_by != "mean_rank" and config.best_by not in paths and paths:
        flag = SCORERS[config.best_by].files[0].flag
        raise ValueError(f"--best_by {config.best_by}: that scorer is not configured; give --{flag}")
    diversity = tuple(name for name in paths if name in DIVERSITY_SCORERS)
    preference = tuple(name for name in paths if name not in DIVERSITY_SCORERS)
    wanted = [
        ("--div_prompts", config.div_prompts, config.num_div_seeds, diversity),
        ("--pref_prompts", config.pref_prompts, 1, preference),
    ]
    if diversity and preference and same_place(config.div_prompts, config.pref_prompts):
        wanted = [("--div_prompts", config.div_prompts, config.num_div_seeds, diversity + preference)]
    limit = None if config.eval_prompts_limit == "all" else int(config.eval_prompts_limit)
    wanted = [row for row in wanted if row[3]]
    sets = [
        ImageSet(name, read_prompts(Path(file), flag, prompt_column)[:limit], count, scorers)
        for name, (flag, file, count, scorers) in zip(_names([Path(row[1]) for row in wanted]), wanted, strict=True)
    ]
    if config.eval_sizes == "all":
        sets += [images.at_size(size) for size in sizes[1:] for images in sets]
    for images in sets:
        check_total("num_div_seeds", len(images.prompts), images.num_samples)
    return EvalSetup(sets, paths, skipped)


def _names(files: Sequence[Path]) -> list[str]:
    """Return the names of the image sets of different prompt files."""
    names = [RELEASE_NAMES.get(file.stem, file.stem) for file in files]
    if len(set(names)) < len(names):  # a/test.txt and b/test.txt would share a folder of images
        return [name.replace("/", "_") for name in distinct_names(files)]
    return names
