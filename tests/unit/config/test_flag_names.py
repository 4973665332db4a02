"""Names of flags in other trainers: aliases, hints, and one line about all unknown flags."""

import re

import pytest

from dpdmd import config
from dpdmd.config.flag_names import ALIASES, HINTS, MAX_UNKNOWN, suggestion
from dpdmd.config.schema import group_of_each_option

# The flags of diffusers' train_text_to_image.py, its variants for LoRA and SDXL, and train_dreambooth_lora_sd3.py,
# without the Hub's: push_to_hub, hub_model_id, revision and variant.
DIFFUSERS = tuple(
    """
adam_beta1 adam_beta2 adam_epsilon adam_weight_decay adam_weight_decay_text_encoder allow_tf32 cache_dir cache_latents
caption_column center_crop checkpointing_steps checkpoints_total_limit class_data_dir class_prompt
dataloader_num_workers dataset_config_name dataset_name dream_detail_preservation dream_training
enable_npu_flash_attention enable_xformers_memory_efficient_attention foreach_ema gradient_accumulation_steps
gradient_checkpointing hub_token image_column image_interpolation_mode input_perturbation instance_data_dir
instance_prompt learning_rate local_rank logging_dir logit_mean logit_std lora_blocks lora_dropout lora_layers
lr_num_cycles lr_power lr_scheduler lr_warmup_steps max_grad_norm max_sequence_length max_train_samples max_train_steps
mixed_precision mode_scale noise_offset non_ema_revision num_class_images num_train_epochs num_validation_images offload
offload_ema optimizer output_dir precondition_outputs prediction_type pretrained_model_name_or_path
pretrained_vae_model_name_or_path prior_generation_precision prior_loss_weight prodigy_beta3 prodigy_decouple
prodigy_safeguard_warmup prodigy_use_bias_correction proportion_empty_prompts random_flip rank repeats report_to
resolution resume_from_checkpoint sample_batch_size scale_lr seed set_grads_to_none skip_final_inference snr_gamma
text_encoder_lr timestep_bias_begin timestep_bias_end timestep_bias_multiplier timestep_bias_portion
timestep_bias_strategy tracker_project_name train_batch_size train_data_dir train_text_encoder upcast_before_saving
use_8bit_adam use_ema validation_epochs validation_prompt validation_prompts weighting_scheme with_prior_preservation
""".split()  # noqa: SIM905
)


def refused(*command: str) -> str:
    with pytest.raises(ValueError) as error:
        config.parse(list(command))
    return str(error.value)


@pytest.fixture(scope="module")
def options() -> dict:
    return config.build_parser()._option_string_actions


@pytest.mark.parametrize(
    ("alias", "ours"),
    [
        (["--pretrained_model_name_or_path", "m"], ["--teacher_id", "m"]),
        (["--output_dir", "o"], ["--run_dir", "o"]),
        (["--train_batch_size", "3"], ["--batch_size", "3"]),
        (["--gradient_accumulation_steps", "2"], ["--grad_accum", "2"]),
        (["--max_train_steps", "9"], ["--max_steps", "9"]),
        (["--checkpointing_steps", "7"], ["--ckpt_every", "7"]),
        (["--mixed_precision", "bf16"], ["--bf16"]),
        (["--preset", "24gb", "--mixed_precision", "no"], ["--preset", "24gb", "--no-bf16"]),
        (["--rank", "8"], ["--lora_rank", "8"]),
        (["--rank", "8", "--lora_layers", "to_q,to_k"], ["--lora_rank", "8", "--lora_targets", "to_q,to_k"]),
        (["--adam_weight_decay", "0.01"], ["--weight_decay", "0.01"]),
        (["--use_8bit_adam"], ["--optimizer", "adamw_8bit"]),
        (["--use_ema"], ["--ema_decay", "0.99"]),
        (["--resolution", "512"], ["--height", "512", "--width", "512"]),
        (["--output_dir", "o", "--logging_dir", "logs"], ["--run_dir", "o", "--log_path", "o/logs"]),
        (["--run_dir", "o", "--logging_dir", "/logs"], ["--run_dir", "o", "--log_path", "/logs"]),
    ],
)
def test_an_alias_is_the_flag(alias, ours, tmp_path):
    """The written file has our names only, and our flags count as given."""
    theirs = config.parse(ours)
    assert config.parse(alias) == theirs and config.parse(alias).given == theirs.given
    assert config.parse([*ours, *alias]) == config.parse([*alias, *ours]) == theirs
    config.write_yaml(config.parse(alias), tmp_path / "c.yaml")
    assert not ALIASES.keys() & set(re.findall(r"\w+", (tmp_path / "c.yaml").read_text()))
    assert config.parse(["--config", str(tmp_path / "c.yaml")]) == theirs


