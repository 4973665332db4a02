#!/usr/bin/env bash
# Distils SD3.5-Medium with the paper's settings on 8 GPUs. Set the paths here or in the environment:
#   RUN=outputs/mine TEACHER=/data/sd35 bash scripts/run_train_sd35.sh
# An empty path leaves its scorer out. The settings are in scripts/configs/sd35.yaml; further flags of dpdmd.train
# override them:
#   bash scripts/run_train_sd35.sh --resume_from_checkpoint latest
# A checkpoint holds both networks and both optimizers, about 55 GB: the newest two are kept.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

export NAMED="$(compgen -e)" # what the environment sets wins over a --config, the paths here do not
export RUN="${RUN:-outputs/sd35_dpdmd/sd35m_t30_1024_lr1e5_4nfe_anchor5}"
export PROMPTS="${PROMPTS:-data/prompts_train.txt}"
export TEACHER="${TEACHER:-weights/stabilityai/stable-diffusion-3.5-medium}"
export STUDENT="${STUDENT:-}" FAKE="${FAKE:-}" # empty: the teacher
export PICK_PROCESSOR="${PICK_PROCESSOR-weights/CLIP-ViT-H-14-laion2B-s32B-b79K}"
export PICK_MODEL="${PICK_MODEL-weights/PickScore_v1}"
export IR_MODEL="${IR_MODEL-weights/ImageReward/ImageReward.pt}"
export IR_MED_CONFIG="${IR_MED_CONFIG-weights/ImageReward/med_config.json}"
export DINO="${DINO-weights/dinov2-base}"
export CLIP="${CLIP-weights/clip-vit-large-patch14}"
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_train.sh" sd35 "$@"
