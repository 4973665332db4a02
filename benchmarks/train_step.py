"""A cycle of training (5 fake turns, 1 student turn) against its floor and against the release's way of running it.

    python benchmarks/train_step.py --out benchmarks/results
    python benchmarks/train_step.py --teacher_id weights/stabilityai/stable-diffusion-3.5-medium --height 1024 ...

Floor: the bare network calls that the method needs, on tensors that are there already. A fake turn: 4 student calls and
the fake score with gradient; the student's: 2K teacher calls for the anchor, 4 student calls with gradient, 2 + 1 for
the scores. The release's way: text encoded three times a step, activations recomputed, every student turn's pictures
decoded. The three take turns in one process; ratios are of medians of the turns, with 95%
bootstrap intervals. Flags that are not this program's own go to dpdmd.train.
"""

import argparse
import datetime
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dpdmd import config, methods, options, preflight
from dpdmd.checkpoint import versions
from dpdmd.families.base import TextEmbedding
from dpdmd.rollout import anchor_target, rollout
from dpdmd.run_folder import write_text
from dpdmd.trainer import Trainer

FLOOR, OURS, RELEASE = "bare network calls", "dpdmd.train", "the release's way"


def make_trainer(flags: list[str], run_dir: Path) -> Trainer:
    examined = config.parse(flags)
    run = examined.run
    run.run_dir, run.report_to, run.vis_every, run.resume_from_checkpoint = str(run_dir), "none", 0, None
    for name in ("clip_path", "clip_score_path", "dino_path", "pick_model_path", "pick_processor_path"):
        setattr(examined.eval, name, None)
    examined.eval.ir_model_path = examined.eval.ir_med_config = None
    examined.method.fake_head_start = 0  # cycles are what is measured
    return Trainer(preflight.check(examined))


@dataclass
class Clock:
    """Seconds of the parts of a cycle; waits for the device around each."""

    device: torch.device
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def time(self, name: str, call: Callable[[], object]) -> None:
        started = self.now()
        call()
        self.seconds.setdefault(name, []).append(self.now() - started)


class Floor:
    """The calls of one cycle and nothing else: no text, no draws, no optimizer, no records."""

    def __init__(self, trainer: Trainer):
        run = self.run = trainer.run
        self.trainer, self.batch = trainer, trainer.micro_batches(0)[0]
        self.eps = run.start_noise(self.batch)
        self.z_t, self.sigma, self.noise = run.score_input(self.batch, self.eps)

    def fake_turn(self, *, shared: bool) -> None:
        """`shared`: on the roll-out of the turn before."""
        run, text = self.run, self.batch.text
        with torch.no_grad():
            if not shared:
                rollout(run.family.bind(run.networks.student, text), run.schedule, self.eps, run.student_sigmas)
        run.family.bind(run.fake_forward, text)(self.z_t, self.sigma).mean().backward()
        self._forget(run.networks.fake)

    def student_turn(self) -> None:
        run, text = self.run, self.batch.text
        teacher, method = run.teacher(text), methods.METHODS[run.config.method]
        student = run.family.bind(run.student_forward, text)
        detach = method.detach_first_step
        rolled = rollout(student, run.schedule, self.eps, run.student_sigmas, detach_first_step=detach)
        with torch.no_grad():
            teacher(self.z_t, self.sigma)
            run.family.bind(run.networks.fake, text)(self.z_t, self.sigma)
            if methods.diversity_term in method.terms:
                anchor_target(
                    teacher, run.schedule, self.eps, run.teacher_sigmas, run.config.k_anchor, run.config.anchor_steps
                )
        (rolled.x.mean() + rolled.first_prediction.mean()).backward()
        self._forget(run.networks.student)

    def _forget(self, network: torch.nn.Module) -> None:
        for parameter in network.parameters():
            parameter.grad = None

    def cycle(self, clock: Clock) -> None:
        for step in range(self.run.config.per_train_fake_num):
            shared = methods.rollout_step(step, self.run.config) != step
            clock.time("fake turn, calls", lambda shared=shared: self.fake_turn(shared=shared))
        clock.time("student turn, calls", self.student_turn)


def our_cycle(trainer: Trainer, first: int) -> None:
    for step in range(first, first + trainer.config.method.per_train_fake_num + 1):
        trainer.take_step(step)


def release_cycle(trainer: Trainer, first: int) -> None:
    """The same updates; text of student, teacher and fake score apart, activations recomputed, pictures decoded."""
    encode, networks = trainer.text_encoder.encode, trainer.run.networks

    def three_times(prompts: list[str]) -> TextEmbedding:
        encode([""] * len(prompts))
        encode(prompts)
        return encode(prompts)

    trainer.text_encoder.encode = three_times
    for network in (networks.student, networks.fake):
        network.enable_gradient_checkpointing()
    try:
        our_cycle(trainer, first)
        trainer.decoder.decode(torch.zeros(3 * trainer.config.optim.batch_size, *trainer.run.latent_shape))
    finally:
        trainer.text_encoder.encode = encode
        for network in (networks.student, networks.fake):
            network.disable_gradient_checkpointing()


