"""The package and its requirements. Both ends of each range were tested; each upper bound has its reason beside it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# REQUIRES and EXTRAS must be plain literals: scripts/setup_env.sh reads them without running this file.
REQUIRES = [
    "torch>=2.11",
    "torchvision>=0.26",
    "diffusers>=0.42,<0.43",  # schedulers and pipeline signatures change between minor versions
    "transformers>=5.17,<6",  # a major version renames arguments and return types
    "accelerate>=1.15,<1.16",  # FSDP2 with two trained networks relies on its internals
    "peft>=0.21",
    "huggingface-hub>=1.33,<3",  # 1.33 and 2.4 were tested; a major version removes functions
    "safetensors>=0.8",
    "sentencepiece",  # a T5 spiece.model needs this and protobuf; without them, the error is misleading
    "protobuf",
    "open_clip_torch>=3.3",
    "timm>=1.0.17",
    "numpy",
    "pillow",
    "matplotlib>=3.10",  # figures of the report, which every run writes
    "jinja2>=3.1",  # the report's page, with prompts and names escaped; torch requires it, too
    "pyyaml",
    "tensorboard",
    "tqdm",
]
EXTRAS = {
    "quality": ["pyiqa>=0.1.16"],  # MANIQA; optional, since it installs 1.2 GB of packages
    "data": ["pyarrow"],  # prompts in .parquet or a folder of datasets; optional, since it installs 170 MB
    "memory": ["bitsandbytes>=0.50"],  # adamw_8bit, nf4; optional, with 43 MB of CUDA kernels
    "demo": ["gradio>=6.31,<7"],  # the web page; a major version renames arguments. It requires pillow<13
    "test": [
        "pytest>=9",
        "pytest-timeout",
        "pytest-xdist>=3.8",
        "gradio>=6.31,<7",  # as in demo
        "hypothesis",
        "import-linter>=2.17",  # checks the layers in pyproject.toml
        "ruff>=0.17,<0.18",  # the formatter's style changes between minor versions
    ],
}


def read_version() -> str:
    """Return `__version__` of the package without importing it."""
    text = (Path(__file__).parent / "dpdmd" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("dpdmd/__init__.py sets no __version__")
    return match[1]


setup(
    name="dpdmd",
    version=read_version(),
    description="Diversity-preserved distribution matching distillation (DP-DMD, arXiv 2602.03139)",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",  # torch 2.15, diffusers 0.42 and transformers 5.23 require it
    packages=find_packages(include=["dpdmd", "dpdmd.*"]),
    package_data={"dpdmd.report": ["template/*"]},
    install_requires=REQUIRES,
    extras_require={**EXTRAS, "all": sorted({requirement for extra in EXTRAS.values() for requirement in extra})},
)