def test_every_alias_is_in_the_help_and_sets_flags_that_exist(options):
    text = re.sub(r"\s+", " ", config.build_parser().format_help())
    for name, alias in ALIASES.items():
        assert set(alias.flags) <= group_of_each_option().keys() and name not in group_of_each_option()
        assert f"--{name} " in text and alias.help() in text
    help_of_run_dir = text.index("--run_dir STR")
    assert help_of_run_dir < text.index("--output_dir STR") < text.index("--log_path STR")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("--output_dir a --run_dir b", "--output_dir a and --run_dir b: contradict each other; give one of them"),
        ("--resolution 512 --width 768", "--resolution 512 and --width 768: contradict each other"),
        ("--use_8bit_adam --optimizer adamw", "--use_8bit_adam and --optimizer adamw: contradict each other"),
        ("--mixed_precision bf16 --no-bf16", "--mixed_precision bf16 and --no-bf16: contradict each other"),
        ("--mixed_precision fp16", "argument --mixed_precision: invalid choice: 'fp16' (choose from"),
        ("--train_batch_size 0", "--train_batch_size 0: must be 1 to 65536"),
        ("--rank 0", "--rank 0: must be 1 to 16384"),
        ("--resolution x", "argument --resolution: invalid"),
        ("--logging_dir logs", "--logging_dir logs: is a folder in the run folder; give --run_dir with it"),
        ("--logging_dir ~nosuch/x", "--logging_dir ~nosuch/x: ~nosuch is not the home of a known user"),
    ],
)
def test_a_wrong_alias_gets_one_line(command, says):
    assert refused(*command.split()).startswith(says)


def test_an_alias_overrides_files_as_its_flag_does(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("height: 64\nrun_dir: mine\n")
    parsed = config.parse(["--config", str(path), "--resolution", "32", "--logging_dir", "logs"])
    assert (parsed.data.height, parsed.data.width, parsed.run.log_path) == (32, 32, "mine/logs")


def test_a_file_has_our_names_only(tmp_path):
    path = tmp_path / "c.yaml"
    for key, says in (
        ("resolution", "unknown key 'resolution' (write height and width)"),
        ("learning_rate", "unknown key 'learning_rate' (give lr_student and lr_fake)"),
        ("kanchor", "unknown key 'kanchor' (did you mean k_anchor?)"),
        ("zebra", "unknown key 'zebra'"),
    ):
        path.write_text(f"{key}: 3\n")
        assert refused("--config", str(path)).endswith(says)


def test_all_names_in_hints_exist(options):
    known = {*options, "--num_processes", "--nproc_per_node"}  # the last two are the launchers'
    for name, hint in HINTS.items():
        named = re.findall(r"--[A-Za-z_0-9-]+", hint)
        assert set(named) <= known, name
        assert f"--{name}" not in options and name not in ALIASES, name
        assert hint.startswith(("give ", "leave it out: ")) or named, name
        assert hint.startswith("leave it out") or named, name


@pytest.mark.parametrize("name", DIFFUSERS)
def test_every_flag_of_diffusers_is_ours_an_alias_or_has_a_hint(name, options):
    assert f"--{name}" in options or name in HINTS
    hint = suggestion(f"--{name}", {option: None for option in options if option != f"--{name}"})
    assert not hint.startswith("did you mean") or f"--{name}" in options


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("--output-dir", "did you mean --output_dir?"),
        ("--train-batch-size", "did you mean --train_batch_size?"),
        ("--kanchor", "did you mean --k_anchor?"),
        ("--no_bf16", "did you mean --no-bf16?"),
        ("--teacher", "did you mean --teacher_id?"),
        ("--learning-rate", "give --lr_student and --lr_fake"),
        ("--zebra", ""),
        ("--x", ""),
        ("", ""),
    ],
)
def test_a_suggestion(name, says, options):
    assert suggestion(name, options) == says


def test_each_unknown_flag_gets_its_own_hint():
    message = refused(
        "--learning_rate", "1e-4", "--seed", "3", "--validation_prompt", "a cat", "--zebra=1", "--kanchor"
    )
    assert message == (
        "unrecognized arguments: --learning_rate 1e-4 (give --lr_student and --lr_fake), "
        "--validation_prompt a cat (give --div_prompts or --pref_prompts, a file of prompts, and a scorer such as "
        "--clip_path), --zebra=1, --kanchor (did you mean --k_anchor?)"
    )
    many = refused(*(f"--zebra{index}" for index in range(MAX_UNKNOWN + 2)), "-z" + "9" * 999)
    assert many.endswith("--zebra29, and 3 more") and len(refused("--zebra", "9" * 999)) < 130
    assert refused("stray", "words") == "unrecognized arguments: stray words"
