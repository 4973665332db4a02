"""Absurd counts and sizes get a one-line error before any model loads or memory is allocated for them."""

import os

import pytest

from dpdmd import config, generate
from dpdmd.training import preflight

pytestmark = pytest.mark.usefixtures("no_model_loads")

HUGE = str(10**12)
LONGER = "9" * 400  # more than a float holds
UNREADABLE = "9" * 5000  # more digits than Python reads


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--batch_size", HUGE, f"--batch_size {HUGE}: must be 1 to 65536"),
        ("--grad_accum", HUGE, f"--grad_accum {HUGE}: must be 1 to 65536"),
        ("--grad_accum", "65536", "--grad_accum 65536: with --batch_size 4 these are 262144 prompts per update"),
        ("--eval_batch_size", HUGE, "must be 1 to 65536"),
        ("--max_steps", LONGER, f"--max_steps {LONGER[:40]}... (400 digits): must be 1 to 1000000000"),
        ("--max_epoch", str(10**30), "must be 1 to 1000000000"),
        ("--ckpt_every", str(10**30), "must be 1 to 1000000000"),
        ("--per_train_fake_num", str(10**30), "must be 1 to 1000000000"),
        ("--k_anchor", str(10**30), "must be at most 1000000000"),
        ("--teacher_infer_steps", HUGE, f"--teacher_infer_steps {HUGE}: must be 1 to 1000"),
        ("--stu_inference_steps", HUGE, f"--stu_inference_steps {HUGE}: must be 1 to 1000"),
        ("--num_div_seeds", HUGE, "must be 2 to 100000"),
        ("--teacher_cache_size", HUGE, "must be 1 to 1000000"),
        ("--lora_rank", HUGE, "--lora_rank 1000000000000: must be 1 to 16384"),
        ("--height", str(10**30), "must be 1 to 65536"),
        ("--seed", str(2**63), f"--seed {2**63}: must be at least 0 and below 4294967296"),
        ("--batch_size", UNREADABLE, "argument --batch_size: invalid int value: '999"),
        ("--eval_prompts_limit", UNREADABLE, f"--eval_prompts_limit {UNREADABLE[:40]}... (5000 digits): must be a num"),
        ("--recomputed_blocks", UNREADABLE, "(5000 digits): must be a number of blocks, auto or all"),
        ("--batch_size", "²", "argument --batch_size: invalid int value: '²'"),
        ("--eval_prompts_limit", "²", "--eval_prompts_limit ²: must be a number of prompts"),
        ("--eval_prompts_limit", "٣", "--eval_prompts_limit ٣: must be a number of prompts"),
        ("--recomputed_blocks", "²", "--recomputed_blocks ²: must be a number of blocks, auto or all"),
        ("--lr_student", "1e400", "--lr_student inf: must be a finite number above 0"),
        ("--lr_student", "1e-400", "--lr_student 0.0: must be a finite number above 0"),
        ("--adam_beta1", "nan", "--adam_beta1 nan: must be at least 0 and below 1"),
        ("--student_sigmas", "1,nan,.5,.2", "must start at 1 and fall strictly"),
        ("--student_sigmas", "1,1,.5,.2", "must start at 1 and fall strictly"),
        ("--student_sigmas", ".2,.5,.9,1", "must start at 1 and fall strictly"),
        ("--student_sigmas", "1,.9,.8,1e-60", "must start at 1 and fall strictly"),
        ("--student_sigmas", " ", "--student_sigmas ' ': is empty; give a value, or leave it out"),
    ],
)
def test_absurd_values_get_one_line(refused, flag, value, says):
    line = refused({flag: value})
    assert says in line and len(line) < 800


def test_a_pool_of_absurd_size_is_not_listed(refused):
    """The number is checked before the list of the pool's prompts is made."""
    line = refused({"--method": "dmd_gan", "--teacher_cache_size": HUGE})
    assert "must be 1 to 1000000" in line


