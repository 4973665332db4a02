"""Effects of two-level factors on the small world, from a sweep whose rows vary several flags at once.

    python benchmarks/screening.py scripts/sweeps/recipe_tiny.yaml outputs/recipe_tiny --rows screen_ --base base

The factors are the flags in which the rows differ. Flags that always change together are one factor. A linear model is
fitted to each metric: a mean, the change of each factor from its level in the base row to its other level, and an
offset for each seed. Printed: the changes with their standard errors and t, and the settings with the smallest
predicted distance to the two goals of benchmarks/results/2026-11-29_recipe_tiny.md, L1 and L2, once if all factors may
be turned, and once if only those with |t| of at least 1.5 in accuracy or entropy.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dpdmd.compare.jobs import build_jobs
from dpdmd.compare.metrics import read_metrics
from dpdmd.compare.sweep import Sweep
from dpdmd.compare.sweep_file import read_sweep
from dpdmd.utils.tables import markdown_table

METRICS = ("accuracy", "entropy", "spread")
LENGTH = ("max_steps",)  # follows from the cost of the other flags
CERTAIN = 1.5  # |t|
ACCURACY, ENTROPY = 0.005, 0.02  # units of the distances


@dataclass(frozen=True)
class Factor:
    """Flags that change together, with their values in the base row and their other values."""

    flags: tuple[str, ...]
    base: tuple[Any, ...]
    other: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(f"{f} {a} -> {b}" for f, a, b in zip(self.flags, self.base, self.other, strict=True))


@dataclass(frozen=True)
class Effects:
    """The fitted model of one metric: the mean at the base levels, and each factor's change with its standard error."""

    at_base: float
    changes: np.ndarray
    errors: np.ndarray

    def predict(self, turned: np.ndarray) -> np.ndarray:
        """Return the metric of settings, [S], from which factors they turn, [S, F]."""
        return self.at_base + turned @ self.changes


def find_factors(rows: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any]) -> list[Factor]:
    """Return the factors of rows (name -> options) in the order of the options.

    Raises:
        ValueError: a flag has more than two values.
    """
    columns: dict[tuple[bool, ...], list[str]] = {}
    for flag in base:
        values = {row[flag] for row in rows.values()} | {base[flag]}
        if flag in LENGTH or len(values) == 1:
            continue
        if len(values) > 2:
            raise ValueError(f"{flag} has {len(values)} values; a factor has two")
        columns.setdefault(tuple(row[flag] != base[flag] for row in rows.values()), []).append(flag)
    factors = []
    for turned, flags in columns.items():
        other = next(row for row, changed in zip(rows.values(), turned, strict=True) if changed)
        factors.append(Factor(tuple(flags), tuple(base[f] for f in flags), tuple(other[f] for f in flags)))
    return factors


def fit(turned: np.ndarray, seeds: Sequence[int], values: Sequence[float]) -> Effects:
    """Fit mean, changes and seed offsets (which sum to 0) by least squares; `turned` is [R, F] of 0 and 1.

    Raises:
        ValueError: there are too few rows, or the rows do not tell all changes apart.
    """
    first, *others = sorted(set(seeds))
    offsets = [[(seed == other) - (seed == first) for other in others] for seed in seeds]
    design = np.column_stack([np.ones(len(seeds)), turned, np.array(offsets, float).reshape(len(seeds), -1)])
    solution, _, rank, _ = np.linalg.lstsq(design, np.asarray(values), rcond=None)
    if rank < design.shape[1] or len(seeds) <= rank:
        raise ValueError(f"{len(seeds)} rows do not determine {design.shape[1]} coefficients and their errors")
    variance = float(((design @ solution - values) ** 2).sum()) / (len(seeds) - rank)
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    factors = slice(1, 1 + turned.shape[1])
    return Effects(float(solution[0]), solution[factors], errors[factors])


