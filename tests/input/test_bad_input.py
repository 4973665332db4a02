"""Wrong input gets one line that names the flag or file, with exit status 2, before any model loads."""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from bad_input import LONG, ROOT, program
from PIL import Image
from safetensors.torch import load_file, save_file

from dpdmd import config, doctor, export, generate
from dpdmd.data.prompts import fingerprint
from dpdmd.sampling.image_folder import GENERATED
from dpdmd.shapes.text import MAX_LENGTH
from dpdmd.training import preflight
from dpdmd.utils.image_grid import save_image
from dpdmd.utils.manifest import write_manifest

pytestmark = pytest.mark.usefixtures("no_model_loads")


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--teacher_id", "nowhere", "--teacher_id nowhere: no such folder"),
        ("--student_id", "nowhere", "--student_id nowhere: no such folder"),
        ("--fake_id", "nowhere", "--fake_id nowhere: no such folder"),
        ("--prompt_txt", "nowhere.txt", "--prompt_txt nowhere.txt: cannot be read"),
        ("--prompt_txt", "data", "--prompt_txt data: cannot be read"),
        ("--k_anchor", "0", "--k_anchor 0: must be 1 to --teacher_infer_steps (30)"),
        ("--k_anchor", "31", "--k_anchor 31"),
        ("--anchor_steps", "6", "--anchor_steps 6: must be 1 to --k_anchor (5)"),
        ("--fake_rollout_reuse", "6", "--fake_rollout_reuse 6: must be 1 to --per_train_fake_num (5)"),
        ("--recomputed_blocks", "few", "--recomputed_blocks few: must be a number of blocks, auto or all"),
        ("--recomputed_blocks", "2", "--recomputed_blocks 2: give --gradient_checkpointing"),
        ("--fake_head_start", "5995", "--fake_head_start 5995: the run ends at step 6000, before the student's first"),
        ("--lr_scheduler", "piecewise_constant", "--lr_scheduler"),
        (
            "--lr_num_cycles",
            "3",
            "--lr_num_cycles 3: give --lr_scheduler cosine_with_restarts with it, or leave it out",
        ),
        ("--lr_num_cycles", "0", "--lr_num_cycles 0: must be 1 to 1000000000"),
        ("--lr_power", "2", "--lr_power 2.0: give --lr_scheduler polynomial with it, or leave it out"),
        ("--lora_dropout", "0.1", "--lora_dropout 0.1: give --lora_rank with it"),
        (
            "--base_precision",
            "int8",
            "--base_precision int8: give --lora_rank with it; a network that is trained whole",
        ),
        ("--attention_backend", "zebra", "--attention_backend zebra: choose one of flash, "),
        ("--attention_backend", "flash_hub", "--attention_backend flash_hub: would fetch code from the Hub and run it"),
        ("--attention_backend", "", "argument --attention_backend: expected one argument"),
        ("--attention_backend", "sage", "--attention_backend sage: does not work here (Sage Attention backend"),
        ("--attention_backend", "flex", "--attention_backend flex: does not work here (FlexAttention does not support"),
        ("--attention_backend", "_native_cudnn", "--attention_backend _native_cudnn: does not work here (No viable"),
        ("--output_dir", "elsewhere", "--output_dir elsewhere and --run_dir "),
        ("--resolution", "32", "--resolution 32 and --height 64: contradict each other; give one of them"),
        ("--rank", "0", "--rank 0: must be 1 to 16384"),
        ("--learning_rate", "1e-4", "unrecognized arguments: --learning_rate 1e-4 (give --lr_student and --lr_fake)"),
        ("--lr_warmup_steps", "-1", "--lr_warmup_steps -1: must be 0 to 1000000000"),
        ("--lr_warmup_steps", "1000", "--lr_warmup_steps 1000: one network has 1000 updates in 6000 steps"),
        ("--teacher_infer_steps", "4", "--k_anchor 5: must be 1 to --teacher_infer_steps (4)"),
        ("--stu_inference_steps", "0", "--stu_inference_steps 0"),
        ("--stu_inference_steps", "1", "--stu_inference_steps 1: the latent is detached after step 1"),
        ("--height", "68", "--height 68: must be a multiple of 8"),
        ("--width", "0", "--width 0"),
        ("--width", "65536", "--width 65536: this model has positions for"),
        ("--family", "sd21", "--family"),
        ("--family", "sdxl", "(it is of --family sd35)"),
        ("--method", "sgd", "--method"),
        (
            "--method",
            "dmd_lpips",
            "--method dmd_lpips: give --perceptual_path, the folder with the weights of --perceptual",
        ),
        ("--perceptual_path", "weights/tiny/dinov2", "--method dpdmd does not read it"),
        ("--perceptual", "ssim", "--perceptual"),
        ("--grad_steps", "first", "--grad_steps"),
        ("--rollout", "sde", "--rollout"),
        ("--gan_features", "student", "--gan_features"),
        ("--gan_weight", "-1", "--gan_weight -1"),
        ("--teacher_cache", "cache", "--teacher_cache cache: give --teacher_cache_size"),
        ("--teacher_cache_size", "8", "--method dpdmd uses no teacher samples; dmd_lpips, dmd_gan do"),
        ("--ema_decay", "1.0", "--ema_decay 1.0: must be at least 0 and below 1"),
        ("--lr_discriminator", "0", "--lr_discriminator 0"),
        ("--dmd_normalizer", "x", "--dmd_normalizer"),
        ("--optimizer", "sgd", "--optimizer"),
        ("--preset", "1gb", "--preset"),
        ("--nonfinite", "ignore", "--nonfinite"),
        ("--student_sigmas", "1.0,0.5", "--student_sigmas: '1.0,0.5' has 2 sigmas, but the student takes 4 steps"),
        ("--student_sigmas", "fast", "--student_sigmas: 'fast' is neither"),
        ("--student_sigmas", "1.0,0.5,0.7,0.2", "--student_sigmas"),
        ("--batch_size", "0", "--batch_size 0"),
        ("--batch_size", "two", "--batch_size"),
        ("--grad_accum", "-1", "--grad_accum -1"),
        ("--lr_student", "-1e-5", "--lr_student"),
        ("--lr_fake", "nan", "--lr_fake nan"),
        ("--adam_beta2", "1.0", "--adam_beta2 1.0"),
        ("--max_grad_norm", "0", "--max_grad_norm 0"),
        ("--div_weight", "inf", "--div_weight inf"),
        ("--div_weight", "1e38", "--div_weight 1e+38: must be a finite number, at least 0 and at most 1,000,000"),
        ("--teacher_guidance_scale", "1e30", "must be a finite number, at least 0 and at most 10,000"),
        ("--real_guidance_scale", "10001", "--real_guidance_scale 10001.0: must be a finite number, at least 0 and at"),
        ("--perceptual_weight", "1e38", "--perceptual_weight 1e+38: must be"),
        ("--gan_weight", "1e38", "--gan_weight 1e+38: must be"),
        ("--weight_decay", "1e38", "--weight_decay 1e+38: must be"),
        ("--lora_alpha", "1e38", "--lora_alpha 1e+38: must be a finite number above 0 and at most 1,000,000"),
        ("--lr_student", "101", "--lr_student 101.0: must be a finite number above 0 and at most 100"),
        ("--div_weight_schedule", "falling", "--div_weight_schedule: invalid choice: 'falling'"),
        ("--div_weight_schedule", "adaptive", "there is none; give --clip_path or --dino_path, and not --eval_every 0"),
        ("--real_guidance_scale", "-1", "--real_guidance_scale -1"),
        ("--teacher_guidance_scale", "-1", "--teacher_guidance_scale -1"),
        ("--max_steps", "0", "--max_steps 0"),
        ("--seed", "-1", "--seed -1"),
        ("--seed", "4294967296", "--seed 4294967296"),
        ("--eval_seed", "4294967296", "--eval_seed 4294967296"),
        ("--lr_student", "1e300", "--lr_student 1e+300"),
        ("--max_sequence_length", "100000", "--max_sequence_length 100000"),
        ("--resume_from_checkpoint", "README.md", "--resume_from_checkpoint README.md: no such folder"),
        ("--clip_path", "nowhere", "--clip_path nowhere: no such folder"),
        ("--clip_path", "data", "config.json is missing"),
        ("--ir_model_path", "weights/tiny/ImageReward/ImageReward.pt", "--ir_med_config is missing"),
        ("--pick_model_path", "weights/tiny/pickscore", "--pick_processor_path is missing"),
        ("--num_div_seeds", "1", "--num_div_seeds 1"),
        ("--lora_rank", "0", "--lora_rank 0"),
        ("--lora_alpha", "4", "--lora_alpha 4.0: give --lora_rank with it"),
        ("--eval_prompts_limit", "some", "--eval_prompts_limit some"),
        ("--best_by", "beauty", "--best_by"),
        ("--resume_from_checkpoint", "nowhere", "--resume_from_checkpoint nowhere"),
        ("--config", "nowhere.yaml", "--config nowhere.yaml: cannot be read"),
        ("--kanchor", "5", "unrecognized arguments: --kanchor 5 (did you mean --k_anchor?)"),
        ("--no_bf16", "1", "(did you mean --no-bf16?)"),
        ("--k_anch", "5", "unrecognized arguments: --k_anch 5"),
        ("--run_dir", "README.md", "is a file; give a folder"),
        ("--run_dir", "README.md/run", "is a file; give a folder"),
        ("--ckpt_dir", "README.md", "README.md is a file; give a folder"),
        ("--log_path", "README.md", "--log_path README.md"),
    ],
)
def test_a_wrong_value_gets_one_line(flags, refused, monkeypatch, flag, value, says, rank):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", rank)
    for name, text in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, text)
    assert says in refused({flag: value})
    assert not Path(flags["--run_dir"]).exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kanchor: 3", "unknown key 'kanchor' (did you mean k_anchor?)"),
        ("k_anchor: many", "k_anchor must be int, not 'many'"),
        ("bf16: 1", "bf16 must be bool"),
        ("- 1", "must hold keys and values"),
        ("a: [", "no YAML"),
        ("method: {method: sgd}", "--method sgd: choose one of dpdmd, dmd, dmd_lpips, dmd_gan"),
        ("k_anchor: null", "k_anchor must be int"),
        ("run_dir: !!python/object/apply:os.system ['touch hacked']", "no YAML"),
        ("1: 2", "unknown key 1"),
        ("k_anchor: 3\nk_anchor: 20", "'k_anchor' is given twice"),
        ("optim: {lr_fake: 1}\noptim: {bf16: true}", "'optim' is given twice"),
        ("k_anchor: 3\nmethod: {k_anchor: 20}", "k_anchor is given twice"),
        ("optim: {k_anchor: 3}", "k_anchor belongs under method, not under optim"),
        ("eval_prompts_limit: 16.0", "eval_prompts_limit must be str, not 16.0; give 16, or put a text in quotes"),
        ("sizes: 64x64\nheight: 32", "height 32 and sizes 64x64: leave out one of both"),
        ("data: {sizes: [64x48], width: 48}", "width 48 and sizes 64x48: leave out one of both"),
        ("data: 5", "data must hold keys and values, not 5"),
        ("? [1]\n: 2", "no YAML"),
        ("student_sigmas: [[1.0]]", "student_sigmas must be str"),
        ("seed: 2026-13-45", "'2026-13-45' is no timestamp (put a text in quotes) in"),
        ("bf16: true\nseed: !!int 0b_", "'0b_' is no int (put a text in quotes) in \"<unicode string>\", line 2"),
        ("k_anchor: 0b_", "k_anchor must be int, not '0b_'; or give auto"),
        ("bf16: !!bool maybe", "'maybe' is no bool"),
        ("seed: !!timestamp x", "'x' is no timestamp"),
        ('seed: !!int ""', "'' is no int"),
        ("seed: !!set 3", "no YAML"),
        (r'run_dir: "\U00110000"', "no YAML"),
    ],
)
def test_a_wrong_configuration_file_gets_one_line(refused, tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    assert says in refused({"--config": "config.yaml"})
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--lora_targets", "to_z", "--lora_targets: no linear layer of"),
        ("--lora_targets", "proj", "--lora_targets: proj names pos_embed.proj of"),  # a convolution
        ("--lora_targets", "to_q,0", "--lora_targets: 0 names transformer_blocks.0 of"),  # besides to_out.0
        ("--lora_targets", "to_q,,", "must be names such as to_q,to_k,to_v"),
        ("--lora_dropout", "1", "--lora_dropout 1.0: must be at least 0 and below 1"),
        ("--lora_dropout", "nan", "--lora_dropout nan: must be at least 0 and below 1"),
        ("--student_id", "weights/tiny/sd35", "with --lora_rank all three networks are the teacher's"),
    ],
)
def test_a_wrong_value_beside_lora_rank_gets_one_line(refused, flag, value, says):
    assert says in refused({"--lora_rank": "4", flag: value})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--rollout": "dmd2", "--grad_steps": "last"}, "only one step has gradient"),
        (
            {"--lora_rank": "4", "--lora_dropout": "0.1", "--compile": ""},
            "--lora_dropout 0.1: not possible with --compile, since each sample draws its own mask",
        ),
        (
            {"--lr_scheduler": "polynomial", "--lr_fake": "1e-7"},
            "--lr_fake 1e-07: must be above 1e-07, where --lr_scheduler polynomial ends",
        ),
        ({"--method": "dmd", "--detach_first_step": "", "--stu_inference_steps": "1"}, "leaves no step to train"),
        (
            {"--method": "dmd_lpips", "--perceptual": "dino", "--perceptual_path": "data"},
            "--perceptual_path data: data/config.json is missing",
        ),
        ({"--method": "dmd_lpips", "--perceptual_path": "weights/tiny"}, "vgg16-397923af.pth cannot be read"),
        (
            {"--method": "dmd_lpips", "--perceptual_path": "weights/tiny", "--offload_vae": ""},
            "--offload_vae: not possible with --method dmd_lpips: the gradient of every student update runs through",
        ),
        (
            {"--method": "dmd_gan", "--compile": ""},
            "--compile: not possible with --method dmd_gan: the discriminator reads features",
        ),
        (
            {"--method": "dmd_gan", "--teacher_cache_size": "8", "--teacher_cache": "weights/tiny/sd35/vae"},
            "--teacher_cache weights/tiny/sd35/vae: lies in a model's folder, ",
        ),
        (
            {"--method": "dmd_gan", "--teacher_cache_size": "8", "--teacher_cache": "README.md"},
            "README.md is a file; give a folder",
        ),
    ],
)
def test_options_that_do_not_combine_get_one_line(refused, monkeypatch, changes, says):
    monkeypatch.chdir(ROOT)
    assert says in refused(changes)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no prompt in it"),
        (b"\n \r\n\n", "no prompt in it"),
        (b"a cat\n\xff\xfe dog\n", "line 2 is not UTF-8"),
        (b"a\0b\n", "holds zero bytes"),
    ],
    ids=["empty", "blank lines", "not UTF-8", "binary"],
)
def test_a_wrong_prompt_file_gets_one_line(refused, tmp_path, content, says):
    (tmp_path / "wrong.txt").write_bytes(content)
    assert says in refused({"--prompt_txt": str(tmp_path / "wrong.txt")})


