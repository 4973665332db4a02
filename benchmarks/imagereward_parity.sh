#!/usr/bin/env bash
# Our ImageReward against the `image-reward` package, on the same random weights in the official layout and size.
# The package needs old libraries, so it gets an environment of its own (several GB, below $PARITY or a temporary folder).
#   bash benchmarks/imagereward_parity.sh               writes benchmarks/results/DATE_imagereward_parity.md
set -euo pipefail
unset CDPATH # with it, cd prints or goes elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

work="${PARITY:-}"
[ -n "$work" ] || { work="$(mktemp -d)" && trap 'rm -rf "$work"' EXIT; }
old="$work/venv"
if [ ! -x "$old/bin/python" ]; then
    "$PYTHON" -m venv "$old"
    "$old/bin/pip" install --quiet "setuptools<81" wheel # openai-clip imports pkg_resources, which 81 dropped
    "$old/bin/pip" install --quiet "setuptools<81" torch==2.15.0 torchvision==0.29.2 transformers==4.49.0 diffusers==0.32.2 \
        timm==0.6.13 fairscale==0.4.13 image-reward==1.5 ftfy regex
    "$old/bin/pip" install --quiet --no-deps --no-build-isolation openai-clip==1.0.1
fi
"$PYTHON" benchmarks/imagereward_parity.py images "$work"
"$old/bin/python" benchmarks/imagereward_parity.py package "$work"
"$PYTHON" benchmarks/imagereward_parity.py ours "$work"