def distances(accuracy: np.ndarray, entropy: np.ndarray, teacher: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return the distances to both goals: L1 to the teacher's point, and L2, which falls as the accuracy grows."""
    above, ratio = accuracy - teacher["accuracy"], entropy / teacher["entropy"] - 1
    return {
        "L1": np.hypot(np.minimum(above, 0) / ACCURACY, ratio / ENTROPY),
        "L2": -above / ACCURACY + 2 * np.maximum(-ratio, 0) / ENTROPY,
    }


def measured(sweep: Sweep, out: Path, prefix: str) -> list[tuple[str, int, dict[str, float]]]:
    """Return (row, seed, metrics) of every finished run of the rows whose names begin with `prefix`."""
    found = []
    for job in build_jobs(sweep, out):
        if job.configuration.startswith(prefix) and job.seed is not None and job.is_done():
            (measure,) = sweep.measures.values()
            values = read_metrics(job.folder / measure.name / measure.result)
            found.append((job.configuration, job.seed, {name: values[name].mean for name in METRICS}))
    return found


def best_settings(effects: Mapping[str, Effects], factors: Sequence[Factor], teacher: Mapping[str, float]) -> list[str]:
    """Return a line for each goal and each choice of factors: the best setting and its predicted metrics."""
    t = {name: np.abs(each.changes / each.errors) for name, each in effects.items()}
    certain = np.maximum(t["accuracy"], t["entropy"]) >= CERTAIN
    lines = []
    for kind, allowed in (("certain factors", certain), ("all factors", np.ones(len(factors), bool))):
        turned = np.array(list(product(*[(0.0, 1.0) if free else (0.0,) for free in allowed])))
        predicted = {name: each.predict(turned) for name, each in effects.items()}
        for goal, values in distances(predicted["accuracy"], predicted["entropy"], teacher).items():
            best = int(values.argmin())
            flags = "; ".join(str(f) for f, on in zip(factors, turned[best], strict=True) if on) or "nothing"
            numbers = ", ".join(f"{name} {predicted[name][best]:.3f}" for name in METRICS)
            lines.append(f"- {goal} {values[best]:.2f}, {kind}: {flags} ({numbers})")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("out", type=Path, help="the sweep's output folder")
    parser.add_argument("--rows", default="screen_", help="beginning of the rows' names (default: %(default)s)")
    parser.add_argument("--base", default="base", help="row with the levels that the others change")
    parser.add_argument("--teacher", nargs=2, type=float, default=(0.958, 0.846), help="its accuracy and entropy")
    args = parser.parse_args(argv)
    sweep = read_sweep(args.sweep)
    runs = measured(sweep, args.out, args.rows)
    rows = {f"{name} {seed}": sweep.configurations[name].resolved for name, seed, _ in runs}
    base = sweep.configurations[args.base].resolved
    factors = find_factors(rows, base)
    turned = np.array([[row[f.flags[0]] != f.base[0] for f in factors] for row in rows.values()], float)
    seeds = [seed for _, seed, _ in runs]
    try:
        effects = {name: fit(turned, seeds, [values[name] for _, _, values in runs]) for name in METRICS}
    except ValueError as error:
        parser.error(str(error))
    cells = [
        [str(factor), *(_effect(effects[name], index) for name in METRICS)] for index, factor in enumerate(factors)
    ]
    at_base = ["(all at the base's level)", *(f"{effects[name].at_base:.3f}" for name in METRICS)]
    lines = [f"{len(runs)} runs", "", markdown_table(["change", *METRICS], [at_base, *cells]), ""]
    lines += best_settings(effects, factors, dict(zip(("accuracy", "entropy"), args.teacher, strict=True)))
    sys.stdout.write("\n".join(lines) + "\n")


def _effect(effects: Effects, index: int) -> str:
    change, error = effects.changes[index], effects.errors[index]
    return f"{change:+.3f} ± {error:.3f} (t {change / error:+.1f})"


if __name__ == "__main__":
    main()
