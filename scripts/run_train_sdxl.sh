#!/usr/bin/env bash
# Distils SDXL (base 1.0) with the paper's settings, on 8 GPUs. Set the paths here, or in the environment:
#   RUN=outputs/mine TEACHER=/data/sdxl bash scripts/run_train_sdxl.sh
# Further flags of dpdmd.train win: bash scripts/run_train_sdxl.sh --resume_from_checkpoint latest
#
# The paper gives teacher steps (50), guidance (8), lambda and the student's 4 steps, and leaves open what is chosen here:
# --k_anchor 8, the fraction of the teacher's steps that its 5 of 30 are; --student_sigmas trailing (times 999, 749, 499,
# 249), since SDXL's own grid starts a 4-step student at time 751, far from noise, and spends its last step on time 1.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

RUN="${RUN:-outputs/sdxl_dpdmd/sdxl_t50_1024_lr1e5_4nfe_anchor8}"
PROMPTS="${PROMPTS:-data/prompts_train.txt}"
TEACHER="${TEACHER:-weights/stabilityai/stable-diffusion-xl-base-1.0}"
STUDENT="${STUDENT:-$TEACHER}"
FAKE="${FAKE:-$TEACHER}"
PICK_PROCESSOR="${PICK_PROCESSOR:-weights/CLIP-ViT-H-14-laion2B-s32B-b79K}"
PICK_MODEL="${PICK_MODEL:-weights/PickScore_v1}"
IR_MODEL="${IR_MODEL:-weights/ImageReward/ImageReward.pt}"
IR_MED_CONFIG="${IR_MED_CONFIG:-weights/ImageReward/med_config.json}"
DINO="${DINO:-weights/dinov2-base}"
CLIP="${CLIP:-weights/clip-vit-large-patch14}"
# 8 GPUs sharded; beside it lie accelerate_ddp.yaml and accelerate_single_gpu.yaml
ACCELERATE_CONFIG="${ACCELERATE_CONFIG:-scripts/accelerate_sdxl_fsdp.yaml}"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
missing=0
need() { # path, its name in download_weights.sh
    [ -e "$1" ] && return
    echo "missing: $1 — bash scripts/download_weights.sh $2" >&2
    missing=1
}
need "$TEACHER/model_index.json" sdxl
[ "$STUDENT" = "$TEACHER" ] || need "$STUDENT/unet" sdxl
[ "$FAKE" = "$TEACHER" ] || need "$FAKE/unet" sdxl
need "$PICK_PROCESSOR" pick-clip
need "$PICK_MODEL" pickscore
need "$IR_MODEL" imagereward
need "$IR_MED_CONFIG" imagereward
need "$DINO" dinov2
need "$CLIP" clip
[ "$missing" = 0 ] || exit 2

source scripts/setup_env.sh
# --run_dir is the root of log, ckpts, eval_images, process_vis and div_vis; the release wanted all five by hand.
# A checkpoint holds both networks and both optimizers, by count some 62 GB: two are kept.
# After SIGTERM torch's launcher kills its workers in 30 seconds; they write such a checkpoint then.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"
# LAUNCH_FLAGS: further flags of accelerate launch, such as --machine_rank 1
# shellcheck disable=SC2086
exec "$PYTHON" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" ${LAUNCH_FLAGS:-} -m dpdmd.train \
    --family sdxl \
    --method dpdmd \
    --teacher_id "$TEACHER" \
    --student_id "$STUDENT" \
    --fake_id "$FAKE" \
    --prompt_txt "$PROMPTS" \
    --height 1024 \
    --width 1024 \
    --teacher_infer_steps 50 \
    --stu_inference_steps 4 \
    --student_sigmas trailing \
    --per_train_fake_num 5 \
    --k_anchor 8 \
    --div_weight 0.05 \
    --teacher_guidance_scale 8.0 \
    --batch_size 4 \
    --grad_accum 1 \
    --lr_student 1e-5 \
    --lr_fake 1e-5 \
    --weight_decay 0.0 \
    --max_grad_norm 1.0 \
    --bf16 \
    --gradient_checkpointing \
    --max_steps 6000 \
    --log_every 10 \
    --ckpt_every 600 \
    --checkpoints_total_limit 2 \
    --vis_every 60 \
    --seed 0 \
    --pick_processor_path "$PICK_PROCESSOR" \
    --pick_model_path "$PICK_MODEL" \
    --ir_model_path "$IR_MODEL" \
    --ir_med_config "$IR_MED_CONFIG" \
    --dino_path "$DINO" \
    --clip_path "$CLIP" \
    --run_dir "$RUN" \
    "$@"
