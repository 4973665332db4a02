"""Evaluation in the loop: score images of the student as it trains, and of the teacher once.

Nothing is reloaded: the student is the one in memory, and the scorers are loaded once. Call on every rank.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dpdmd.config import Config
from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.scorer_table import DIVERSITY_SCORERS, metric_names
from dpdmd.distributed import collectives
from dpdmd.evaluation import seed_grids
from dpdmd.evaluation.in_loop_setup import EvalSetup, ImageSet
from dpdmd.evaluation.scorers import build_scorer
from dpdmd.evaluation.scorers.base import Sample, Scorer
from dpdmd.evaluation.scoring import (
    NOT_FINITE,
    UNREADABLE,
    ImageScores,
    ScoreReport,
    score_batch,
    summarise_scores,
)
from dpdmd.evaluation.seed_grids import TEACHER
from dpdmd.evaluation.statistics import Summary, mean_rank
from dpdmd.models.base import TextEncoder
from dpdmd.models.identity import digest, identify
from dpdmd.models.registry import identify_teacher
from dpdmd.run_folder import EVAL_TURN, RunFolder, comparable_with_last
from dpdmd.sampling.image_folder import file_name, open_image
from dpdmd.sampling.sampler import Sampler, batches_of
from dpdmd.utils.atomic_files import write_json
from dpdmd.utils.image_grid import labelled_grid, save_image, to_pil
from dpdmd.utils.logging import logger
from dpdmd.utils.versions import library_versions

AVERAGE = "ema"
GRID_COLUMNS = 9


class InLoopEvaluation:
    """Evaluates one run's student at any step, and its teacher once.

    Attributes:
        student, teacher: the samplers of each image size of the run, its first size first.
        teacher_scores: metric -> summary; empty before the first evaluation.
        after_batch: called on every rank after each batch of images; what it raises ends the evaluation.
    """

    def __init__(
        self,
        config: Config,
        setup: EvalSetup,
        accelerator: Any,
        folder: RunFolder,
        student: Mapping[ImageSize, Sampler],
        teacher: Mapping[ImageSize, Sampler],
        encoder: TextEncoder,
    ):
        self.config, self.setup, self.accelerator, self.folder = config, setup, accelerator, folder
        self.student, self.teacher, self.encoder = student, teacher, encoder
        self.scorers: dict[str, Scorer] = {}
        for name, paths in setup.paths.items():
            self.scorers[name] = build_scorer(name, paths, accelerator.device)
            self._offload(self.scorers[name])
        self.teacher_scores: dict[str, Summary] = {}
        self.after_batch: Callable[[], None] = lambda: None

    def evaluate(self, step: int) -> dict[str, Summary]:
        """Return metric -> summary of the student; score the teacher first if its scores are not known."""
        with self._scorers_on_device():
            if not self.teacher_scores:
                # Rank 0's file decides for all: scoring is collective, and another node may have another disk.
                cached = collectives.call_on_main(self.accelerator, self._read_teacher)
                self.teacher_scores = cached or self._score_teacher()
            scores = self._score(self.student, f"step {step}", self.folder.eval_images, show=True)
            if self.accelerator.is_main_process:
                self._save_seed_grids(step)
        return scores

    def evaluate_average(self, step: int) -> dict[str, Summary]:
        """Return metric -> summary, as `evaluate`, under eval_ema/ names, while the student holds its moving average.

        The images go to a folder of their own.
        """
        with self._scorers_on_device():
            title, images = f"{AVERAGE} at step {step}", self.folder.eval_images / AVERAGE
            scores = self._score(self.student, title, images, show=False)
        return {name.replace("eval/", "eval_ema/", 1): summary for name, summary in scores.items()}

    @contextmanager
    def _scorers_on_device(self) -> Iterator[None]:
        for scorer in self.scorers.values():
            scorer.load_to_device()
        try:
            yield
        finally:
            for scorer in self.scorers.values():
                self._offload(scorer)

    def _offload(self, scorer: Scorer) -> None:
        if self.config.eval.offload_scorers:
            scorer.offload()

    def _score_teacher(self) -> dict[str, Summary]:
        if self.accelerator.is_main_process:  # if this is interrupted, the old scores would be of other images
            self.folder.teacher_scores.unlink(missing_ok=True)
        scores = self._score(self.teacher, TEACHER, self.folder.eval_images / TEACHER, show=False)
        if self.accelerator.is_main_process:
            content = {"settings": self._settings, "metrics": {name: asdict(s) for name, s in scores.items()}}
            write_json(self.folder.teacher_scores, content)
        return scores

    def _read_teacher(self) -> dict[str, Summary]:
        """Return the saved scores if they are of the same teacher, images and scorers, else {}."""
        try:
            cached = json.loads(self.folder.teacher_scores.read_text(encoding="utf-8"))
            if cached["settings"] != self._settings:
                return {}
            if not (images := self.folder.eval_images / TEACHER).is_dir():  # after a resume with another --eval_dir
                logger.warning("div_vis/ will lack the teacher's images: %s is not there, and its scores are", images)
            return {name: Summary(**values) for name, values in cached["metrics"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @property
    def conditions(self) -> str:
        """Digest of what scores of two steps must share to be compared: prompts, seeds, sizes and scorers."""
        shared = ("size", "max_sequence_length", "eval_seed", "sets", "scorers")
        return digest({name: self._settings[name] for name in shared})

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """Return everything that the teacher's scores depend on: of models the content, whatever their paths."""
        config, settings = self.config, next(iter(self.teacher.values())).settings
        model = config.model
        return {
            "teacher": identify_teacher(model),
            "libraries": library_versions(),
            "sigmas": settings.sigmas.tolist(),
            "guidance_scale": settings.guidance_scale,
            "size": [settings.height, settings.width],
            "max_sequence_length": config.data.max_sequence_length,
            "bf16": config.optim.bf16,
            "precisions": [model.base_precision, model.text_encoder_precision],
            "eval_seed": config.eval.eval_seed,
            "sets": [[s.name, s.num_samples, list(s.scorers), s.prompts] for s in self.setup.sets],
            "scorers": {name: identify(paths) for name, paths in self.setup.paths.items()},
        }

    def _score(
        self, samplers: Mapping[ImageSize, Sampler], title: str, images: Path, *, show: bool
    ) -> dict[str, Summary]:
        scores = {}
        for image_set in self.setup.sets:
            sampler = samplers[image_set.size or next(iter(samplers))]
            report = self._score_set(sampler, image_set, title, images / image_set.name)
            scores |= {image_set.metric_key(name): summary for name, summary in report.summaries.items()}
            if show and self.accelerator.is_main_process:
                self._save_grids(image_set, title)
        return scores

    def _score_set(self, sampler: Sampler, image_set: ImageSet, title: str, folder: Path) -> ScoreReport:
        """Generate, save and score this rank's share of the images; return the report of all ranks."""
        scorers = [self.scorers[name] for name in image_set.scorers]
        batches = batches_of(len(image_set.prompts), image_set.num_samples, self.config.eval.eval_batch_size)
        mine = collectives.share(batches, self.accelerator.process_index, self.accelerator.num_processes)
        progress = f"scoring {title}" if self.accelerator.is_main_process else ""
        rows: list[ImageScores] = []
        problem: OSError | None = None
        swept = sampler.sweep(self.encoder, image_set.prompts, mine, self.config.eval.eval_seed, progress=progress)
        for keys, made in swept:
            samples = [
                Sample(image, image_set.prompts[key[0]], key) for key, image in zip(keys, to_pil(made), strict=True)
            ]
            try:
                for sample in samples:
                    save_image(sample.image, folder / file_name(sample.key))
            except OSError as error:  # raised below, on every rank: they call a sharded network together
                problem = error
            rows += _score_finite(samples, made, scorers, title)
            self.after_batch()
        collectives.raise_everywhere(self.accelerator, problem)
        metrics = metric_names(image_set.scorers)
        return summarise_scores(collectives.gather(self.accelerator, rows), metrics, self.config.eval.eval_seed)

    def _save_grids(self, image_set: ImageSet, title: str) -> None:
        """Write one grid a prompt to div_vis, over the last one: the teacher's images above the student's."""
        for index, prompt in enumerate(image_set.prompts):
            rows = {}
            for label, folder in ((TEACHER, self.folder.eval_images / TEACHER), (title, self.folder.eval_images)):
                files = [folder / image_set.name / file_name((index, n)) for n in range(image_set.num_samples)]
                rows[label] = list(_readable(files))
            rows = {label: row for label, row in rows.items() if row}
            if rows:
                grid = labelled_grid(list(rows.values()), list(rows), prompt, columns=GRID_COLUMNS)
                save_image(grid, self.folder.div_vis / image_set.name / f"{index:05d}.png")

    def _save_seed_grids(self, step: int) -> None:
        """Save small copies of the images for the report; training goes on if they cannot be written."""
        try:
            seed_grids.save(self.folder, step, self.setup.sets)
        except (OSError, ValueError) as error:
            logger.warning("the report will lack the images of step %d: %s", step, error)


