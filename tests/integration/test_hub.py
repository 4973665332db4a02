"""Models by their id on the Hub: the real client against a server on the loopback interface."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from bad_input import one_line, program
from edit_models import DIFFUSION, MODEL, as_variant
from huggingface_hub import constants
from safetensors.torch import load_file

from dpdmd import config, export, generate, train
from dpdmd.config.hub_flags import HubOptions
from dpdmd.models.hub_models import Source, locate
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import DEFAULTS_FILE
from dpdmd.sampling.load_model import load_sampler
from dpdmd.training import preflight
from dpdmd.utils.file_digests import sha256_of_files

TOKEN = "hf_secretsecretsecret"
A, B = "a" * 40, "b" * 40
WEIGHTS = (f"transformer/{DIFFUSION}", f"vae/{DIFFUSION}", f"text_encoder/{MODEL}", f"text_encoder_2/{MODEL}")


@pytest.fixture
def small(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """Return a pipeline folder with what real repositories hold beside it."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "small"))
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    (folder / "sd3.5_small.safetensors").write_bytes(b"\0" * 5000)  # a single-file checkpoint
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\0" * 3000)
    shutil.copy(folder / "text_encoder" / MODEL, folder / "text_encoder" / "model.fp16.safetensors")
    return folder


def find(value: str = "org/small", *, revision: str | None = None, variant: str | None = None, download: bool = True):
    source = Source("--teacher_id", value, revision=revision, variant=variant)
    return locate(source, HubOptions(download=download))


def error_of(*args: object, **options: object) -> str:
    with pytest.raises((ValueError, OSError)) as raised:
        find(*args, **options)
    message = str(raised.value)
    assert message.startswith("--") and "\n" not in message and TOKEN not in message
    return message


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_family_is_found_by_its_id(hub, tiny_folder, family):
    hub.add("org/small", tiny_folder(family))
    sampled = []
    for folder in (tiny_folder(family), find().path):
        sampler, encoder = load_sampler(folder, torch.device("cpu"), steps=1, height=64, width=64)
        sampled.append(sampler.images(encoder.encode(["a red circle"]), [(0, 0)], 0))
    assert torch.equal(*sampled)


def test_only_the_pipelines_own_files_are_fetched_once(hub, small, capsys):
    """The size comes first. The second call, and one without --download, send no request."""
    hub.add("org/small", small)
    found = find()
    said = capsys.readouterr().err
    assert said.startswith(f"downloading org/small at {A[:12]}: ") and " MB, to " in said.splitlines()[0]
    assert found.recorded == f"org/small@{A}" and found.path.name == A
    assert sorted(set(hub.fetched())) == [DIFFUSION, MODEL] and len(hub.fetched()) == 5
    assert not (found.path / "sd3.5_small.safetensors").exists()
    assert (found.path / "README.md").read_text() == (small / "README.md").read_text()
    assert (found.path / "vae" / DIFFUSION).is_symlink()
    digests = [sha256_of_files([place / f"vae/{DIFFUSION}"]) for place in (found.path, small)]
    assert digests[0] == digests[1]
    hub.requests.clear()
    assert find() == find(download=False) == find(f"org/small@{A}", download=False) == found and hub.requests == []


def test_without_download_one_line_names_id_flag_and_cache(hub, small):
    hub.add("org/small", small)
    says = f"--teacher_id org/small: no such folder; get it from {hub.url}/org/small with --download"
    line = error_of(download=False)
    assert line.startswith(says) and "not in the cache" in line and constants.HF_HUB_CACHE in line
    assert hub.requests == []


def test_a_folder_of_that_name_comes_first(hub, small, tmp_path):
    hub.add("org/small", small)
    (tmp_path / "org" / "small").mkdir(parents=True)
    assert find().path == Path("org/small") and find().recorded is None and hub.requests == []
    shutil.rmtree(tmp_path / "org" / "small")
    assert find().recorded is None  # a path in the folder org
    assert find("org/small@main").recorded == f"org/small@{A}"


def test_a_broken_connection_is_resumed_where_it_broke(hub, small, monkeypatch):
    hub.add("org/small", small)
    size = (small / f"transformer/{DIFFUSION}").stat().st_size
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # 10 MB, more than a small model has
    hub.break_after[DIFFUSION] = 30_000
    found = find()
    ranges = [line for line in hub.requests if line.startswith("GET /cdn/") and "bytes=" in line]
    assert len(ranges) == 1 and ranges[0].endswith("bytes=30000-")
    assert (found.path / f"transformer/{DIFFUSION}").stat().st_size == size
    for name in WEIGHTS:
        assert (found.path / name).read_bytes() == (small / name).read_bytes()


