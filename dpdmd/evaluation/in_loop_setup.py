"""What evaluation in the loop will do: which images, which scorers; read and checked before any model loads."""

from dataclasses import dataclass
from pathlib import Path

from dpdmd.config.options import IN_LOOP_SCORERS, EvalConfig
from dpdmd.config.sampling_flags import check_total
from dpdmd.data.prompts import read_prompts
from dpdmd.evaluation.scorer_files import REQUIREMENTS, check_scorer_paths

DIVERSITY = ("div_clip", "div_dino")
# The prompt files of the authors' release, and what its scores are called there.
RELEASE_NAMES = {"pick2pic_sfw_test": "pic", "training_div_test_coco": "coco"}


@dataclass(frozen=True)
class ImageSet:
    """Pictures that are made once and shown to several scorers.

    Attributes:
        name: of the prompt file, or the release's name of it.
        num_samples: images of each prompt.
        scorers: names of those that look at them.
    """

    name: str
    prompts: list[str]
    num_samples: int
    scorers: tuple[str, ...]

    def metric(self, scorer: str) -> str:
        """The release's name of a score: eval/pic_div_clip, eval/coco_preference_pickscore."""
        return f"eval/{self.name}_{scorer}" if scorer in DIVERSITY else f"eval/{self.name}_preference_{scorer}"


@dataclass(frozen=True)
class EvalSetup:
    """Evaluation in the loop; without any set there is none.

    Attributes:
        paths: scorer -> its files.
        skipped: one line about the scorers that are not configured; "" if all are.
    """

    sets: list[ImageSet]
    paths: dict[str, dict[str, Path]]
    skipped: str


def set_up_evaluation(config: EvalConfig) -> EvalSetup:
    """Check the evaluators' files and read their prompts.

    Diversity and preference share their images where they share the prompt file.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    if config.eval_every == 0:
        return EvalSetup([], {}, "")
    paths = check_scorer_paths(vars(config), IN_LOOP_SCORERS)
    missing = [f"{name} (--{REQUIREMENTS[name][0]})" for name in IN_LOOP_SCORERS if name not in paths]
    skipped = f"not scored in the loop, since not configured: {', '.join(missing)}" if missing else ""
    if config.best_by != "mean_rank" and config.best_by not in paths and paths:
        flag = REQUIREMENTS[config.best_by][0]
        raise ValueError(f"--best_by {config.best_by}: that scorer is not configured; give --{flag}")
    diversity = tuple(name for name in paths if name in DIVERSITY)
    preference = tuple(name for name in paths if name not in DIVERSITY)
    wanted = [
        ("--div_prompts", config.div_prompts, config.num_div_seeds, diversity),
        ("--pref_prompts", config.pref_prompts, 1, preference),
    ]
    if diversity and preference and Path(config.div_prompts).absolute() == Path(config.pref_prompts).absolute():
        wanted = [("--div_prompts", config.div_prompts, config.num_div_seeds, diversity + preference)]
    limit = None if config.eval_prompts_limit == "all" else int(config.eval_prompts_limit)
    sets = [
        ImageSet(_name(Path(file)), read_prompts(Path(file), flag)[:limit], count, scorers)
        for flag, file, count, scorers in wanted
        if scorers
    ]
    for images in sets:
        check_total("num_div_seeds", len(images.prompts), images.num_samples)
    return EvalSetup(sets, paths, skipped)


def _name(file: Path) -> str:
    return RELEASE_NAMES.get(file.stem, file.stem)