def test_a_link_to_itself(refused, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "cannot be read" in refused({"--prompt_txt": str(loop)})
    assert "no such folder" in refused({"--teacher_id": str(loop)})
    assert "leads nowhere" in refused({"--run_dir": str(loop)})
    assert "cannot be read" in refused({"--config": str(loop)})


TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("part", "content", "says"),
    [
        (TRANSFORMER, None, "diffusion_pytorch_model.safetensors is missing"),
        (TRANSFORMER, b"version https://git-lfs", "is no safetensors file but a git-lfs pointer"),
        (
            TRANSFORMER,
            (2).to_bytes(8, "little") + b"[]",
            "is no safetensors file, or is truncated (invalid JSON in header",
        ),
        ("transformer/config.json", None, "config.json is missing"),
        ("transformer/config.json", b"{", "cannot be read as JSON"),
        ("transformer/config.json", b"{}", "config.json lacks 'num_attention_heads'"),
        ("vae/config.json", None, "config.json is missing"),
        ("vae/config.json", b'{"block_out_channels": 3}', "has unexpected values"),
        ("model_index.json", None, "model_index.json is missing"),
        ("model_index.json", b'{"_class_name": "FluxPipeline"}', "is of a FluxPipeline"),
        ("tokenizer/tokenizer.json", None, "holds no tokenizer"),
        ("scheduler/scheduler_config.json", b'{"_class_name": "DDIMScheduler"}', "is of a DDIMScheduler"),
        (
            "scheduler/scheduler_config.json",
            b'{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": true}',
            "use_karras_sigmas",
        ),
        ("text_encoder_3/model.safetensors", None, "text_encoder_3/model.safetensors is missing"),
        (
            "text_encoder/config.json",
            b'{"max_position_embeddings": 10, "hidden_size": "x"}',
            "does not describe a CLIPTextModelWithProjection",
        ),
        ("vae/config.json", b"{}", "vae/config.json lacks 'block_out_channels'"),
        ("tokenizer/tokenizer.json", b'{"a": 1}', "does not load as a CLIPTokenizer"),
        ("tokenizer_3/tokenizer.json", b"no", "tokenizer_3/tokenizer.json cannot be read as JSON"),
        ("dpdmd.json", b'{"stepz": 3}', "not of this version"),
        ("dpdmd.json", b'{"steps": "x"}', "steps is 'x', which must be a whole number, at least 1"),
    ],
)
def test_a_wrong_weight_folder_names_the_file(refused, broken, part, content, says):
    (broken / part).unlink()
    if content is not None:
        (broken / part).write_bytes(content)
    line = refused({"--teacher_id": str(broken)})
    assert says in line and (str(broken) in line)


