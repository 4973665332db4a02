"""Download the paper's prompt sets from the Hugging Face hub: one prompt a line, each file whole or not there at all.

    bash scripts/download_prompts.sh [diffusiondb] [pickapic] [coco] [--out data]

Only the columns named below are read, over the network, so COCO's images (4.9 GB) stay where they are.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem


@dataclass(frozen=True)
class PromptSet:
    """One set: its file here, its parquet files there, the column of its prompts, and what to leave out."""

    file: str
    source: str
    column: str
    unsafe: str | None = None  # column of a score in [0, 1]; rows at or above 0.5, or without one, are left out
    limit: int | None = None  # distinct prompts


# File and column names are as the data sets' own pages and cards showed them:
# - diffusiondb: metadata.parquet is the table of the 2M set, about 1.5 M distinct prompts; prompt_nsfw is the larger of
#   the detoxify scores `toxicity` and `sexual_explicit`.
# - pickapic: 500 rows, one a prompt. The card of v1 without images has no column list; that of v2 names `caption`, and
#   programs that read v1 use it. The paper keeps the "SFW part", by a filter that it does not give: none is applied.
# - coco: a random 30,000 of the val2014 captions; these are its first 10,000 distinct ones. Which the paper took is not
#   known.
SETS = {
    "diffusiondb": PromptSet(
        "diffusiondb_train.txt", "datasets/poloclub/diffusiondb/metadata.parquet", "prompt", unsafe="prompt_nsfw"
    ),
    "pickapic": PromptSet(
        "pickapic_test.txt", "datasets/yuvalkirstain/pickapic_v1_no_images/data/test_unique-*.parquet", "caption"
    ),
    "coco": PromptSet(
        "coco2014_10k.txt", "datasets/sayakpaul/coco-30-val-2014/data/train-*.parquet", "caption", limit=10_000
    ),
}


def read_prompts(hub: "HfFileSystem", wanted: PromptSet) -> Iterator[str]:
    """Its prompts in order, line breaks (and any other runs of white space) turned into one space."""
    import pyarrow.parquet

    paths = sorted(hub.glob(wanted.source))
    if not paths:
        raise ValueError(f"nothing at {wanted.source}")
    for path in paths:
        with hub.open(path) as file:
            columns = [wanted.column] + ([wanted.unsafe] if wanted.unsafe else [])
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(columns=columns):
                scores = batch[wanted.unsafe].to_pylist() if wanted.unsafe else [0.0] * len(batch)
                for prompt, score in zip(batch[wanted.column].to_pylist(), scores, strict=True):
                    text = " ".join((prompt or "").replace("\0", "").split())
                    if text and score is not None and score < 0.5:
                        yield text


def distinct(prompts: Iterator[str], limit: int | None) -> list[str]:
    """The first `limit` distinct prompts (without one, all), in order."""
    found: dict[str, None] = {}
    for prompt in prompts:
        if len(found) == limit:
            break
        found[prompt] = None
    return list(found)


def write(path: Path, prompts: list[str]) -> None:
    """One prompt a line; the file appears only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(prompt + "\n" for prompt in prompts)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, since reading a set takes minutes.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def main(argv: Sequence[str] | None = None) -> None:
    """Download what is not there yet."""
    parser = argparse.ArgumentParser(
        prog="download_prompts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; all without any")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder (default: data)")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.sets if name not in SETS]:
        parser.error(f"unknown set {unknown[0]!r}: choose of {', '.join(SETS)}")
    try:
        check_writable(args.out)
    except OSError as error:
        sys.exit(f"download_prompts: --out {args.out}: cannot be written to ({error.strerror}); give another folder")
    try:  # only now: --help and a wrong name need neither
        import pyarrow.parquet  # noqa: F401
        from huggingface_hub import HfFileSystem
    except ImportError as error:
        sys.exit(f"download_prompts: no {error.name}; {sys.executable} -m pip install pyarrow 'huggingface_hub>=1.33'")

    for name in args.sets or SETS:
        path = args.out / SETS[name].file
        if path.exists():
            print(f"{path}: already there")
            continue
        print(f"{path}: reading {SETS[name].source}", flush=True)
        try:
            prompts = distinct(read_prompts(HfFileSystem(), SETS[name]), SETS[name].limit)
        except Exception as error:  # all kinds: the hub's HTTP client, and so its errors, differ between versions
            reason = " ".join(str(error).split())[:200]
            sys.exit(f"download_prompts: {path}: {type(error).__name__}: {reason} (is the hub within reach?)")
        if not prompts:
            sys.exit(f"download_prompts: {path}: {SETS[name].source} has no prompt of this set any more")
        try:
            write(path, prompts)
        except OSError as error:
            sys.exit(f"download_prompts: {path}: cannot be written ({error.strerror}); the same command reads it again")
        print(f"{path}: {len(prompts)} prompts")


if __name__ == "__main__":
    main()
