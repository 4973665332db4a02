#!/usr/bin/env bash
# Distils SDXL (base 1.0) with the paper's settings on 8 GPUs. Paths are set as at the top of run_train.sh:
#   RUN=outputs/mine TEACHER=/data/sdxl bash scripts/run_train_sdxl.sh
# The settings are in scripts/configs/sdxl.yaml, which says which are the paper's; further flags override them:
#   bash scripts/run_train_sdxl.sh --resume_from_checkpoint latest
# A checkpoint takes about 62 GB.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

export NAMED="$(compgen -e)" # what the environment sets wins over a --config, the paths here do not
export RUN="${RUN:-outputs/sdxl_dpdmd/sdxl_t50_1024_lr1e5_4nfe_anchor8}"
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_train.sh" sdxl "$@"