def test_a_run_that_cannot_fit_the_machine(flags, refused, monkeypatch):
    """Without a GPU, the system would kill the run without a message. If a run may not fit, a warning says so."""
    memory = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", memory.get)
    line = refused({"--batch_size": "512"})
    assert "--batch_size, --height, --width: the run cannot fit: " in line
    memory["SC_PHYS_PAGES"] = 100_000
    setup = preflight.check(config.parse([*_words(flags), "--batch_size", "512", "--report_to", "none"]))
    assert any(warning.startswith("the run may not fit this machine: ") for warning in setup.warnings)


def _words(flags):
    return [word for pair in flags.items() for word in pair]


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--batch_size", HUGE, "must be 1 to 65536"),
        ("--num_images", str(10**30), "must be 1 to 100000"),
        ("--height", LONGER, "... (400 digits): must be 1 to 65536"),
        ("--seed", str(2**64), "must be 0 to 4294967295"),
        ("--steps", "²", "invalid int value: '²'"),
        ("--guidance_scale", "1e400", "--guidance_scale inf: must be a finite number, at least 0"),
    ],
)
def test_generate_rejects_absurd_values(refused_by, tiny_pipeline, tmp_path, flag, value, says):
    given = ["--model", str(tiny_pipeline), "--out", str(tmp_path / "out"), "--prompt", "a", f"{flag}={value}"]
    assert says in refused_by("dpdmd.generate", generate.main, given)


def test_more_images_than_a_call_can_make(refused_by, tiny_pipeline, tmp_path):
    """The keys of all images are in one list: many images for each of many prompts would fill the memory."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(map(str, range(200))))
    given = ["--model", str(tiny_pipeline), "--out", str(tmp_path / "out"), "--prompt_txt", str(prompts)]
    line = refused_by("dpdmd.generate", generate.main, [*given, "--num_images", "100000"])
    assert "--num_images 100000: with 200 prompts these are 20000000 images" in line and "10000000" in line


def test_a_run_that_ends_before_the_first_student_update_gets_a_warning(flags):
    """It is no error: a first trial may be that short."""
    setup = preflight.check(config.parse([*_words(flags), "--max_steps", "5", "--report_to", "none"]))
    assert any("step 5, before the student's first update" in warning for warning in setup.warnings)
    setup = preflight.check(config.parse([*_words(flags), "--max_steps", "6", "--report_to", "none"]))
    assert not any("first update" in warning for warning in setup.warnings)


def test_guidance_below_its_off_value_gets_a_warning(flags):
    words = [*_words(flags), "--report_to", "none", "--teacher_guidance_scale", "0.5", "--real_guidance_scale", "1"]
    assert [each[:43] for each in preflight.check(config.parse(words)).warnings if "guidance" in each] == [
        "--teacher_guidance_scale: guidance 0.5: the"
    ]


def test_a_flag_without_effect_gets_a_warning(flags, tiny_scorers, tmp_path):
    """Only flags of the command line count: a file may hold the options of several methods."""
    (tmp_path / "shared.yaml").write_text("{div_weight: 5, k_anchor: 20, perceptual: dists}")
    words = [*_words(flags), "--report_to", "none", "--config", str(tmp_path / "shared.yaml"), "--method", "dmd"]

    def warnings(*more):
        return [each for each in preflight.check(config.parse([*words, *more])).warnings if "given, but" in each]

    assert warnings() == []
    assert warnings("--div_weight", "3", "--gan_weight", "1") == [
        "--div_weight, --gan_weight: given, but --method dmd has no use for it"
    ]
    assert warnings("--div_weight", "3", "--method", "dpdmd") == []
    assert warnings("--num_div_seeds", "4") == ["--num_div_seeds: given, but no scorer is, so nothing is evaluated"]
    scored = ["--eval_sizes", "all", "--clip_path", tiny_scorers["clip_path"]]
    assert warnings(*scored) == ["--eval_sizes: given, but --sizes has not several sizes, so all images have one size"]
    assert (
        warnings(
            "--num_div_seeds", "4", "--clip_path", tiny_scorers["clip_path"], "--div_prompts", flags["--prompt_txt"]
        )
        == []
    )