@pytest.mark.parametrize("flag", ["--teacher_id", "--student_id"])
def test_a_run_in_place_of_a_model_is_named(refused, tiny_pipeline, tmp_path, flag):
    """`--model` of other programs takes them."""
    for step, content in (("student", "model_index.json"), ("lora", "pytorch_lora_weights.safetensors")):
        run = tmp_path / f"run_{step}"
        place = run / "ckpts" / "step_000600" / step
        place.mkdir(parents=True)
        (place / content).touch()
        (place.parent / "manifest.json").write_text("{}")
        (run / "ckpts" / "latest").symlink_to("step_000600")
        for given in (run, place.parent, *([place] if step == "lora" else [])):
            says = f"give the model in it, {given}" if step == "student" else "is a LoRA; merge it with python -m"
            assert refused({flag: str(given)}).startswith(f"{flag} {given}: ")
            assert says in refused({flag: str(given)})


def test_a_missing_file_says_where_to_get_it(refused, broken):
    (broken / "vae" / "config.json").unlink()
    line = refused({"--teacher_id": str(broken)})
    assert "--teacher_id" in line and "stabilityai/stable-diffusion-3.5-medium" in line


def test_the_small_worlds_weights_are_in_the_checkout(refused, monkeypatch, tmp_path):
    """They are on no hub: a program that is started in another folder does not find them."""
    monkeypatch.chdir(tmp_path)
    for flag, path in (("--teacher_id", "weights/tiny/sd35"), ("--clip_path", "weights/tiny/clip")):
        line = refused({flag: path})
        assert (
            line
            == f"{flag} {path}: no such folder; it comes with this code; start in the checkout, where these paths lead"
        )


