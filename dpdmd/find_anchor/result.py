"""The result of a search for K: the mean curve with its intervals, the K that it gives, its files and its table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from dpdmd.config import Config
from dpdmd.evaluation.statistics import Summary, summarise
from dpdmd.methods.decidedness import Curve, CurveSettings, anchor_calls, mean_decidedness, smallest_decided
from dpdmd.models.registry import identify_teacher
from dpdmd.sampling.sampler import Sampler
from dpdmd.utils.tables import markdown_table
from dpdmd.utils.versions import library_versions
from dpdmd.utils.wording import counted

SHOWN = (0, 1 / 10, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)  # shares of the teacher's steps in tables and images


@dataclass(frozen=True)
class Point:
    """One K of the mean curve; `sigma` is the noise level at its anchor. Intervals are over prompts."""

    k: int
    sigma: float
    decidedness: Summary
    spread: Summary


@dataclass(frozen=True)
class Samples:
    """Images that the anchors of one prompt point at: a row for each seed, a column for each of `steps`."""

    prompt: str
    steps: Sequence[int]
    rows: Sequence[Sequence[Image.Image]]


@dataclass(frozen=True)
class Result:
    """A finished measurement; `curves` are those of `prompts`, in the same order."""

    config: Config
    settings: CurveSettings
    sampler: Sampler
    prompts: Sequence[str]
    curves: Sequence[Curve]
    threshold: float

    @cached_property
    def points(self) -> list[Point]:
        """The mean curve."""
        sigmas = self.sampler.settings.sigmas.tolist()
        return [
            Point(
                k,
                sigmas[k],
                summarise((index, curve.decidedness[place]) for index, curve in enumerate(self.curves)),
                summarise((index, curve.spread[place]) for index, curve in enumerate(self.curves)),
            )
            for place, k in enumerate(self.settings.steps)
        ]

    @cached_property
    def k_anchor(self) -> int:
        """The smallest K whose mean decidedness reaches the threshold."""
        return self._smallest(mean_decidedness(self.curves))

    @cached_property
    def k_interval(self) -> tuple[int, int] | None:
        """The K that the upper and the lower bound of decidedness give; None with one prompt."""
        bounds = [(point.decidedness.high, point.decidedness.low) for point in self.points]
        if None in bounds[0]:
            return None
        highs, lows = zip(*bounds, strict=True)
        return self._smallest(highs), self._smallest(lows)

    def _smallest(self, decidedness: Sequence[float]) -> int:
        return smallest_decided(self.settings.steps, decidedness, self.threshold, self.config.method.anchor_steps)

    def calls(self, k_anchor: int) -> int:
        """Return the calls of the guided teacher for one anchor of K steps, or of `--anchor_steps` longer ones."""
        steps = self.config.method.anchor_steps
        return anchor_calls(
            self.sampler.schedule, self.sampler.settings.sigmas, k_anchor, steps and min(steps, k_anchor)
        )

    def shown_steps(self) -> list[int]:
        """Return a few of the measured K: spread over the curve, with the K found and the last."""
        steps = self.settings.steps
        spread = {min(steps, key=lambda k: abs(k - share * steps[-1])) for share in SHOWN}
        return sorted(spread | {self.k_anchor})

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for anchor.json."""
        model, method, settings = self.config.model, self.config.method, self.settings
        return {
            "k_anchor": self.k_anchor,
            "k_interval": self.k_interval,
            "threshold": self.threshold,
            "guided_calls_per_anchor": self.calls(self.k_anchor),
            "anchor_steps": method.anchor_steps,
            "space": settings.space,
            "num_seeds": settings.num_seeds,
            "seed": settings.seed,
            **self.sampler.settings.as_dict(),
            "teacher_id": self.config.recorded.get("teacher_id", model.teacher_id),
            "teacher_content": identify_teacher(model),
            "libraries": library_versions(),
            "curve": [asdict(point) for point in self.points],
            "prompts": [{"prompt": p, **asdict(curve)} for p, curve in zip(self.prompts, self.curves, strict=True)],
        }

    def table(self) -> str:
        """Return the mean curve at `shown_steps`, with the result below."""
        shown = set(self.shown_steps())
        rows = [
            (
                f"**{point.k}**" if point.k == self.k_anchor else str(point.k),
                f"{point.sigma:.3f}",
                point.decidedness.interval,
                point.spread.interval,
                str(self.calls(point.k)),
            )
            for point in self.points
            if point.k in shown
        ]
        passes = self.sampler.family.layout.guidance.rows(self.sampler.settings.guidance_scale)
        calls = self.calls(self.k_anchor)
        interval = "" if self.k_interval is None else " ({} to {} by the interval)".format(*self.k_interval)
        return (
            f"{markdown_table(['K', 'sigma', 'decidedness', 'spread', 'guided calls'], rows)}\n\n"
            f"--k_anchor {self.k_anchor}: the smallest with a decidedness of {self.threshold:g} or more in "
            f"{self.settings.space}{interval}; one anchor costs {counted(calls, 'guided call')} of the teacher, "
            f"{counted(passes * calls, 'pass', 'es')} of its network"
        )