def _readable(files: Sequence[Path]) -> Iterator[Image.Image]:
    """Yield the images that are here: another node may have written some to its own disk, and a disk may be damaged."""
    for file in files:
        try:
            if file.is_file():
                yield open_image(file)
        except ValueError as error:
            logger.warning("div_vis/ will lack an image: %s", error)


def _score_finite(samples: list[Sample], made: Tensor, scorers: list[Scorer], title: str) -> list[ImageScores]:
    """Score the samples whose images are finite in `made`; the others have no scores, because they are black."""
    finite = made.flatten(1).isfinite().all(1).tolist()
    broken = [sample for sample, whole in zip(samples, finite, strict=True) if not whole]
    if broken:
        logger.warning("%s: %d of %d images are not finite, and have no scores", title, len(broken), len(samples))
    rows = score_batch([sample for sample, whole in zip(samples, finite, strict=True) if whole], scorers)
    return rows + [ImageScores(sample.key, sample.prompt, notes={UNREADABLE: NOT_FINITE}) for sample in broken]


def record(step: int, student: dict[str, Summary], teacher: dict[str, Summary], started: float) -> dict[str, Any]:
    """Return the evaluation's line of metrics.jsonl: means, intervals, and the teacher's means."""
    line: dict[str, Any] = {"step": step, "turn": EVAL_TURN}
    for name, summary in student.items():
        line |= {name: summary.mean, f"{name}_low": summary.low, f"{name}_high": summary.high}
        if summary.num_missing:
            line[f"{name}_missing"] = summary.num_missing
    line |= {f"{name}_teacher": summary.mean for name, summary in teacher.items()}
    return line | {"seconds": time.perf_counter() - started}


