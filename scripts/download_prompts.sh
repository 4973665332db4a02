#!/usr/bin/env bash
# Download the paper's prompt sets into data/. Needs network, huggingface_hub and pyarrow; the latter is in the
# extra "data": pip install -e ".[data]"
#
#   bash scripts/download_prompts.sh            # all: diffusiondb (195 MB to read), pickapic, coco
#   bash scripts/download_prompts.sh pickapic   # some; --help lists them
set -euo pipefail
unset CDPATH # with it, cd prints or goes elsewhere
[[ " $*" != *" --out"* || "$PWD" -ef "$(dirname "${BASH_SOURCE[0]}")/.." ]] || echo "paths count from the checkout, not from $PWD" >&2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -n ${PYTHON:-} ]] || PYTHON=$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)
exec "$PYTHON" scripts/download_prompts.py "$@"
