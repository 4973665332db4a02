#!/usr/bin/env bash
# Distils SDXL (base 1.0) with the paper's settings on 8 GPUs. Paths are set as in run_train_sd35.sh:
#   RUN=outputs/mine TEACHER=/data/sdxl bash scripts/run_train_sdxl.sh
# Further flags of dpdmd.train override the flags below: bash scripts/run_train_sdxl.sh --resume_from_checkpoint latest
# A checkpoint takes about 62 GB.
#
# The paper gives the teacher's 50 steps, its guidance scale 8, lambda and the student's 4 steps. Two values are ours:
# --k_anchor 8 is the same fraction of the teacher's steps as 5 of 30. --student_sigmas trailing gives times 999, 749,
# 499 and 249, because SDXL's own grid starts a 4-step student at time 751, far from noise, and ends with a step at 1.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

export FAMILY=sdxl
export RUN="${RUN:-outputs/sdxl_dpdmd/sdxl_t50_1024_lr1e5_4nfe_anchor8}"
export TEACHER="${TEACHER:-weights/stabilityai/stable-diffusion-xl-base-1.0}"
export ACCELERATE_CONFIG="${ACCELERATE_CONFIG:-scripts/accelerate_sdxl_fsdp.yaml}"

exec bash "$(dirname "${BASH_SOURCE[0]}")/run_train_sd35.sh" \
    --teacher_infer_steps 50 \
    --student_sigmas trailing \
    --k_anchor 8 \
    --teacher_guidance_scale 8.0 \
    "$@"
