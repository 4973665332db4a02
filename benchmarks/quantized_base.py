"""A frozen base in fp8, int8 and nf4 beside bf16: relative error of the guided prediction, memory, and loading.

    python benchmarks/quantized_base.py                                           # small models
    python benchmarks/quantized_base.py --real_size sd35 --size 128 --tokens 64 --work outputs/real

The small models are the bundled small world, which is trained, and those of the tests, one for each family.
`--real_size` writes the network of a family's official model with random weights (sd35: 5 GB) and deletes it at the
end. Each network is loaded in a process of its own. nf4 is left out if bitsandbytes is not installed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from real_size_folder import write_weights
from result_file import result_head, write_result

from dpdmd.config.precisions import NF4, PRECISIONS, UNQUANTIZED, Precisions
from dpdmd.models.base import TextEmbedding
from dpdmd.models.hollow import write_hollow
from dpdmd.models.layout import Layout
from dpdmd.models.quantization import guided_error
from dpdmd.models.registry import LAYOUTS, family_class
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.models.tensor_files import open_weights
from dpdmd.models.weight_files import DIFFUSERS_STEM
from dpdmd.utils.tables import markdown_table

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PROMPT = "a red circle"
STEPS = 30  # of the teacher's grid
COLUMNS = ("model", "base in", "relative error", "weights, MB", "by the estimate, MB", "loading, s", "peak, MB")
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def anonymous_bytes() -> int:
    """Return the memory of this process without pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class PeakMemory(threading.Thread):
    """Watches this process's memory until `stop`, and returns how far it rose."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before = self.peak = anonymous_bytes()
        self.running = True
        self.start()

    def run(self) -> None:
        while self.running:
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.01)

    def stop(self) -> int:
        self.running = False
        self.join()
        return self.peak - self.before


def measure(family_name: str, folder: Path, precision: str, kind: str, size: int, tokens: int) -> dict[str, float]:
    """Load one network, and return what it took and its error."""
    dtype, layout = TYPES[kind], LAYOUTS[family_name]
    family = family_class(family_name)(CPU, dtype, Precisions(precision))
    watch, started = PeakMemory(), time.perf_counter()
    network = family.load_network(folder, dtype).requires_grad_(False)
    seconds, peak = time.perf_counter() - started, watch.stop()
    held = sum(value.nbytes for value in network.state_dict().values())
    estimate = layout.weight_bytes(folder, [layout.network], precision, dtype.itemsize).held
    found = {"held": held, "estimate": estimate, "seconds": seconds, "peak": peak}
    if precision == UNQUANTIZED:
        return found
    draw = torch.Generator().manual_seed(0)
    config = layout.network_config(folder)
    if tokens:
        text, null = (_random_text(layout, config, tokens, dtype, draw) for _ in range(2))
    else:
        length = read_sampling_defaults(folder, layout.defaults).max_sequence_length
        encoder = family.load_text_encoder(folder, length)
        text, null = (encoder.encode([prompt]) for prompt in (PROMPT, layout.guidance.null_prompt))
    factor = layout.read_vae_factor(folder)
    eps = torch.randn((1, config["in_channels"], size // factor, size // factor), generator=draw)
    schedule = family.load_schedule(folder).at_size(size, size)
    predict = family.bind_guided(network, text, null, layout.defaults.guidance_scale)
    weights = open_weights(folder / layout.network, DIFFUSERS_STEM)
    return found | {"error": guided_error(predict, schedule, schedule.default_sigmas(STEPS), eps, network, weights)}


def _random_text(
    layout: Layout, config: dict[str, Any], tokens: int, dtype: torch.dtype, draw: torch.Generator
) -> TextEmbedding:
    """Return a random embedding of one prompt."""
    width, pooled = layout.text_widths(config)
    context = torch.randn((1, tokens, width), generator=draw).to(dtype)
    vector = None if pooled is None else torch.randn((1, pooled), generator=draw).to(dtype)
    return TextEmbedding(context, vector, (tokens,) if layout.lengths_differ else None)


def in_a_process(arguments: list[str]) -> dict[str, float]:
    """Run `measure` in a new process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, __file__, "--one", *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def folders(real_size: str | None, work: Path) -> dict[str, tuple[str, Path]]:
    """Write the models. Return what each is called -> its family and folder."""
    if real_size:
        layout, folder = LAYOUTS[real_size], work / real_size
        if not folder.exists():
            write_hollow(layout, folder)
            torch.manual_seed(0)
            for path in layout.weight_files(folder, layout.network):
                write_weights(path)
        return {layout.repository: (real_size, folder)}
    sys.path.insert(0, str(ROOT / "tests"))
    import small_models

    for family in LAYOUTS:
        getattr(small_models, f"save_tiny_{family}")(work / family)
    trained = {"small world, trained": ("sd35", ROOT / "weights" / "tiny" / "sd35")}
    return trained | {f"{family}, small": (family, work / family) for family in LAYOUTS}


def document(rows: list[list[str]], args: argparse.Namespace) -> list[str]:
    """Return the lines of the dated result."""
    prompt = f"{args.tokens} random tokens of text" if args.tokens else f"the prompt {PROMPT!r}"
    return [
        *result_head("A quantised base beside the base itself"),
        f"Random weights if not trained; computed in {args.kind}, {args.size} x {args.size} pixels, the family's",
        f"guidance, {prompt}. The error is |v' - v| / |v| of the guided prediction, the larger of two",
        f"noise levels of {STEPS} steps. The peak is the rise of memory while the network loads, without pages of",
        "mapped files.",
        "",
        markdown_table(list(COLUMNS), rows),
    ]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real_size", choices=list(LAYOUTS), help="family whose official model is measured")
    parser.add_argument("--work", type=Path, help="folder for the models (default: a temporary one)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--kind", choices=list(TYPES), default="bf16", help="type of the computation")
    parser.add_argument("--size", type=int, default=64, help="image height and width (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=0, help="of a random embedding; 0: the model encodes a prompt")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--one", nargs=3, metavar=("FAMILY", "FOLDER", "PRECISION"), help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.one:
        family, folder, precision = args.one
        found = measure(family, Path(folder), precision, args.kind, args.size, args.tokens)
        sys.stdout.write(f"{json.dumps(found)}\n")
        return
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=args.work))  # of its own: it is deleted at the end
    shape = ["--kind", args.kind, "--size", str(args.size), "--tokens", str(args.tokens)]
    ending = (f"_{args.real_size}" if args.real_size else "") + ("" if args.kind == "bf16" else f"_{args.kind}")
    rows: list[list[str]] = []
    text = ""
    try:
        for name, (family, folder) in folders(args.real_size, work).items():
            for precision in args.precisions:
                if precision == NF4 and find_spec("bitsandbytes") is None:
                    continue
                found = in_a_process([family, str(folder), precision, *shape])
                error = f"{found['error']:.2%}" if "error" in found else "0"
                sizes = [f"{found[each] / 1e6:.4g}" for each in ("held", "estimate")]
                label = args.kind if precision == UNQUANTIZED else precision
                rows.append([name, label, error, *sizes, f"{found['seconds']:.0f}", f"{found['peak'] / 1e6:.0f}"])
                text = write_result(args.out, f"quantized_base{ending}", document(rows, args))
    finally:
        shutil.rmtree(work)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
