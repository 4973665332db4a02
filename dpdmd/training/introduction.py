"""What a run says about itself in the log: what it will do, and at its end where the student is and how to use it."""

import shlex

import torch

from dpdmd.config import Config
from dpdmd.distributed.topology import describe
from dpdmd.methods.registry import num_draws
from dpdmd.methods.update_schedule import num_student_updates
from dpdmd.report.health import judge
from dpdmd.run_folder import RunFolder, read_records
from dpdmd.training import checkpoint
from dpdmd.training.preflight import RunSetup
from dpdmd.utils.wording import counted

SHOWN_PROMPTS, SHOWN_LETTERS = 2, 80
_COLUMN = 12  # width of the names before the facts


def opening(setup: RunSetup, processes: int, device: torch.device) -> str:
    """Return a table of what the run will do, one fact a line."""
    return _table(
        {
            "method": _method(setup.config),
            "prompts": _prompts(setup),
            "batch": _batch(setup, processes),
            "steps": _steps(setup),
            "start": _start(setup),
            "device": f"{describe(processes, device)}; {_precision(setup.config)}",
            "run folder": str(setup.folder.root),
        },
        "this run",
    )


def closing(setup: RunSetup) -> str:
    """Return where the student and the report are, the run's health, and a command that generates images."""
    folder = setup.folder
    latest = folder.latest()
    if latest is None:
        return f"done, without a checkpoint in {folder.ckpts}"
    student = checkpoint.student_folder(latest, setup.config)
    facts = {"student": str(student), "report": str(folder.report)}
    if folder.metrics.is_file() and (health := judge(read_records(folder.metrics, odd=[]))):
        facts["health"] = str(health)
    return _table({**facts, "generate": _generate_command(setup, str(student))}, "done")


def _table(facts: dict[str, str], title: str) -> str:
    return "\n".join([f"{title}:", *(f"  {name:{_COLUMN}}{fact}" for name, fact in facts.items())])


def _method(config: Config) -> str:
    method, rank = config.method, config.model.lora_rank
    trained = "all weights" if rank is None else f"LoRA of rank {rank}"
    return (
        f"{method.method}: a student of {counted(method.stu_inference_steps, 'sampling step')} ({trained}) from "
        f"{config.model.teacher_id}, {counted(method.teacher_infer_steps, 'sampling step')} at guidance "
        f"{method.teacher_guidance_scale:g}, {' and '.join(map(str, config.data.image_sizes))} pixels"
    )


def _prompts(setup: RunSetup) -> str:
    shown = [f'"{_shortened(prompt)}"' for prompt in setup.prompts[:SHOWN_PROMPTS]]
    more = ", ..." if len(setup.prompts) > SHOWN_PROMPTS else ""
    data = setup.config.data
    drawn = f", drawn by the column {data.prompt_weight_column}" if data.prompt_weight_column else ""
    return f"{len(setup.prompts):,} in {data.prompt_txt}{drawn}: {', '.join(shown)}{more}"


def _shortened(prompt: str) -> str:
    words = _first_words(prompt)
    return words if words == _plain(prompt) else f"{words} ..."


def _first_words(prompt: str) -> str:
    """Return the words of a prompt that fit SHOWN_LETTERS; a longer word is cut."""
    plain = _plain(prompt)
    return (
        plain if len(plain) <= SHOWN_LETTERS else plain[: SHOWN_LETTERS + 1].rpartition(" ")[0] or plain[:SHOWN_LETTERS]
    )


def _plain(prompt: str) -> str:
    """Return a prompt in one line, without characters that a terminal would act on."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in prompt).split())


def _batch(setup: RunSetup, processes: int) -> str:
    optim, method = setup.config.optim, setup.config.method
    passes = num_draws(setup.total_steps, method) * setup.global_batch_size / len(setup.prompts)
    return (
        f"{optim.batch_size} x {optim.grad_accum} accumulation x {counted(processes, 'process', 'es')} = "
        f"{counted(setup.global_batch_size, 'prompt')} a step; {passes:,.3g} passes over the prompts"
    )


def _steps(setup: RunSetup) -> str:
    total = setup.total_steps
    students = num_student_updates(total, setup.config.method)
    return (
        f"{counted(total, 'step')} = {total - students:,} fake-score + {counted(students, 'student update')}; "
        f"a checkpoint every {setup.config.run.ckpt_every:,}"
    )


def _start(setup: RunSetup) -> str:
    point = setup.resume
    if point.path is None:
        return "new, at step 0"
    left = max(0, setup.total_steps - point.step)
    return f"resumed from {point.path}, at step {point.step:,}; {counted(left, 'step')} left"


def _precision(config: Config) -> str:
    return "networks run in bf16, weights in fp32" if config.optim.bf16 else "fp32"


def _generate_command(setup: RunSetup, student: str) -> str:
    """Return a command for a shell that generates nine images of the first prompt."""
    folder = setup.folder
    found = RunFolder.of(folder.root).latest() == folder.latest()
    prompt = _first_words(setup.prompts[0])
    given = [f"--prompt={prompt}"] if prompt.startswith("-") else ["--prompt", prompt]
    words = ["python", "-m", "dpdmd.generate", "--model", str(folder.root) if found else student, *given]
    words += ["--num_images", "9", "--out", str(folder.root / "images")]
    return shlex.join(words)
