"""Time a cycle of training (5 fake-score updates, 1 student update) and a whole run, against a floor and the release.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py --out benchmarks/results
    python benchmarks/train_step.py --teacher_id weights/stabilityai/stable-diffusion-3.5-medium --height 1024 ...

Floor: only the network calls that the method needs, on tensors that exist already. A fake-score update has 4 student
calls, unless it shares a roll-out, and one call of the fake score with gradient. A student update has 2 teacher calls
for each step to the anchor, 4 student calls with gradient, and 2 + 1 calls for the scores. The release's training is
described in benchmarks/release_training.py. The variants alternate in one process. A ratio is the median of the rounds'
ratios, with a 95% bootstrap interval. On a CPU, time is the processor time of the process, so other work on the machine
does not count. Nor does waiting for the disk, which favours the release.

A whole run of --max_steps is composed of the measured parts. Ours evaluates as configured and before the first step,
saves all state each time, and scores the teacher once. The release evaluates every 100 steps, as its script says, with
half as many network calls as it needs to train those 100 steps (release_training.EVAL_SHARE), and saves its weights
with each evaluation. A second ratio assumes that it evaluates as seldom as ours. Flags that are not this program's go
to dpdmd.train; without scorers there is no whole run.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import release_training
import torch
from result_file import result_head, write_result
from step_report import (
    EVALUATION,
    FAKE_CALLS,
    FLOOR,
    OURS,
    RELEASE,
    RELEASE_EVALUATION,
    SAVING,
    STUDENT_CALLS,
    TEACHER,
    Measured,
    cycle_lines,
    run_lines,
)
from torch.utils.flop_counter import FlopCounterMode

from dpdmd import config
from dpdmd.config import options
from dpdmd.config.method_table import FAKE, METHODS, STUDENT, detaches_first_step
from dpdmd.data.prompt_files import read_prompts
from dpdmd.distributed import sharding
from dpdmd.methods import update_schedule
from dpdmd.methods.anchor import anchor_target
from dpdmd.methods.network_calls import CallCounter
from dpdmd.models.layout_values import CLASSIFIER_FREE
from dpdmd.sampling.rollout import rollout
from dpdmd.training import preflight
from dpdmd.training.run_log import RunLog, peak_memory_gb
from dpdmd.training.trainer import Trainer

SCORERS = ("clip_path", "clip_score_path", "dino_path", "pick_model_path", "pick_processor_path")


def make_trainer(flags: list[str], run_dir: Path, *, evaluates: bool = False) -> Trainer:
    settings = config.parse(flags)
    run = settings.run
    run.run_dir, run.report_to, run.vis_every, run.resume_from_checkpoint = str(run_dir), "none", 0, None
    settings.method.fake_head_start = 0  # cycles are what is measured
    if not evaluates:
        for name in SCORERS:
            setattr(settings.eval, name, None)
        settings.eval.ir_model_path = settings.eval.ir_med_config = None
    return Trainer(preflight.check(settings))


@dataclass
class Clock:
    """Seconds of each part of a cycle; waits for the device before and after."""

    device: torch.device
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def time(self, name: str, call: Callable[[], object]) -> None:
        started = self.now()
        call()
        self.seconds.setdefault(name, []).append(self.now() - started)


class Floor:
    """The network calls of one cycle: no text, no draws, no optimizer, no records."""

    def __init__(self, trainer: Trainer):
        run = self.run = trainer.run
        self.trainer, self.batch = trainer, trainer.micro_batches(0)[0]
        self.eps = run.start_noise(self.batch)
        self.z_t, self.sigma, self.noise = run.score_input(self.batch, self.eps)

    def fake_update(self, *, shared: bool) -> None:
        """Run one fake-score update; `shared` uses the roll-out of the update before."""
        run, text = self.run, self.batch.text
        with torch.no_grad():
            if not shared:
                rollout(run.family.bind(run.networks.student, text), run.schedule, self.eps, run.student_sigmas)
        run.family.bind(run.fake_forward, text)(self.z_t, self.sigma).mean().backward()
        self._forget(run.networks.fake)

    def student_update(self) -> None:
        run, text = self.run, self.batch.text
        teacher = run.teacher(text)
        student = run.family.bind(run.student_forward, text)
        detach = detaches_first_step(run.config.method, run.config.detach_first_step)
        rolled = rollout(student, run.schedule, self.eps, run.student_sigmas, detach_first_step=detach)
        with torch.no_grad():
            teacher(self.z_t, self.sigma)
            run.family.bind(run.networks.fake, text)(self.z_t, self.sigma)
            if "diversity" in METHODS[run.config.method].student_terms:
                anchor_target(
                    teacher, run.schedule, self.eps, run.teacher_sigmas, run.config.k_anchor, run.config.anchor_steps
                )
        (rolled.x.mean() + rolled.first_prediction.mean()).backward()
        self._forget(run.networks.student)

    def _forget(self, network: torch.nn.Module) -> None:
        for parameter in network.parameters():
            parameter.grad = None

    def cycle(self, clock: Clock) -> None:
        steps = range(self.run.config.per_train_fake_num)
        shared = [update_schedule.rollout_step(step, self.run.config) != step for step in steps]
        clock.time(FAKE_CALLS, lambda: [self.fake_update(shared=one) for one in shared])
        clock.time(STUDENT_CALLS, self.student_update)


def our_cycle(trainer: Trainer, first: int, log: RunLog) -> None:
    for step in range(first, first + trainer.config.method.per_train_fake_num + 1):
        log.step(trainer.take_step(step))


def parts(trainer: Trainer, clock: Clock) -> None:
    """Time what a cycle needs beside network calls; the weights do not change."""
    cycle = trainer.config.method.per_train_fake_num + 1
    clock.time("text, once a step", lambda: [trainer.micro_batches(step) for step in range(cycle)])
    batch = trainer.micro_batches(0)[0]
    clock.time("noise", lambda: [trainer.run.start_noise(batch) for _ in range(2 * cycle)])
    trained_in_cycle = [trainer.trained[FAKE]] * (cycle - 1) + [trainer.trained[STUDENT]]
    for trained in trainer.trained.values():
        for parameter in trained.parameters:
            parameter.grad = torch.zeros_like(parameter)
    clock.time("norm and clipping", lambda: [clip(trained.parameters) for trained in trained_in_cycle])
    groups = [group for trained in trainer.trained.values() for group in trained.optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = 0.0
    clock.time("AdamW", lambda: [trained.optimizer.step() for trained in trained_in_cycle])
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    for trained in trainer.trained.values():
        trained.optimizer.zero_grad()


def clip(parameters: list[torch.nn.Parameter]) -> None:
    torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, sharding.gradient_norm(parameters))


def save(trainer: Trainer, step: int) -> None:
    trainer.checkpointer.save(step)
    trainer.checkpointer.wait()


def evaluations(trainer: Trainer, clock: Clock, files: list[list[str]], work: Path, count: int) -> None:
    """Time `count` evaluations of both; our first one also scores the teacher."""
    clock.time(TEACHER, lambda: trainer.evaluation.evaluate(0))
    for step in range(1, count + 1):
        clock.time(EVALUATION, lambda step=step: trainer.evaluation.evaluate(step))
        clock.time(SAVING, lambda step=step: save(trainer, step))
        clock.time(
            RELEASE_EVALUATION, lambda: release_training.evaluate(trainer, files, trainer.setup.evaluation.paths, work)
        )
    clock.seconds[TEACHER] = [max(0.0, clock.seconds[TEACHER][0] - statistics.median(clock.seconds[EVALUATION]))]


def calls_a_cycle(method: options.MethodConfig) -> int:
    """Return the network calls of a cycle for each sample; a backward pass counts as two forward calls."""
    counter = CallCounter(method, 0, method.anchor_steps or method.k_anchor, CLASSIFIER_FREE)
    start = method.fake_head_start
    return sum(counter.of_update(step) for step in range(start, start + method.per_train_fake_num + 1))


def matrix_rate(clock: Clock, dtype: torch.dtype) -> float:
    """Return the FLOPs per second of a matrix product, the best of twenty: the peak for MFU."""
    size = 8192 if clock.device.type == "cuda" else 1024
    a = torch.randn(size, size, device=clock.device, dtype=dtype)
    probe = Clock(clock.device)
    for _ in range(20):
        probe.time("product", lambda: a @ a)
    return 2 * size**3 / min(probe.seconds["product"])


def measure(own: argparse.Namespace, flags: list[str], work: Path) -> tuple[Trainer, Measured]:
    """Run all rounds of all variants."""
    trainer = make_trainer(flags, work / "run", evaluates=True)
    other = make_trainer([*flags, *shlex.split(own.against)], work / "other") if own.against else None
    settings, clock = trainer.config, Clock(trainer.accelerator.device)
    length = settings.method.per_train_fake_num + 1
    log, floor = RunLog(trainer.folder, settings, trainer.accelerator, 0, 0), Floor(trainer)
    with FlopCounterMode(display=False) as counter:
        our_cycle(trainer, 0, log)
    for number in range(1, own.cycles + 2):
        if number == 2:
            clock.seconds.clear()  # the first round warms up the libraries
        clock.time(FLOOR, lambda: floor.cycle(clock))
        clock.time(OURS, lambda number=number: our_cycle(trainer, 2 * number * length, log))
        clock.time(RELEASE, lambda number=number: release_training.cycle(trainer, (2 * number + 1) * length))
        if other:
            clock.time(f"{OURS} {own.against}", lambda number=number: our_cycle(other, number * length, log))
        parts(trainer, clock)
    released = calls_a_cycle(release_training.as_released(settings.method))
    prompts = release_training.num_prompts(released, settings.optim.batch_size, length)
    if trainer.evaluation:
        training = read_prompts(Path(settings.data.prompt_txt), column=settings.data.prompt_column)
        evaluations(trainer, clock, [training[:prompts], training[prompts : 2 * prompts]], work, own.evaluations)
    return trainer, Measured(
        seconds=clock.seconds,
        variants=[OURS, *([f"{OURS} {own.against}"] if other else [])],
        cycle_flops=float(counter.get_total_flops()),
        matrix_rate=matrix_rate(clock, trainer.run.family.compute_dtype),
        peak_gb=peak_memory_gb(clock.device),
        on_cuda=clock.device.type == "cuda",
        cycle_length=length,
        total_steps=trainer.setup.total_steps,
        eval_every=settings.eval.eval_every or settings.run.ckpt_every,
        images=sum(len(found.prompts) * found.num_samples for found in trainer.setup.evaluation.sets),
        release_images=2 * prompts * (release_training.NUM_SEEDS + 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=12, help="rounds of each variant (default: %(default)s)")
    parser.add_argument("--evaluations", type=int, default=3, help="rounds of each evaluation (default: %(default)s)")
    parser.add_argument("--against", help="further flags of dpdmd.train, timed beside the run without them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    own, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as work:
        trainer, found = measure(own, flags or ["--config", "scripts/configs/paper_tiny.yaml"], Path(work))
    settings = trainer.config
    threads = f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores, processor time"
    lines = [
        *result_head(
            "The cost of a cycle and of a run",
            f"{torch.cuda.get_device_name() if found.on_cuda else threads}; {own.cycles} rounds each, batch "
            f"{settings.optim.batch_size}, {calls_a_cycle(settings.method)} network calls a sample and cycle (a "
            "backward pass counts two)",
        ),
        *cycle_lines(found),
    ]
    if EVALUATION in found.seconds:
        lines += ["", *run_lines(found)]
    sys.stdout.write(write_result(own.out, "train_step", lines, asdict(found)))


if __name__ == "__main__":
    main()