def test_an_interrupted_download_goes_on_with_what_is_missing(hub, small, capsys):
    """As after a kill: whole files stay, and the cache does not pass for complete."""
    hub.add("org/small", small)
    found = find()
    for name in (f"vae/{DIFFUSION}", "tokenizer_2/tokenizer_config.json"):
        (found.path / name).resolve().unlink()
        (found.path / name).unlink()
    line = error_of(download=False)
    assert "incomplete in the cache: 2 of" in line and "such as tokenizer_2/tokenizer_config.json" in line
    hub.requests.clear()
    capsys.readouterr()
    assert find() == found and hub.fetched() == [DIFFUSION]
    assert "2 files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "token", "says"),
    [
        ({"gated": True}, None, "is gated: accept its licence on URL/org/small, then log in with `hf auth login`"),
        ({"token": TOKEN}, None, "no repository URL/org/small, or it is private: log in with `hf auth login`"),
        ({"token": TOKEN}, "hf_wrongwrongwrong", "URL/org/small answers 401, the token may not read it: log in"),
        ({"token": "other"}, TOKEN, "URL/org/small answers 401"),
    ],
)
def test_what_may_not_be_read_says_why(hub, small, monkeypatch, options, token, says):
    hub.add("org/small", small, **options)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    line = error_of()
    assert says.replace("URL", hub.url) in line and "wrong" not in line


def test_a_token_opens_a_private_repository(hub, small, monkeypatch):
    hub.add("org/small", small, token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert find().recorded == f"org/small@{A}"


def test_unknown_names_and_a_hub_that_is_down(hub, small, monkeypatch):
    hub.add("org/small", small)
    assert f"no such folder, and no repository {hub.url}/org/other, or it is private" in error_of("org/other")
    assert f"{hub.url}/org/small has no revision 'v2'" in error_of("org/small@v2")
    assert "--revision v1: --teacher_id org/small@main has one already" in error_of("org/small@main", revision="v1")
    assert "--revision v1: --teacher_id small is no id of the Hub" in error_of("small", revision="v1")
    hub.broken = 404
    assert f"{hub.url}/org/small answers 404; the same command goes on" in error_of()
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:password@127.0.0.1:9")
    line = error_of()
    assert "http://127.0.0.1:9/org/small cannot be read (ConnectError" in line and "password" not in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing is fetched: unset it" in error_of()


def test_a_full_disk_is_no_hub_that_is_down(hub, small, monkeypatch):
    """A write that fails names no file."""
    hub.add("org/small", small)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(OSError, match=f"No space left on device, while the cache got {hub.url}/org/small"):
        find()


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, small, tiny_pipeline):
    repository = hub.add("org/small", small)
    repository.commits[B], repository.refs["v1"] = tiny_pipeline, B
    assert find(revision="v1").recorded == find("org/small@v1").recorded == f"org/small@{B}"
    assert find("org/small", revision=B, download=False).path.name == B
    assert find().path.name == A


