"""The names of flags in other trainers: aliases of our flags, and hints for flags that do not exist here.

An alias means the same as flags of ours, so it is accepted on the command line. `config.yaml` and `--config` files have
our names only. A hint says what to give in place of a flag that means something else here, or nothing.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CLOSENESS = 0.75  # of a name that may be a spelling mistake, as difflib's ratio; below it hints are mostly wrong
MAX_SHOWN = 80  # letters of one unknown argument in a message
MAX_UNKNOWN = 30  # unknown flags in one message


@dataclass(frozen=True)
class Alias:
    """Another name of one or more flags.

    Attributes:
        flags: our flags, which all get the value.
        values: value of the alias -> value of our flags; None if the value is the same. With a single key, True, the
            alias is a switch.
        under: the flag with the folder that a relative path is in; "" if the value is not such a path.
        note: what the help adds.
    """

    flags: tuple[str, ...]
    values: Mapping[Any, Any] | None = None
    under: str = ""
    note: str = ""

    @property
    def is_switch(self) -> bool:
        return self.values is not None and set(self.values) == {True}

    def help(self) -> str:
        """Return the help of the alias."""
        names = " and ".join(f"--{flag}" for flag in self.flags)
        value = f" {self.values[True]}" if self.is_switch else ""
        return f"diffusers' name of {names}{value}{self.note}"


# Names of diffusers' training scripts; an alias comes after the alias of its `under`.
ALIASES = {
    "pretrained_model_name_or_path": Alias(("teacher_id",)),
    "output_dir": Alias(("run_dir",)),
    "train_batch_size": Alias(("batch_size",)),
    "gradient_accumulation_steps": Alias(("grad_accum",)),
    "max_train_steps": Alias(("max_steps",)),
    "checkpointing_steps": Alias(("ckpt_every",)),
    "resolution": Alias(("height", "width")),
    "mixed_precision": Alias(("bf16",), {"no": False, "bf16": True}, note=": bf16, or no for --no-bf16"),
    "rank": Alias(("lora_rank",)),
    "lora_layers": Alias(("lora_targets",)),
    "adam_weight_decay": Alias(("weight_decay",)),
    "use_8bit_adam": Alias(("optimizer",), {True: "adamw_8bit"}),
    # diffusers' average warms up: its decay after n updates is at most (1 + n) / (10 + n).
    "use_ema": Alias(("ema_decay",), {True: 0.99}, note=", which diffusers' average reaches after 1,000 updates"),
    "logging_dir": Alias(("log_path",), under="run_dir", note=", a folder in the run folder"),
}

_NO_IMAGES = "leave it out: prompts are the only training data, see --prompt_txt"
_NO_TEXT_TRAINING = "leave it out: text encoders are not trained"
_LEARNING_RATES = "give --lr_student and --lr_fake"
_TIMES = "leave it out: the times of the scores are drawn uniformly, see --dmd_t"
_ADAM_ONLY = "leave it out: the optimizer is AdamW, see --optimizer"
_PRIOR = "leave it out: no prior is preserved; the teacher itself guides the student"
_SCORED = "give --div_prompts or --pref_prompts, a file of prompts, and a scorer such as --clip_path"
_BF16 = "give --bf16; fp16 is not supported"
_BASE_PRECISION = "give --lora_rank with --base_precision fp8, int8 or nf4"
_TEXT_PRECISION = "give --text_encoder_precision fp8, int8 or nf4"
_ONE_LENGTH = "give --max_sequence_length"
_LAUNCHER = "leave it out: the launcher sets it"
_SAVE = "give --ckpt_every"
_LOG = "give --log_every"
_EVALUATE = "give --eval_every, in steps"
_EPOCHS = "give --max_epoch, passes over the prompts"
_STEPS = "give --max_steps, the updates of both networks together"

HINTS = {
    # learning rate and optimizer
    "learning_rate": _LEARNING_RATES,
    "lr": _LEARNING_RATES,
    "unet_lr": _LEARNING_RATES,
    "scale_lr": "leave it out: --lr_student and --lr_fake are used as given, at any batch size",
    "text_encoder_lr": _NO_TEXT_TRAINING,
    "train_text_encoder": _NO_TEXT_TRAINING,
    "adam_weight_decay_text_encoder": _NO_TEXT_TRAINING,
    "adam_epsilon": "leave it out: epsilon is 1e-8, diffusers' default",
    "warmup_steps": "give --lr_warmup_steps",
    "num_warmup_steps": "give --lr_warmup_steps",
    "lr_step_rules": "leave it out: --lr_scheduler has no piecewise_constant",
    "optimizer_type": "give --optimizer",
    "prodigy_beta3": _ADAM_ONLY,
    "prodigy_decouple": _ADAM_ONLY,
    "prodigy_use_bias_correction": _ADAM_ONLY,
    "prodigy_safeguard_warmup": _ADAM_ONLY,
    "max_norm": "give --max_grad_norm",
    "gradient_clipping": "give --max_grad_norm",
    # length of the run and its records
    "num_train_epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "epochs": _EPOCHS,
    "max_epochs": _EPOCHS,
    "num_steps": _STEPS,
    "train_steps": _STEPS,
    "iterations": _STEPS,
    "save_steps": _SAVE,
    "save_every": _SAVE,
    "save_every_n_steps": _SAVE,
    "logging_steps": _LOG,
    "eval_steps": _EVALUATE,
    "validation_steps": _EVALUATE,
    "validation_epochs": _EVALUATE,
    "save_total_limit": "give --checkpoints_total_limit",
    "resume": "give --resume_from_checkpoint latest",
    "resume_from": "give --resume_from_checkpoint",
    "tracker_name": "give --tracker_project_name, and --tracker_run_name for the run",
    "wandb_project": "give --report_to wandb and --tracker_project_name",
    "run_name": "give --run_dir, and --tracker_run_name for the tracker",
    "overwrite_output_dir": "leave it out: no run is overwritten; give another --run_dir",
    "output_name": "give --run_dir",
    "out": "give --run_dir",
    "save_dir": "give --run_dir",
    "seed_everything": "give --seed",
    # precision, memory and speed
    "allow_tf32": "leave it out: with --bf16 no product is left for TF32 to speed up, and without it fp32 means fp32",
    "fp16": _BF16,
    "precision": _BF16,
    "weight_dtype": _BF16,
    "fp8_base": _BASE_PRECISION,
    "fp8_scaled": _BASE_PRECISION,
    "base_model_precision": _BASE_PRECISION,
    "load_in_4bit": _BASE_PRECISION,
    "load_in_8bit": _BASE_PRECISION,
    "bnb_quantization_config_path": _BASE_PRECISION,
    "quantize": _BASE_PRECISION,
    "fp8_t5": _TEXT_PRECISION,
    "fp8_llm": _TEXT_PRECISION,
    "text_encoder_1_precision": _TEXT_PRECISION,
    "quantize_te": _TEXT_PRECISION,
    "upcast_before_saving": "leave it out: trained weights are always fp32",
    "prior_generation_precision": _PRIOR,
    "enable_xformers_memory_efficient_attention": "give --attention_backend xformers; torch's own kernels need no flag",
    "use_flash_attn": "give --attention_backend flash; torch's own flash kernels need no flag",
    "enable_npu_flash_attention": "give --attention_backend _native_npu",
    "gradient_checkpoint": "give --gradient_checkpointing",
    "torch_compile": "give --compile",
    "use_ema_decay": "give --ema_decay",
    "offload": "give --offload_vae, --offload_scorers and --cache_text_embeddings",
    "offload_ema": "leave it out: the average stays on the device, see --ema_decay",
    "foreach_ema": "leave it out: see --ema_decay",
    "non_ema_revision": "leave it out: give --student_id to begin from other weights",
    "cache_latents": "leave it out: there are no training images; --cache_text_embeddings caches the prompts",
    "set_grads_to_none": "leave it out: gradients are always set to None",
    "dataloader_num_workers": "leave it out: prompts need no loader processes",
    "num_workers": "leave it out: prompts need no loader processes",
    "local_rank": _LAUNCHER,
    "num_processes": "give it to the launcher: accelerate launch has it, and torchrun has --nproc_per_node",
    "num_gpus": "give it to the launcher: accelerate launch has --num_processes, and torchrun has --nproc_per_node",
    "devices": "give it to the launcher: accelerate launch has --num_processes, and torchrun has --nproc_per_node",
    "deepspeed": "leave it out: --preset 8gpu with scripts/accelerate_sd35_fsdp.yaml shards the networks",
    # models
    "model": "give --teacher_id",
    "model_id": "give --teacher_id",
    "model_path": "give --teacher_id",
    "model_name_or_path": "give --teacher_id",
    "pretrained_teacher_model": "give --teacher_id",
    "teacher_model": "give --teacher_id",
    "student_model": "give --student_id",
    "pretrained_vae_model_name_or_path": "leave it out: the decoder is in the folder of --teacher_id",
    "vae_path": "leave it out: the decoder is in the folder of --teacher_id",
    "prediction_type": "leave it out: --family and the teacher's scheduler decide it",
    "precondition_outputs": "leave it out: the network predicts what --family says",
    "do_edm_style_training": "leave it out: --family decides it",
    "network_dim": "give --lora_rank",
    "network_alpha": "give --lora_alpha",
    "lora_r": "give --lora_rank",
    "use_lora": "give --lora_rank",
    "use_peft": "give --lora_rank",
    "lora_target_modules": "give --lora_targets",
    "lora_blocks": "give --lora_targets, ends of layer names",
    "hub_token": "leave it out: log in with hf auth login, or set the environment variable HF_TOKEN",
    "hf_cache_dir": "give --cache_dir",
    # data
    "dataset_name": "give --prompt_txt: prompts are the only training data",
    "dataset": "give --prompt_txt: prompts are the only training data",
    "dataset_config_name": _NO_IMAGES,
    "train_data_dir": "give --prompt_txt: prompts are the only training data",
    "data_dir": "give --prompt_txt: prompts are the only training data",
    "instance_data_dir": _NO_IMAGES,
    "instance_prompt": "give --prompt_txt, a file of prompts",
    "prompt": "give --prompt_txt, a file of prompts",
    "prompts": "give --prompt_txt, a file of prompts",
    "prompt_file": "give --prompt_txt",
    "prompts_txt": "give --prompt_txt",
    "caption_column": "give --prompt_column",
    "image_column": _NO_IMAGES,
    "max_train_samples": "leave it out: every prompt of --prompt_txt is used",
    "repeats": "leave it out: --max_epoch counts the passes over the prompts",
    "class_data_dir": _PRIOR,
    "class_prompt": _PRIOR,
    "with_prior_preservation": _PRIOR,
    "prior_loss_weight": _PRIOR,
    "num_class_images": _PRIOR,
    "sample_batch_size": "leave it out: --eval_batch_size is that of evaluation",
    "proportion_empty_prompts": "leave it out: the teacher's guidance needs no empty prompts",
    "center_crop": _NO_IMAGES,
    "random_flip": _NO_IMAGES,
    "random_crop": _NO_IMAGES,
    "image_interpolation_mode": _NO_IMAGES,
    "image_size": "give --resolution, --height and --width, or --sizes",
    "size": "give --resolution, --height and --width, or --sizes",
    "max_length": _ONE_LENGTH,
    "tokenizer_max_length": _ONE_LENGTH,
    # losses and sampling
    "snr_gamma": "leave it out: no loss is weighted by the signal-to-noise ratio",
    "noise_offset": "leave it out: start noise and score noise are standard normal, as the teacher expects",
    "input_perturbation": "leave it out: start noise and score noise are standard normal, as the teacher expects",
    "dream_training": "leave it out: --method decides the losses",
    "dream_detail_preservation": "leave it out: --method decides the losses",
    "loss_type": "leave it out: --method decides the losses",
    "huber_c": "leave it out: --method decides the losses",
    "weighting_scheme": _TIMES,
    "logit_mean": _TIMES,
    "logit_std": _TIMES,
    "mode_scale": _TIMES,
    "timestep_bias_strategy": _TIMES,
    "timestep_bias_multiplier": _TIMES,
    "timestep_bias_begin": _TIMES,
    "timestep_bias_end": _TIMES,
    "timestep_bias_portion": _TIMES,
    "guidance_scale": "give --teacher_guidance_scale; the student is sampled without guidance",
    "cfg": "give --teacher_guidance_scale; the student is sampled without guidance",
    "num_inference_steps": "give --stu_inference_steps for the student, --teacher_infer_steps for the teacher",
    "steps": "give --max_steps for training, --stu_inference_steps for the student's sampling",
    # evaluation
    "validation_prompt": _SCORED,
    "validation_prompts": _SCORED,
    "validation_prompt_file": _SCORED,
    "final_validation_prompt": _SCORED,
    "num_validation_images": "give --num_div_seeds, the images of each prompt of --div_prompts",
    "num_validation_prompts": "give --eval_prompts_limit",
    "skip_final_inference": "give --eval_every 0 for no evaluation",
    "not_validation_final": "give --eval_every 0 for no evaluation",
}


def suggestion(name: str, options: Collection[str], *, prefix: str = "--") -> str:
    """Return what to give in place of the unknown flag or key `name`, or "".

    Args:
        options: the known names, with their dashes.
        prefix: the dashes of known names; "" for the keys of a file, where an alias is not a known name.
    """
    plain = name.lstrip("-").replace("-", "_")
    if f"{prefix}{plain}" in options:
        return f"did you mean {prefix}{plain}?"
    if plain in ALIASES:
        return f"write {' and '.join(ALIASES[plain].flags)}"
    if plain in HINTS:
        return HINTS[plain] if prefix else HINTS[plain].replace("--", "")
    near = difflib.get_close_matches(name, options, n=1, cutoff=CLOSENESS)
    return f"did you mean {near[0]}?" if near else ""


def unknown_arguments(arguments: Sequence[str], options: Collection[str]) -> str:
    """Return one line about arguments that no flag takes, with a suggestion for each unknown flag."""
    groups: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("-") or not groups:
            groups.append([])
        groups[-1].append(argument)
    parts = []
    for group in groups[:MAX_UNKNOWN]:
        text, hint = " ".join(group), suggestion(group[0].partition("=")[0], options)
        text = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
        parts.append(f"{text} ({hint})" if hint else text)
    more = len(groups) - MAX_UNKNOWN
    return f"unrecognized arguments: {', '.join(parts)}" + (f", and {more} more" if more > 0 else "")