def parts(trainer: Trainer, clock: Clock) -> None:
    """What a cycle needs beside the calls."""
    cycle = trainer.config.method.per_train_fake_num + 1
    clock.time("text, once a step", lambda: [trainer.micro_batches(step) for step in range(cycle)])
    batch = trainer.micro_batches(0)[0]
    clock.time("noise of a cycle", lambda: [trainer.run.start_noise(batch) for _ in range(2 * cycle)])
    for trained in (trainer.student, trainer.fake):
        for parameter in trained.parameters:
            parameter.grad = torch.zeros_like(parameter)
    rates = [group["lr"] for trained in (trainer.student, trainer.fake) for group in trained.optimizer.param_groups]

    def step() -> None:
        trainer.student.optimizer.step()
        for _ in range(cycle - 1):
            trainer.fake.optimizer.step()

    for trained in (trainer.student, trainer.fake):
        for group in trained.optimizer.param_groups:
            group["lr"] = 0.0
    clock.time("AdamW", step)
    for trained, rate in zip((trainer.student, trainer.fake), rates, strict=True):
        for group in trained.optimizer.param_groups:
            group["lr"] = rate
        trained.optimizer.zero_grad()


def ratio(above: list[float], below: list[float]) -> str:
    """Ratio of medians with a 95% bootstrap interval over the turns."""
    draw = np.random.default_rng(0)
    picks = draw.integers(len(above), size=(2000, len(above)))
    found = np.median(np.array(above)[picks], axis=1) / np.median(np.array(below)[picks], axis=1)
    low, high = np.quantile(found, (0.025, 0.975))
    return f"{statistics.median(above) / statistics.median(below):.3f} [{low:.3f}, {high:.3f}]"


def calls_a_cycle(method: options.MethodConfig) -> int:
    """Network calls a sample, forward ones; a backward pass counts two."""
    steps, fake = method.stu_inference_steps, method.per_train_fake_num
    anchor = 2 * (method.anchor_steps or method.k_anchor) if method.method == "dpdmd" else 0
    rollouts = sum(methods.rollout_step(step, method) == step for step in range(fake))
    return rollouts * steps + fake * 3 + 3 * steps + 3 + anchor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=12, help="turns of each way (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--against", help="further flags of dpdmd.train, timed beside the run without them")
    own, flags = parser.parse_known_args()
    flags = flags or ["--config", "scripts/configs/tiny.yaml"]
    with tempfile.TemporaryDirectory() as work:
        trainer = make_trainer(flags, Path(work) / "run")
        clock, floor = Clock(trainer.accelerator.device), Floor(trainer)
        length = trainer.config.method.per_train_fake_num + 1
        other = make_trainer([*flags, *shlex.split(own.against)], Path(work) / "other") if own.against else None
        for turn in range(own.cycles + 1):
            if turn == 1:
                clock.seconds.clear()  # libraries warm up in the first
            clock.time(FLOOR, lambda: floor.cycle(clock))
            clock.time(OURS, lambda turn=turn: our_cycle(trainer, 2 * turn * length))
            clock.time(RELEASE, lambda turn=turn: release_cycle(trainer, (2 * turn + 1) * length))
            if other:
                clock.time(own.against, lambda turn=turn: our_cycle(other, turn * length))
            parts(trainer, clock)
    seconds = clock.seconds
    median = {name: statistics.median(values) for name, values in seconds.items()}
    median["fake turn, calls"] = statistics.mean(seconds["fake turn, calls"]) * (length - 1)
    date = datetime.date.today().isoformat()
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    rows = (
        *((name, median[name]) for name in (FLOOR, OURS, RELEASE)),
        *([(f"{OURS} {own.against}", median[own.against])] if other else []),
        *((f"of {OURS}: {name}", median[name]) for name in ("fake turn, calls", "student turn, calls")),
        *((f"of {OURS}: {name}", median[name]) for name in ("AdamW", "text, once a step", "noise of a cycle")),
    )
    lines = [
        f"# The cost of a cycle ({date})",
        "",
        f"`{' '.join(['python', *sys.argv])}`",
        "",
        f"{place} of {os.cpu_count()} cores; {own.cycles} turns each, batch {trainer.config.optim.batch_size}, "
        f"{calls_a_cycle(trainer.config.method)} network calls a sample and cycle (a backward pass counts two); {used}",
        "",
        "| | seconds a cycle |",
        "|---|---|",
        *(f"| {name} | {value:.3f} |" for name, value in rows),
        "",
        f"- {OURS} to the floor: {ratio(seconds[OURS], seconds[FLOOR])}",
        f"- the release's way to {OURS}: {ratio(seconds[RELEASE], seconds[OURS])}",
    ]
    if other:
        calls = calls_a_cycle(other.config.method)
        lines.append(
            f"- {OURS} to itself with `{own.against}` ({calls} calls): {ratio(seconds[OURS], seconds[own.against])}"
        )
    write_text(own.out / f"{date}_train_step.md", "\n".join(lines) + "\n")
    write_text(own.out / f"{date}_train_step.json", json.dumps(seconds) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