def _teacher_key(name: str) -> str:
    """Return the key in the teacher's scores for a metric of the student or of its moving average."""
    return name.replace("eval_ema/", "eval/", 1)


def text_table(step: int, student: dict[str, Summary], teacher: dict[str, Summary]) -> str:
    """Return the log's table: a line a metric, the student beside the teacher."""
    width = max(map(len, student))
    lines = [f"evaluation at step {step}: mean [95% interval over prompts]"]
    lines += [
        f"  {name:{width}}  student {summary}  teacher {teacher[_teacher_key(name)]}"
        for name, summary in student.items()
    ]
    return "\n".join(lines)


def best_step(records: list[dict[str, Any]], available: set[int], sets: list[ImageSet], best_by: str) -> int | None:
    """Return the best evaluated step that has a checkpoint, the later one of equals; None if none has a score.

    Steps that were evaluated under other conditions than the last one, before a resume with other flags, do not count.
    With `mean_rank`, the steps are ranked by each preference score and by each diversity score, and the mean ranks of
    the two groups count the same. With the name of a scorer, the highest score wins.
    """
    records = comparable_with_last(records)
    candidates = sorted((r for r in records if r["step"] in available), key=lambda r: r["step"])
    metrics = [(scorer, image_set.metric_key(scorer)) for image_set in sets for scorer in image_set.scorers]
    if best_by == "mean_rank":
        groups = [[key for name, key in metrics if (name in DIVERSITY_SCORERS) == wanted] for wanted in (True, False)]
    else:
        groups = [[key for name, key in metrics if name == best_by]]
    if all(record.get(key) is None for record in candidates for group in groups for key in group):
        return None
    ranks = mean_rank(candidates, groups)
    return min(zip(ranks, candidates, strict=True), key=lambda pair: (pair[0], -pair[1]["step"]))[1]["step"]
