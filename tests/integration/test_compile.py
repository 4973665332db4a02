"""`--compile`: the eager trajectory but for the order of sums, under the same names, with gradient checkpointing."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file

from dpdmd import train
from dpdmd.methods import networks
from dpdmd.models.base import TextEmbedding
from dpdmd.models.compilation import check_compiler, compile_blocks
from dpdmd.models.sd35.family import SD35
from dpdmd.utils.text_files import read_json

CPU = torch.device("cpu")
MEASURED = {"seconds", "samples_per_second", "memory_gb"}
try:
    check_compiler(CPU)
    NO_COMPILER = ""
except ValueError as error:
    NO_COMPILER = str(error)


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_block(tiny_pipeline, tmp_path_factory) -> Path:
    """A teacher of one block: inductor takes seconds for each graph."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("weights") / "one_block"))
    config = SD3Transformer2DModel.load_config(folder / "transformer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SD3Transformer2DModel.from_config({**config, "num_layers": 1, "dual_attention_layers": ()})
    network.save_pretrained(folder / "transformer")
    return folder


@pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER)
@pytest.mark.timeout(600)  # on an empty cache inductor first compiles torch's own headers
def test_a_compiled_run_is_the_eager_run(short_run, one_block, tmp_path):
    """Two cycles, exported under the same names. Fused kernels sum in another order, which shows in fp32's seventh
    digit; AdamW then divides by |g|, so that a weight whose gradient is nearly 0 may move the other way, by up to 2e-3
    a step."""
    flags = [*short_run, "--teacher_id", str(one_block), "--per_train_fake_num", "1", "--max_steps", "4"]
    for name, more in (("eager", []), ("compiled", ["--compile"])):
        assert train.main([*flags, "--vis_every", "0", "--run_dir", str(tmp_path / name), *more]) == 0
    for ours, theirs in zip(records(tmp_path / "compiled"), records(tmp_path / "eager"), strict=True):
        for name in theirs.keys() - MEASURED - {"turn"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), (name, theirs["step"])
    folders = [tmp_path / name / "ckpts/step_000004/student/transformer" for name in ("compiled", "eager")]
    ours, theirs = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in folders)
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 5e-3
    assert torch.stack([(ours[name] - theirs[name]).abs().mean() for name in ours]).mean() < 1e-5
    assert read_json(folders[0] / "config.json") == read_json(folders[1] / "config.json")


@pytest.fixture(scope="module")
def network(tiny_pipeline) -> torch.nn.Module:
    return SD35(CPU, torch.float32).load_network(tiny_pipeline, torch.float32)


def prediction_and_gradients(network: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    width, pooled = network.config.joint_attention_dim, network.config.pooled_projection_dim
    text = TextEmbedding(torch.randn(2, 7, width, generator=draw), torch.randn(2, pooled, generator=draw))
    z, sigma = torch.randn(2, network.config.in_channels, 8, 8, generator=draw), torch.tensor([0.9, 0.3])
    prediction = SD35(CPU, torch.float32).predict(network, z, sigma, text)
    prediction.square().mean().backward()
    return prediction.detach(), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_alone_are_compiled_each_as_one_graph(network, checkpointing):
    """With a backend that counts graphs and runs them as they are: one call of a block is one graph, in the backward
    pass's recomputation too, and every number is the eager one's."""
    torch._dynamo.reset()
    eager, compiled, calls = copy.deepcopy(network), copy.deepcopy(network), []

    def backend(graph, _):
        def run(*arguments):
            calls.append(graph)
            return graph.forward(*arguments)

        return run

    compile_blocks(compiled, SD35.block_classes, backend)
    if checkpointing:
        eager.enable_gradient_checkpointing()
        compiled.enable_gradient_checkpointing()
    blocks = [name for name, module in compiled.named_modules() if module._compiled_call_impl is not None]
    assert blocks == [f"transformer_blocks.{index}" for index in range(network.config.num_layers)]
    assert list(compiled.state_dict()) == list(network.state_dict())
    theirs, ours = prediction_and_gradients(eager), prediction_and_gradients(compiled)
    assert len(calls) == len(blocks) * (2 if checkpointing else 1)
    assert torch.equal(ours[0], theirs[0]) and ours[1].keys() == theirs[1].keys()
    assert all(torch.equal(ours[1][name], value) for name, value in theirs[1].items())


@pytest.mark.parametrize("more", [[], ["--lora_rank", "2"], ["--lora_rank", "2", "--gradient_checkpointing"]])
def test_every_call_of_a_run_fits_its_graphs(short_run, tmp_path, monkeypatch, more):
    """A cycle with graphs that are run as they are, whole networks and roles of one base: the eager bits. A graph that
    took another adapter for its own, or a call that broke it in two, would show."""
    torch._dynamo.reset()
    monkeypatch.setattr(
        networks, "compile_blocks", lambda network, blocks, **more: compile_blocks(network, blocks, "eager", **more)
    )
    flags = [*short_run, "--vis_every", "0", "--max_steps", "7", *more]
    for name, compiled in (("eager", []), ("compiled", ["--compile"])):
        assert train.main([*flags, "--run_dir", str(tmp_path / name), *compiled]) == 0
    kept = [
        [{key: value for key, value in record.items() if key not in MEASURED} for record in records(tmp_path / name)]
        for name in ("compiled", "eager")
    ]
    assert kept[0] == kept[1]
    weights = [sorted((tmp_path / name / "ckpts/step_000007").rglob("*.safetensors")) for name in ("compiled", "eager")]
    for paths in zip(*weights, strict=True):
        ours, theirs = map(load_file, paths)  # not their bytes: peft's metadata lists its targets in any order
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"--compile: it needs a C[+]{2} compiler, and there is no no-such-compiler"):
        check_compiler(CPU)
    monkeypatch.setattr("dpdmd.models.compilation.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--compile: on a GPU it needs triton"):
        check_compiler(torch.device("cuda"))
