#!/usr/bin/env bash
# Distils SD3.5-Medium with the paper's settings on 8 GPUs. Paths are set as at the top of run_train.sh:
#   RUN=outputs/mine TEACHER=/data/sd35 bash scripts/run_train_sd35.sh
# The settings are in scripts/configs/sd35.yaml; further flags of dpdmd.train override them:
#   bash scripts/run_train_sd35.sh --resume_from_checkpoint latest
# A checkpoint holds both networks and both optimizers, about 55 GB: the newest two are kept.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

export RUN="${RUN:-outputs/sd35_dpdmd/sd35m_t30_1024_lr1e5_4nfe_anchor5}"
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_train.sh" sd35 "$@"