def test_truncated_weights(refused, broken):
    weights = broken / TRANSFORMER
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is truncated (incomplete metadata" in refused({"--fake_id": str(broken)})


def test_pickled_weights_are_not_read(refused, broken):
    """A pickle is never opened: opening this one would create a file."""
    (broken / TRANSFORMER).unlink()
    trap = broken / "transformer" / "diffusion_pytorch_model.bin"
    trap.write_bytes(pickle.dumps(Trap(str(broken / "hacked"))))
    assert "is a pickle, which is not read" in refused({"--teacher_id": str(broken)})
    assert not (broken / "hacked").exists()


class Trap:
    """Create a file when unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_weights_of_another_model(refused, broken):
    weights = load_file(broken / TRANSFORMER)
    wrong = {**weights, "proj_out.weight": torch.zeros(4, 4)}
    save_file(wrong, broken / TRANSFORMER)
    assert "proj_out.weight has shape (4, 4)" in refused({"--teacher_id": str(broken)})
    save_file({name: value for name, value in weights.items() if "blocks.1." not in name}, broken / TRANSFORMER)
    assert "its weights have 1 blocks" in refused({"--teacher_id": str(broken)})
    save_file({name: value for name, value in weights.items() if name != "proj_out.weight"}, broken / TRANSFORMER)
    assert "its weights lack proj_out.weight" in refused({"--teacher_id": str(broken)})


def test_a_text_encoders_weights_are_checked(refused, broken):
    """test_model_folders.py covers the other components, families and programs."""
    file = broken / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    name = "text_model.embeddings.position_embedding.weight"
    save_file({**weights, name: torch.zeros(3, 3)}, file)
    line = refused({"--teacher_id": str(broken)})
    assert f"{name} has shape (3, 3)" in line
    save_file({other: value for other, value in weights.items() if other != name}, file)
    assert f"its weights lack {name}" in refused({"--teacher_id": str(broken)})
    file.rename(file.with_name("model.fp16.safetensors"))
    assert "is a variant" in refused({"--teacher_id": str(broken)})


def test_another_architecture(refused, broken):
    config = broken / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pos_embed_max_size": 99}))
    line = refused({"--student_id": str(broken)})
    assert "(pos_embed_max_size differ)" in line


def test_another_version_of_diffusers_writes_other_entries(refused, flags, broken):
    """An entry that is missing has its default, and one that the class does not know counts for nothing."""
    path = broken / "transformer" / "config.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "newer": 0.0}))
    command = [part for pair in {**flags, "--student_id": str(broken)}.items() for part in pair]
    preflight.check(config.parse(command))
    path.write_text(json.dumps({name: value for name, value in entries.items() if name != "sample_size"}))
    assert refused({"--student_id": str(broken)}).endswith("not the teacher's architecture (sample_size differ)")


def test_a_used_run_folder_needs_resume(refused, flags):
    run = Path(flags["--run_dir"])
    run.mkdir()
    (run / "metrics.jsonl").write_text("{}\n")
    assert "--resume_from_checkpoint latest" in refused({})
    assert (run / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    "files", [["config.yaml", "metrics.jsonl", "report.html"], [".lock", "metrics.jsonl", ".saved"]]
)
def test_a_used_run_folder_without_a_checkpoint_is_not_begun_anew(refused, flags, files):
    """The first has no run's files but somebody's; the second is of a run whose checkpoints are gone or elsewhere."""
    run = Path(flags["--run_dir"])
    run.mkdir()
    for name in files:
        (run / name).write_text("kept")
    line = refused({"--resume_from_checkpoint": "latest"})
    assert line.startswith(f"--run_dir {run}: is not empty, but {run / 'ckpts'} has no checkpoint to continue; give")
    assert {path.name: path.read_text() for path in run.iterdir()} == dict.fromkeys(files, "kept")


def test_a_checkpoint_of_another_run_is_not_continued_in_a_used_folder(refused, flags, tmp_path):
    saved(str(tmp_path / "other"), {})
    saved(flags["--run_dir"], {})
    wanted = tmp_path / "other" / "ckpts" / "step_000010"
    line = refused({"--resume_from_checkpoint": str(wanted)})
    assert line.startswith(f"--resume_from_checkpoint {wanted}: is not of the run in --run_dir {flags['--run_dir']}, ")


def test_an_odd_record_of_a_run_to_continue(refused, flags):
    run = Path(flags["--run_dir"])
    saved(str(run), {})
    (run / "metrics.jsonl").write_text('{"step": 1, "turn": ["x"]}\n')
    line = refused({"--resume_from_checkpoint": "latest"})
    assert line.startswith(f"{run / 'metrics.jsonl'}, line 1: no record of a run (needs a turn")


@pytest.mark.parametrize("resumed", [{}, {"--resume_from_checkpoint": "latest"}])
def test_a_folder_in_the_place_of_a_run_file(refused, flags, resumed):
    run = Path(flags["--run_dir"])
    saved(str(run), {})
    (run / "config.yaml").mkdir()
    assert refused(resumed).startswith(f"{run / 'config.yaml'}: is a folder, but the run writes a file there")


def unreadable(monkeypatch, place: Path) -> None:
    """Let the file system refuse what lies in a folder, which it never does for root."""

    def refuse(call: Callable) -> Callable:
        def refusing(path, *args, **options):
            if place in Path(path).parents:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *args, **options)

        return refusing

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))


@pytest.mark.parametrize("place", ["ckpts", "ckpts/step_000010"])
def test_a_run_to_continue_that_cannot_be_read(refused, flags, monkeypatch, place):
    """A folder that can be written but not listed would look like one without checkpoints."""
    run = Path(flags["--run_dir"])
    saved(str(run), {})
    if place == "ckpts":
        error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(run / place))
        monkeypatch.setattr(os, "listdir", lambda _: (_ for _ in ()).throw(error))
    else:
        unreadable(monkeypatch, run / place)
    line = refused({"--resume_from_checkpoint": "latest"})
    assert line.startswith(str(run / place)) and "cannot be read (Permission denied); make it readable, or" in line


def test_a_checkpoint_that_cannot_be_read(refused, monkeypatch, tmp_path):
    unreadable(monkeypatch, tmp_path / "private")
    wanted = tmp_path / "private" / "step_000010"
    line = refused({"--resume_from_checkpoint": str(wanted)})
    assert line == f"--resume_from_checkpoint {wanted}: cannot be read (Permission denied)"


def test_a_cache_that_cannot_be_read(refused, monkeypatch, tmp_path):
    unreadable(monkeypatch, tmp_path / "private")
    line = refused({"--cache_text_embeddings": str(tmp_path / "private" / "cache")})
    assert line.startswith(f"--cache_text_embeddings {tmp_path / 'private' / 'cache'}: cannot be ")


def test_the_memory_of_a_teacher_that_cannot_be_read(refused_by, monkeypatch, tmp_path):
    unreadable(monkeypatch, tmp_path / "private")
    teacher = str(tmp_path / "private" / "teacher")
    line = refused_by("dpdmd.doctor", doctor.main, ["--memory", "--teacher_id", teacher])
    assert line.startswith(f"--teacher_id {teacher}: ") and "Permission denied" in line


def test_a_name_that_no_file_system_takes(refused):
    assert "cannot be made (File name too long); give another folder" in refused({"--run_dir": "x" * 300})


def test_a_run_folder_that_no_flag_names_is_named_by_its_path(refused, flags, tmp_path):
    del flags["--run_dir"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("kept")
    line = refused({"--ckpt_dir": str(tmp_path / "run" / "ckpts")})
    assert "the run's folder, where the paths given lie," in line and (tmp_path / "run" / "notes.txt").exists()


def test_a_read_only_run_folder(refused, monkeypatch):
    monkeypatch.setattr("dpdmd.utils.paths.os.access", lambda path, mode: mode != os.W_OK)
    assert "is not writable" in refused({})


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--family", "sd35", "(it is of --family sdxl)"),
        ("--teacher_infer_steps", "1000", "--teacher_infer_steps 1000: this model has 1000 times: take fewer steps"),
        ("--max_sequence_length", "77", "--max_sequence_length 77: this model's prompts have 10 tokens"),
        ("--student_sigmas", "1.0,0.9,0.75,0.5,0.25", "5 sigmas, but the student takes 4"),
        ("--student_sigmas", "15,4,1.5,0.7", "must fall strictly, from 14.6146 (time 999) at most"),
        ("--height", "68", "--height 68: must be a multiple of 8"),
    ],
)
def test_a_wrong_value_for_sdxl_gets_one_line(refused, tiny_sdxl, flag, value, says):
    given = {"--family": "sdxl", "--teacher_id": str(tiny_sdxl), flag: value}
    assert says in refused(given)


def test_steps_that_sdxl_does_not_have(refused_by, tiny_sdxl, tmp_path):
    given = ["--model", str(tiny_sdxl), "--out", str(tmp_path / "out"), "--prompt", "a", "--height=64", "--width=64"]
    line = refused_by("dpdmd.generate", generate.main, [*given, "--steps", "1000"])
    assert line == "--steps 1000: this model has 1000 times: take fewer steps"
    folder = Path(shutil.copytree(tiny_sdxl, tmp_path / "sdxl"))
    (folder / "dpdmd.json").write_text('{"steps": 1000}')
    line = refused_by("dpdmd.generate", generate.main, [*given, "--model", str(folder)])
    assert line == f"--model {folder}: 1000 steps: this model has 1000 times: take fewer steps"


def saved(run: str, about: dict) -> None:
    """Write a checkpoint that holds only a manifest."""
    checkpoint = Path(run) / "ckpts" / "step_000010"
    checkpoint.mkdir(parents=True)
    write_manifest(checkpoint, about)


def test_a_resume_of_another_configuration_says_what_differs(refused, flags):
    progress = {"step": 10, "updates": {"student": 1, "fake": 9}, "global_batch_size": 4}
    theirs = {"k_anchor": 7, "teacher_id": flags["--teacher_id"], "student_id": flags["--teacher_id"]}
    saved(flags["--run_dir"], {"progress": progress, "config": theirs})
    line = refused({"--resume_from_checkpoint": "latest"})
    assert "another configuration" in line and "k_anchor: 5 here, 7 there" in line


def test_a_resume_on_other_prompts(refused, flags):
    """The prompts and their order count, not the name of the file."""
    prompts = Path(flags["--prompt_txt"])
    prompts.write_text("a blue circle\na red circle\n")
    progress = {"step": 10, "updates": {"student": 1, "fake": 9}, "global_batch_size": 4}
    progress["prompts"] = fingerprint(["a red circle", "a blue circle"])
    theirs = config.parse([part for pair in flags.items() for part in pair])
    theirs.data.prompt_txt, theirs.data.max_sequence_length = "elsewhere.txt", MAX_LENGTH
    saved(flags["--run_dir"], {"progress": progress, "config": theirs.as_dict()})
    line = refused({"--resume_from_checkpoint": "latest"})
    assert f"--prompt_txt {prompts}: not the prompts that" in line and "step_000010 was trained on" in line


def test_a_resume_with_another_global_batch(refused, flags):
    """The prompts of a step are a function of it."""
    prompts = ["a red circle", "a blue circle"]
    Path(flags["--prompt_txt"]).write_text("\n".join(prompts))
    progress = {"step": 10, "updates": {"student": 1, "fake": 9}, "global_batch_size": 4}
    theirs = config.parse([part for pair in flags.items() for part in pair])
    theirs.data.max_sequence_length = MAX_LENGTH
    saved(flags["--run_dir"], {"progress": progress | {"prompts": fingerprint(prompts)}, "config": theirs.as_dict()})
    line = refused({"--resume_from_checkpoint": "latest", "--batch_size": "2", "--grad_accum": "1"})
    assert "processes is 2, but the checkpoint's is 4: give values with the same product" in line


@pytest.mark.parametrize("place", [".", "ckpts"])
def test_a_run_in_place_of_its_checkpoint(refused, flags, place):
    saved(flags["--run_dir"], {})
    wanted, run = Path(flags["--run_dir"]) / place, Path(flags["--run_dir"])
    line = refused({"--resume_from_checkpoint": str(wanted)})
    assert line.endswith(
        f"is no checkpoint; give one in it, such as {run}/ckpts/step_000010, or latest for that of --run_dir"
    )


def test_a_checkpoint_of_another_version(refused, flags):
    saved(flags["--run_dir"], {"progress": {"iteration": 3}, "config": {}})
    assert "not of this version" in refused({"--resume_from_checkpoint": "latest"})


def test_bf16_where_the_device_cannot(refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "an old card")
    assert "--bf16: an old card has no bf16" in refused({"--bf16": ""})


def test_compiling_where_nothing_can(refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "needs a C++ compiler" in refused({"--compile": ""})


def test_more_processes_than_devices(refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert "process 3 of this machine has no device, there are 2" in refused({})
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert "has no device" not in refused({"--bf16": "", "--prompt_txt": "nowhere.txt"})


def test_a_tracker_that_is_not_installed(refused, monkeypatch):
    monkeypatch.setattr("dpdmd.training.preflight_machine.find_spec", lambda name: None)
    assert "--report_to wandb: the package is not installed" in refused({"--report_to": "wandb"})


def test_an_8_bit_optimizer_without_its_package(refused, monkeypatch):
    for module in ("dpdmd.training.preflight_machine", "dpdmd.config.precisions"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == "bitsandbytes" else True)
    line = refused({"--optimizer": "adamw_8bit"})
    assert "--optimizer adamw_8bit: the package bitsandbytes is not installed; pip install" in line
    for flag in ("--base_precision", "--text_encoder_precision"):
        line = refused({"--lora_rank": "4", flag: "nf4"})
        assert (
            f"{flag} nf4: the package bitsandbytes is not installed; pip install -e '.[memory]', or give int8" in line
        )


def test_a_quantised_base_where_it_cannot_be(refused, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    line = refused({"--lora_rank": "4", "--base_precision": "int8"})
    assert "--base_precision int8: not under FSDP" in line and "scripts/accelerate_ddp.yaml" in line
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "an older GPU")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda rank: (8, 0))
    line = refused({"--lora_rank": "4", "--base_precision": "fp8", "--compile": ""})
    assert "--base_precision fp8: compiled kernels on an older GPU have no fp8; give --base_precision int8" in line


def test_sharding_the_teacher_without_fsdp(refused):
    assert "the launch is NO, not FSDP" in refused({"--shard_teacher": "", "--report_to": "none"})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"--optimizer": "adamw_8bit"},
            "--optimizer adamw_8bit: its state cannot be sharded: 256 numbers share a scale",
        ),
        ({"--method": "dmd_gan"}, "--method dmd_gan: the launch is FSDP: sharded blocks expose no features"),
    ],
)
def test_whole_networks_under_fsdp_and_what_cannot_be_sharded(refused, monkeypatch, changes, says):
    """With LoRA only the frozen base is sharded, so neither is an error (tests/processes/test_lora_sharding.py)."""
    launch = SimpleNamespace(num_processes=1, distributed_type=DistributedType.FSDP, is_fsdp2=True)
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: launch)
    monkeypatch.setattr("dpdmd.training.preflight_machine.find_spec", lambda name: True)
    assert says in refused({**changes, "--report_to": "none"})


GENERATION = [
    ("--seed", "-1", "--seed -1: must be 0 to 4294967295"),
    ("--seed", "4294967296", "--seed 4294967296: must be 0 to 4294967295"),
    ("--steps", "0", "--steps 0: must be 1 to 1000"),
    ("--steps", "100000000", "--steps 100000000: must be 1 to 1000"),
    ("--guidance_scale", "nan", "--guidance_scale nan: must be a finite number, at least 0"),
    ("--guidance_scale", "inf", "--guidance_scale inf: must be a finite number"),
    ("--guidance_scale", "-1", "--guidance_scale -1.0: must be a finite number"),
    ("--height", "0", "--height 0: must be 1 to 65536"),
    ("--width", "-8", "--width -8: must be 1 to 65536"),
]


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        *GENERATION,
        ("--num_images", "0", "--num_images 0: must be 1 to 100000"),
        ("--batch_size", "0", "--batch_size 0: must be 1 to 65536"),
        ("--max_sequence_length", "0", "--max_sequence_length 0: must be 1 to 1024"),
        ("--base_precision", "fp4", "argument --base_precision: invalid choice: 'fp4'"),
        ("--prompt_txt", "prompts.txt", "--prompt, --prompt_txt or --geneval: give one of them"),
        ("--prompt", " ", "--prompt: is empty"),
        ("--prompt", "\udcff", "is not UTF-8"),
        ("--height", "44", "--height 44: must be a multiple of 8"),
        ("--out", "README.md", "README.md is a file; give a folder"),
        ("--out", "README.md/g", "README.md is a file; give a folder"),
        ("--out", LONG, "cannot be made (File name too long)"),
        ("--model", "nowhere", "neither a pipeline folder"),
        ("--revision", "", "argument --revision: '' is empty; give a value, or leave it out"),
        ("--revision", "v1", "is no id of the Hub (org/name); leave it out"),
        ("--variant", " ", "argument --variant: ' ' is empty"),
        ("--variant", "../fp16", "has no weights of --variant ../fp16 (it has: no variant); leave the flag out"),
        ("--cache_dir", "", "argument --cache_dir: '' is empty"),
    ],
)
def test_generate_rejects_wrong_input(refused_by, tiny_pipeline, tmp_path, monkeypatch, flag, value, says):
    monkeypatch.chdir(ROOT)
    given = ["--model", str(tiny_pipeline), "--out", str(tmp_path / "out"), "--prompt", "a", f"{flag}={value}"]
    assert says in refused_by("dpdmd.generate", generate.main, given)
    assert not (tmp_path / "out").exists()


def test_generate_compares_bases_only_where_there_are_two(refused_by, tiny_pipeline, tmp_path):
    given = ["--model", str(tiny_pipeline), "--out", str(tmp_path / "out"), "--prompt", "a"]
    line = refused_by("dpdmd.generate", generate.main, [*given, "--beside_bf16"])
    assert "--beside_bf16: nothing is quantised; give --base_precision fp8, int8 or nf4 with it" in line
    network = tmp_path / "network.safetensors"
    shutil.copyfile(tiny_pipeline / "transformer" / "diffusion_pytorch_model.safetensors", network)
    alone = ["--model", str(network), "--base_model", str(tiny_pipeline), *given[2:], "--base_precision", "int8"]
    assert "--base_precision int8: not possible with a network alone; export it" in refused_by(
        "dpdmd.generate", generate.main, alone
    )


def test_generate_does_not_mix_the_images_of_two_calls(refused_by, tiny_pipeline, tmp_path):
    for name in ("00000_000.png", "00000_002.png", "00001_000.png", "grid.png"):
        (tmp_path / name).touch()
    given = ["--model", str(tiny_pipeline), "--out", str(tmp_path), "--prompt", "a", "--num_images", "2"]
    line = refused_by("dpdmd.generate", generate.main, given)
    assert "2 images of an earlier call would stay between the new ones, such as 00000_002.png" in line


@pytest.mark.parametrize("name", ["grid.png", "00000_001.png"])
def test_generate_overwrites_only_its_own_images(refused_by, tiny_pipeline, tmp_path, name):
    given = ["--model", str(tiny_pipeline), "--out", str(tmp_path), "--prompt", "a", "--num_images", "2"]
    for own in ("grid.png", "00000_000.png", "00000_001.png"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / own, GENERATED)
    assert generate.check(generate.build_parser().parse_args(given)) == ["a"]
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    line = refused_by("dpdmd.generate", generate.main, given)
    assert f"1 file that dpdmd.generate did not write would be overwritten, such as {name}; give another" in line


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        *GENERATION,
        ("--num_samples", "0", "--num_samples 0: must be 1 to 100000"),
        ("--num_samples", "1", "--num_samples 1: diversity compares images of a prompt; give at least 2"),
        ("--images_per_prompt", "2", "--images_per_prompt 2: --images is not given; leave it out"),
        ("--gen_batch_size", "0", "--gen_batch_size 0: must be 1 to 65536"),
        ("--output_dir", "README.md", "README.md is a file; give a folder"),
        ("--output_dir", "README.md/g", "README.md is a file; give a folder"),
        ("--dino_path", "dinov3-vitl16-pretrain-lvd1689m", "huggingface.co/facebook/dinov3-vitl16-pretrain-lvd1689m ("),
        ("--dino_path", "dinov2-base", "get it from https://huggingface.co/facebook/dinov2-base ("),
    ],
)
def test_root_programs_reject_wrong_input(refused_by, diversity, tmp_path, monkeypatch, flag, value, says):
    monkeypatch.chdir(ROOT)
    given = [*diversity, f"{flag}={value}"]
    assert says in refused_by("test_diversity.py", program("test_diversity.py"), given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["nan", "-1"])
def test_a_wrong_residual_scale(refused_by, value, tmp_path):
    given = ["--output_dir", str(tmp_path / "out"), f"--maniqa_scale={value}"]
    assert "--maniqa_scale" in refused_by("test_quality.py", program("test_quality.py"), given)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"00000_000.png": b"no", "00000_001.png": b""}, "none of its 2 images can be read"),
        ({"a.png": None, "b.png": None}, "no two images are of one prompt, and diversity compares such (a.png has no"),
        ({"0.png": None, "1.png": None}, "diversity compares such (each number is there once)"),
        ({"0_0.png": None, "0_1.png": b"no", "1_0.png": None}, "of no prompt can two images be read, and diversity "),
        ({"a.txt": b""}, "no image in it"),
    ],
)
def test_images_that_cannot_be_scored(refused_by, diversity, tmp_path, files, says):
    (tmp_path / "pictures").mkdir()
    for name, content in files.items():
        if content is None:
            Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / name)
        else:
            (tmp_path / "pictures" / name).write_bytes(content)
    extra = ["--model", "", "--images", str(tmp_path / "pictures"), "--prompts_txt", ""]
    assert says in refused_by("test_diversity.py", program("test_diversity.py"), [*diversity, *extra])
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_of_images(refused_by, diversity, tmp_path):
    (tmp_path / "out" / "pictures").mkdir(parents=True)
    (tmp_path / "out" / "pictures" / "pictures.json").write_text("{")
    line = refused_by("test_diversity.py", program("test_diversity.py"), diversity)
    assert str(tmp_path / "out" / "pictures" / "pictures.json") in line and "give another folder" in line


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("README.md", "exists already; give another"),
        ("README.md/g", "README.md is a file; give a folder"),
    ],
)
def test_export_rejects_wrong_input(refused_by, tiny_pipeline, monkeypatch, out, says):
    monkeypatch.chdir(ROOT)
    given = ["--model", str(tiny_pipeline), "--out", out]
    assert says in refused_by("dpdmd.export", export.main, given)


def test_read_only_folders(refused_by, tiny_pipeline, diversity, tmp_path, monkeypatch):
    monkeypatch.setattr("dpdmd.utils.paths.os.access", lambda path, mode: mode != os.W_OK)
    out = tmp_path / "read_only" / "out"
    given = ["--model", str(tiny_pipeline), "--out", str(out)]
    for name, main, command, flag in (
        ("dpdmd.generate", generate.main, [*given, "--prompt", "a"], "--out"),
        ("dpdmd.export", export.main, given, "--out"),
        ("test_diversity.py", program("test_diversity.py"), [*diversity, "--output_dir", str(out)], "--output_dir"),
    ):
        line = refused_by(name, main, command)
        assert line == f"{flag} {out}: {tmp_path} is not writable"


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--images_per_prompt", "0"], "--images_per_prompt 0: must be 1 to 100000"),
        (
            ["--images", "images.csv", "--images_per_prompt", "2"],
            "the CSV file of --images says which image is of which",
        ),
        (["--images", "images.csv"], "prompts.txt: the CSV file of --images has the prompts; leave it out"),
        (["--images", "images.csv", "--prompts_txt", ""], "images.csv: line 3: none.png: no such file"),
        (
            ["--images", ".", "--images_per_prompt", "3"],
            "there are 2 images in ., but 1 prompts have 3; give the",
        ),
    ],
)
def test_images_and_prompts_that_do_not_fit(refused_by, diversity, tmp_path, monkeypatch, extra, says):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "images.csv").write_text("file,prompt\na.png,a red circle\nnone.png,a cross\n")
    given = [*diversity, "--model", "", *extra]
    assert says in refused_by("test_diversity.py", program("test_diversity.py"), given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ([], "--model {model}: has no meaning with --images, since no model generates images; leave one out"),
        (["--base_model", "b"], "--model {model}: has no meaning with"),
        (["--model", "", "--base_model", "b"], "--base_model b: has no meaning with"),
        (["--model", "", "--num_samples", "9"], "--num_samples 9: has no"),
        (["--model", "", "--gen_batch_size", "4"], "--gen_batch_size 4: has no"),
        (["--model", "", "--steps", "5"], "--steps 5: has no"),
        (["--model", "", "--guidance_scale", "0"], "--guidance_scale 0.0: has no"),
        (["--model", "", "--size", "64x64"], "--size 64x64: has no"),
        (["--model", "", "--width", "64"], "--width 64: has no"),
    ],
)
def test_flags_of_generated_images_beside_given_ones(refused_by, diversity, tmp_path, extra, says):
    """Also with the default's value; the variables of the program's file may stay as they are."""
    images = tmp_path / "pictures"
    images.mkdir()
    for sample in range(2):
        Image.new("RGB", (8, 8)).save(images / f"0_{sample}.png")
    given = [*diversity, "--images", str(images), *extra]
    line = refused_by("test_diversity.py", program("test_diversity.py"), given)
    assert line.startswith(says.format(model=diversity[1]))


def test_images_that_were_made_of_other_prompts(refused_by, tmp_path):
    """Their pictures.json knows; the numbers of the files alone would fit."""
    pictures, prompts = tmp_path / "pictures", tmp_path / "prompts.txt"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "00000_000.png")
    (pictures / "pictures.json").write_text(json.dumps({"prompts": fingerprint(["a green shape"])}))
    prompts.write_text("a red circle\na cross\n")
    given = ["--images", str(pictures), "--output_dir", str(tmp_path / "out"), "--prompts_txt", str(prompts)]
    line = refused_by("test_quality.py", program("test_quality.py"), given)
    assert line.startswith(f"--prompts_txt {prompts}: the images in {pictures} are of other prompts (pictures.json);")


def test_prompts_are_given_also_with_the_value_of_the_default(refused_by, diversity, tmp_path, monkeypatch):
    """With a CSV file any value is refused, the default's too."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "images.csv").write_text("file,prompt\na.png,a red circle\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts_eval.txt").write_text("a red circle\n")
    given = [*diversity, "--model", "", "--images", "images.csv", "--prompts_txt", "data/prompts_eval.txt"]
    line = refused_by("test_diversity.py", program("test_diversity.py"), given)
    assert line == "--prompts_txt data/prompts_eval.txt: the CSV file of --images has the prompts; leave it out"
