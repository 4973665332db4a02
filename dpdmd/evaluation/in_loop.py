"""Evaluation in the loop: the live student's images before every scorer, beside the teacher's own row.

Nothing is reloaded: the student is the one that trains, and the scorers are loaded once. Call on every rank.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dpdmd.config import Config
from dpdmd.distributed import collectives
from dpdmd.evaluation import seed_grids
from dpdmd.evaluation.in_loop_setup import DIVERSITY, EvalSetup, ImageSet
from dpdmd.evaluation.scorers import build_scorer
from dpdmd.evaluation.scorers.base import Sample, Scorer
from dpdmd.evaluation.scoring import (
    NOT_FINITE,
    UNREADABLE,
    ImageScores,
    ScoreReport,
    metric_names,
    score_batch,
    summarise_scores,
)
from dpdmd.evaluation.seed_grids import TEACHER
from dpdmd.evaluation.statistics import Summary, mean_rank
from dpdmd.models.base import TextEncoder
from dpdmd.run_folder import EVAL_TURN, RunFolder
from dpdmd.sampling.image_folder import file_name, open_image
from dpdmd.sampling.sampler import Sampler, batches_of
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.image_grid import labelled_grid, save_image, to_pil
from dpdmd.utils.logging import logger

AVERAGE = "ema"
GRID_COLUMNS = 9


class InLoopEvaluation:
    """Scores of one run's student, step by step, and of its teacher, once."""

    def __init__(
        self,
        config: Config,
        plan: EvalSetup,
        accelerator: Any,
        folder: RunFolder,
        student: Sampler,
        teacher: Sampler,
        encoder: TextEncoder,
    ):
        self.config, self.plan, self.accelerator, self.folder = config, plan, accelerator, folder
        self.student, self.teacher, self.encoder = student, teacher, encoder
        self.scorers: dict[str, Scorer] = {}
        for name, paths in plan.paths.items():
            self.scorers[name] = build_scorer(name, paths, accelerator.device)
            self._offload(self.scorers[name])
        self.teacher_scores: dict[str, Summary] = {}

    def evaluate(self, step: int) -> dict[str, Summary]:
        """Metric -> summary of the student as it is now; the teacher's row first, where it is not known yet."""
        for scorer in self.scorers.values():
            scorer.load_to_device()
        if not self.teacher_scores:
            # Rank 0's file decides for all: scoring is collective, and another node may have another disk.
            known = collectives.broadcast_from_main(self.accelerator, self._read_teacher())
            self.teacher_scores = known or self._score_teacher()
        scores = self._score(self.student, f"step {step}", self.folder.eval_images, show=True)
        if self.accelerator.is_main_process:
            self._keep_seed_grids(step)
        for scorer in self.scorers.values():
            self._offload(scorer)
        return scores

    def evaluate_average(self, step: int) -> dict[str, Summary]:
        """The same with the moving average in the student's place, its images apart, under eval_ema/ names."""
        for scorer in self.scorers.values():
            scorer.load_to_device()
        scores = self._score(self.student, f"{AVERAGE} at step {step}", self.folder.eval_images / AVERAGE, show=False)
        for scorer in self.scorers.values():
            self._offload(scorer)
        return {name.replace("eval/", "eval_ema/", 1): summary for name, summary in scores.items()}

    def _offload(self, scorer: Scorer) -> None:
        if self.config.eval.offload_scorers:
            scorer.offload()

    def _score_teacher(self) -> dict[str, Summary]:
        scores = self._score(self.teacher, TEACHER, self.folder.eval_images / TEACHER, show=False)
        if self.accelerator.is_main_process:
            content = {"settings": self._settings(), "metrics": {name: asdict(s) for name, s in scores.items()}}
            write_text(self.folder.teacher_scores, json.dumps(content, indent=2) + "\n")
        return scores

    def _read_teacher(self) -> dict[str, Summary]:
        """The cached row, if it is of the same teacher, images and scorers."""
        try:
            cached = json.loads(self.folder.teacher_scores.read_text(encoding="utf-8"))
            if cached["settings"] != self._settings():
                return {}
            return {name: Summary(**values) for name, values in cached["metrics"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _settings(self) -> dict[str, Any]:
        """All that the teacher's row depends on."""
        config, settings = self.config, self.teacher.settings
        return {
            "teacher_id": config.model.teacher_id,
            "no_t5": config.model.no_t5,
            "sigmas": settings.sigmas.tolist(),
            "guidance_scale": settings.guidance_scale,
            "size": [settings.height, settings.width],
            "max_sequence_length": config.data.max_sequence_length,
            "bf16": config.optim.bf16,
            "eval_seed": config.eval.eval_seed,
            "sets": [[s.name, s.num_samples, list(s.scorers), s.prompts] for s in self.plan.sets],
            "scorers": {name: [str(path) for path in paths.values()] for name, paths in self.plan.paths.items()},
        }

    def _score(self, sampler: Sampler, title: str, images: Path, *, show: bool) -> dict[str, Summary]:
        scores = {}
        for image_set in self.plan.sets:
            scorers = [self.scorers[name] for name in image_set.scorers]
            found = self._report(sampler, image_set, scorers, title, images / image_set.name)
            scores |= {image_set.metric(name): summary for name, summary in found.summaries.items()}
            if show and self.accelerator.is_main_process:
                self._show(image_set, title)
        return scores

    def _report(
        self, sampler: Sampler, image_set: ImageSet, scorers: list[Scorer], title: str, folder: Path
    ) -> ScoreReport:
        """Make, keep and judge this rank's share of the images; the report over all ranks' shares."""
        batches = batches_of(len(image_set.prompts), image_set.num_samples, self.config.eval.eval_batch_size)
        mine = collectives.share(batches, self.accelerator.process_index, self.accelerator.num_processes)
        progress = f"scoring {title}" if self.accelerator.is_main_process else ""
        rows: list[ImageScores] = []
        swept = sampler.sweep(self.encoder, image_set.prompts, mine, self.config.eval.eval_seed, progress=progress)
        for keys, made in swept:
            samples = [
                Sample(image, image_set.prompts[key[0]], key) for key, image in zip(keys, to_pil(made), strict=True)
            ]
            for sample in samples:
                save_image(sample.image, folder / file_name(sample.key))
            rows += _judge_finite(samples, made, scorers, title)
        return summarise_scores(
            collectives.gather(self.accelerator, rows), metric_names(scorers), self.config.eval.eval_seed
        )

    def _show(self, image_set: ImageSet, title: str) -> None:
        """One grid a prompt in div_vis, overwritten each time: the teacher's images over the student's."""
        for index, prompt in enumerate(image_set.prompts):
            rows = {}
            for label, folder in ((TEACHER, self.folder.eval_images / TEACHER), (title, self.folder.eval_images)):
                files = [folder / image_set.name / file_name((index, n)) for n in range(image_set.num_samples)]
                # An image that another node wrote to a disk of its own is not here to be shown.
                rows[label] = [open_image(file) for file in files if file.is_file()]
            rows = {label: row for label, row in rows.items() if row}
            if rows:
                grid = labelled_grid(list(rows.values()), list(rows), prompt, columns=GRID_COLUMNS)
                save_image(grid, self.folder.div_vis / image_set.name / f"{index:05d}.png")

    def _keep_seed_grids(self, step: int) -> None:
        """Small copies for the report; without them training goes on."""
        try:
            seed_grids.keep(self.folder, step, [(s.name, s.prompts, s.num_samples) for s in self.plan.sets])
        except (OSError, ValueError) as error:
            logger.warning("the report will lack the images of step %d: %s", step, error)


def _judge_finite(samples: list[Sample], made: Tensor, scorers: list[Scorer], title: str) -> list[ImageScores]:
    """Rows of a batch; an image of values that are not finite has no scores: to a scorer it would just be black."""
    finite = made.flatten(1).isfinite().all(1).tolist()
    lost = [sample for sample, whole in zip(samples, finite, strict=True) if not whole]
    if lost:
        logger.warning("%s: %d of %d images are not finite, and have no scores", title, len(lost), len(samples))
    rows = score_batch([sample for sample, whole in zip(samples, finite, strict=True) if whole], scorers)
    return rows + [ImageScores(sample.key, sample.prompt, notes={UNREADABLE: NOT_FINITE}) for sample in lost]


def record(step: int, student: dict[str, Summary], teacher: dict[str, Summary], started: float) -> dict[str, Any]:
    """The evaluation's line of metrics.jsonl: means, intervals, and the teacher's means."""
    line: dict[str, Any] = {"step": step, "turn": EVAL_TURN}
    for name, summary in student.items():
        line |= {name: summary.mean, f"{name}_low": summary.low, f"{name}_high": summary.high}
        if summary.num_missing:
            line[f"{name}_missing"] = summary.num_missing
    line |= {f"{name}_teacher": summary.mean for name, summary in teacher.items()}
    return line | {"seconds": time.perf_counter() - started}


def teacher_name(name: str) -> str:
    """The teacher's name of a score of the student or of its moving average."""
    return name.replace("eval_ema/", "eval/", 1)


def text_table(step: int, student: dict[str, Summary], teacher: dict[str, Summary]) -> str:
    """Student beside teacher, a line a metric, for the log."""
    width = max(map(len, student))
    lines = [f"evaluation at step {step}: mean [95% interval over prompts]"]
    lines += [
        f"  {name:{width}}  student {summary}  teacher {teacher[teacher_name(name)]}"
        for name, summary in student.items()
    ]
    return "\n".join(lines)


def best_step(records: list[dict[str, Any]], available: set[int], sets: list[ImageSet], best_by: str) -> int | None:
    """The best evaluated step that has a checkpoint.

    By `mean_rank`: every evaluated step with a checkpoint is ranked in each preference score and in each diversity
    score; the two groups' mean ranks count the same. By a score's name: the highest of that score. Of equals the
    later one.
    """
    candidates = sorted((r for r in records if r["step"] in available), key=lambda r: r["step"])
    if not candidates:
        return None
    metrics = [(scorer, image_set.metric(scorer)) for image_set in sets for scorer in image_set.scorers]
    if best_by == "mean_rank":
        groups = [[m for s, m in metrics if (s in DIVERSITY) == wanted] for wanted in (True, False)]
    else:
        groups = [[m for s, m in metrics if s == best_by]]
    ranks = mean_rank(candidates, groups)
    return min(zip(ranks, candidates, strict=True), key=lambda pair: (pair[0], -pair[1]["step"]))[1]["step"]