def test_a_full_disk_is_an_error_before_anything_is_fetched(hub, small, monkeypatch):
    hub.add("org/small", small)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
    assert "give another --cache_dir" in error_of() and hub.fetched() == []


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("local", [True, False])
def test_a_variant_loads_like_any_folder(hub, tiny_pipeline, tmp_path, keep, local):
    """Alone and beside full weights, from the Hub and from a folder: only the variant's files are read or fetched."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "halves"))
    as_variant(folder, keep=keep)
    hub.add("org/halves", folder)
    found = find(str(folder) if local else "org/halves", variant="fp16")
    assert found.recorded == (str(folder) if local else f"org/halves@{A}")
    for name in WEIGHTS:
        assert all(value.dtype == torch.float16 for value in load_file(found.path / name).values())
    assert all(".fp16." in name for name in hub.fetched()) and len(hub.fetched()) == (0 if local else 5)
    hub.requests.clear()
    assert find(str(folder) if local else "org/halves", variant="fp16", download=False) == found
    if not keep and not local:
        assert "has its weights only as fp16; give --variant fp16" in error_of("org/halves")
    images = tmp_path / "images"
    size = ["--steps", "2", "--num_images", "1", "--prompt", "a", "--out", str(images)]
    assert generate.main(["--model", str(folder) if local else "org/halves", "--variant", "fp16", *size]) == 0


@pytest.mark.parametrize("form", ["model.fp16-{}.safetensors", "model-{}.fp16.safetensors", "model-{}.safetensors"])
def test_shards_with_an_index_of_any_name(hub, tiny_pipeline, tmp_path, form):
    from safetensors.torch import save_file

    folder, variant = Path(shutil.copytree(tiny_pipeline, tmp_path / "shards")), "fp16" if "fp16" in form else None
    if variant:
        as_variant(folder, WEIGHTS, keep=False)
    file = folder / "text_encoder_3" / MODEL
    weights = load_file(file)
    file.unlink()
    names = [form.format(f"{number:05d}-of-00002") for number in (1, 2)]
    placed = {}
    for number, name in enumerate(names):
        part = {key: weights[key] for key in sorted(weights)[number::2]}
        save_file(part, file.with_name(name), {"format": "pt"})
        placed |= dict.fromkeys(part, name)
    index = f"model.safetensors.index.{'fp16.' if variant else ''}json"
    file.with_name(index).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    hub.add("org/shards", folder)
    found = find("org/shards", variant=variant)
    size = ["--steps", "2", "--num_images", "1", "--prompt", "a", "--out", str(tmp_path / "images")]
    assert generate.main(["--model", str(found.path), *size]) == 0
    missing = found.path / "text_encoder_3" / names[1]
    missing.resolve().unlink()
    assert "incomplete in the cache: " in error_of("org/shards", variant=variant, download=False)
    file.with_name(names[1]).unlink()
    hub.add("org/fewer", folder)
    assert "text_encoder_3/model" in error_of("org/fewer", variant=variant)
    assert "is there with 1 of its 2: incomplete" in error_of("org/fewer", variant=variant)


def test_a_mixed_set_is_an_error(hub, small):
    """The repository has one text encoder as fp16, and the rest not."""
    hub.add("org/small", small)
    line = error_of(variant="fp16")
    assert "has no weights of --variant fp16 (it has: no variant); leave the flag out" in line
    assert hub.fetched() == []
    assert "has no weights of --variant fp16" in error_of(str(small), variant="fp16")


def test_a_teacher_of_the_cache_has_the_defaults_of_its_model(hub, tiny_folder, short_run, capsys):
    """By its files, whatever its name is. Before they are fetched, nobody knows the model."""
    hub.add("org/finetuned", tiny_folder("sd3_medium")).refs["v1"] = A
    command = [*short_run, "--teacher_id", "org/finetuned"]
    says = "--teacher_id org/finetuned: was fetched, and its files show that it is a model with defaults of its own"
    assert train.main([*command, "--download"]) == 2 and says in capsys.readouterr().err
    find("org/finetuned@v1")
    for more in ([], ["--revision", "v1"], ["--cache_dir", constants.HF_HUB_CACHE]):
        assert config.parse([*command, *more]).method.teacher_guidance_scale == 7.0
    assert config.parse([*command, "--revision", "v2"]).method.teacher_guidance_scale == 3.5


def test_a_distilled_teacher_is_known_by_the_name_of_its_repository(hub, small, short_run):
    hub.add("org/SD3.5-Lightning", small)
    chosen = config.parse([*short_run, "--teacher_id", "org/SD3.5-Lightning", "--download"])
    assert any("its name has the word Lightning" in line for line in preflight.check(chosen).warnings)


def test_a_run_records_the_commit_and_resumes_from_it(hub, small, tiny_pipeline, short_run, tmp_path, capsys):
    """A moved branch changes nothing; with another --revision it is an error."""
    hub.add("org/small", small)
    run = tmp_path / "run"
    command = [*short_run, "--teacher_id", "org/small", "--run_dir", str(run), "--ckpt_every", "2", "--vis_every", "0"]
    assert train.main([*command, "--download", "--max_steps", "2"]) == 0
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["model"]["teacher_id"] == f"org/small@{A}" and written["model"]["student_id"] is None
    assert written["hub"] == {"revision": None, "variant": None, "cache_dir": None, "download": True}
    manifest = json.loads((run / "ckpts/latest/manifest.json").read_text())
    assert manifest["config"]["model"]["student_id"] == f"org/small@{A}"
    assert str(tmp_path / "cache") not in (run / "config.yaml").read_text()

    hub.add("org/small", tiny_pipeline, B)
    assert find("org/small@main", download=False).path.name == A
    shutil.rmtree(tmp_path / "cache/models--org--small/refs")
    assert find().path.name == B  # main has moved, and the cache knows it
    hub.requests.clear()
    resumed = [*command, "--max_steps", "4", "--resume_from_checkpoint", "latest"]
    assert train.main(resumed) == 0 and hub.requests == []
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["teacher_id"] == f"org/small@{A}"
    capsys.readouterr()
    line = one_line("dpdmd.train", train.main, [*resumed, "--revision", "main"], capsys)
    assert f"teacher_id: 'org/small@{B}' here, 'org/small@{A}' there" in line and "was the model" not in line
    again = ["--config", str(run / "config.yaml"), "--run_dir", str(tmp_path / "again"), "--max_steps", "1"]
    assert train.main(again) == 0 and hub.requests == []


def test_a_published_lora_finds_its_base_and_a_published_student_its_defaults(hub, small, short_run, tmp_path, capsys):
    """The repository of a LoRA names the teacher by id and commit; `dpdmd.generate` fetches both."""
    hub.add("org/small", small)
    run = tmp_path / "run"
    command = [*short_run, "--teacher_id", "org/small", "--download", "--run_dir", str(run), "--max_steps", "1"]
    assert train.main([*command, "--lora_rank", "2", "--vis_every", "0"]) == 0
    lora = run / "ckpts/latest/lora"
    defaults = json.loads((lora / DEFAULTS_FILE).read_text())
    assert (defaults["base"], defaults["base_revision"], defaults["base_from_here"]) == ("org/small", A, None)
    hub.add("me/lora", lora)
    capsys.readouterr()
    sample = ["--steps", "2", "--num_images", "1", "--prompt", "a red circle"]
    assert generate.main(["--model", str(run), *sample, "--out", str(tmp_path / "own")]) == 0
    shutil.rmtree(tmp_path / "cache")
    hub.requests.clear()
    line = one_line(
        "dpdmd.generate", generate.main, ["--model", str(run), *sample, "--out", str(tmp_path / "x")], capsys
    )
    assert f"--model {lora.resolve()}: its base org/small@{A}: no such folder; get it from" in line.replace(
        str(lora), str(lora.resolve())
    )
    assert generate.main(["--model", "me/lora", "--download", *sample, "--out", str(tmp_path / "theirs")]) == 0
    images = [(tmp_path / name / "00000_000.png").read_bytes() for name in ("own", "theirs")]
    assert images[0] == images[1]
    assert "comfyui_lora.safetensors" not in hub.fetched()

    assert export.main(["--model", "me/lora", "--out", str(tmp_path / "merged")]) == 0
    merged = json.loads((tmp_path / "merged" / DEFAULTS_FILE).read_text())
    assert merged["base"] is None and merged["base_revision"] is None
    hub.add("me/student", tmp_path / "merged")
    assert generate.main(["--model", "me/student", "--download", *sample, "--out", str(tmp_path / "student")]) == 0


def test_scorers_come_from_the_hub(hub, tiny_pipeline, tiny_scorers, tmp_path, capsys):
    """In a root program, by id and commit; a checkpoint's flag takes the id of its repository."""
    for name in ("clip", "dinov2", "pickscore", "ImageReward"):
        hub.add(f"org/{name}", Path(tiny_scorers["clip_path"]).parent / name)
    hub.add("org/small", tiny_pipeline)
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    given = ["--model", "org/small", "--prompts_txt", "prompts.txt", "--steps", "2", "--output_dir", "out"]
    main = program("test_preference.py")
    scorers = ["--pick_processor_path", "org/pickscore", "--pick_model_path", f"org/pickscore@{A}"]
    scorers += ["--clip_score_path", "org/clip", "--ir_model_path", "org/ImageReward"]
    scorers += ["--ir_med_config", "org/ImageReward", "--ir_tokenizer_path", "org/ImageReward"]
    line = one_line("test_preference.py", main, [*given, *scorers], capsys)
    assert line.startswith("--model org/small: no such folder; get it from")
    assert main([*given, *scorers, "--download"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["metrics"]) >= {"imagereward", "pickscore", "clip_score"}
    assert summary["settings"]["model"].endswith(A)
    hub.requests.clear()
    assert main([*given, *scorers]) == 0 and hub.requests == []


def test_a_token_is_nowhere_in_a_run(hub, small, short_run, tmp_path, monkeypatch, capfd):
    hub.add("org/small", small, token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = tmp_path / "run"
    command = [*short_run, "--teacher_id", "org/small", "--download", "--run_dir", str(run), "--max_steps", "1"]
    assert train.main(command) == 0
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err
    for path in run.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()
