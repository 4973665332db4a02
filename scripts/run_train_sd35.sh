#!/usr/bin/env bash
# Distils SD3.5-Medium with the paper's settings on 8 GPUs. Set the paths here or in the environment:
#   RUN=outputs/mine TEACHER=/data/sd35 bash scripts/run_train_sd35.sh
# Further flags of dpdmd.train override the flags below: bash scripts/run_train_sd35.sh --resume_from_checkpoint latest
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

FAMILY="${FAMILY:-sd35}" # run_train_sdxl.sh sets sdxl
RUN="${RUN:-outputs/sd35_dpdmd/sd35m_t30_1024_lr1e5_4nfe_anchor5}"
PROMPTS="${PROMPTS:-data/prompts_train.txt}"
TEACHER="${TEACHER:-weights/stabilityai/stable-diffusion-3.5-medium}"
STUDENT="${STUDENT:-$TEACHER}"
FAKE="${FAKE:-$TEACHER}"
PICK_PROCESSOR="${PICK_PROCESSOR:-weights/CLIP-ViT-H-14-laion2B-s32B-b79K}"
PICK_MODEL="${PICK_MODEL:-weights/PickScore_v1}"
IR_MODEL="${IR_MODEL:-weights/ImageReward/ImageReward.pt}"
IR_MED_CONFIG="${IR_MED_CONFIG:-weights/ImageReward/med_config.json}"
DINO="${DINO:-weights/dinov2-base}"
CLIP="${CLIP:-weights/clip-vit-large-patch14}"
# 8 GPUs sharded; accelerate_ddp.yaml and accelerate_single_gpu.yaml are in the same folder
ACCELERATE_CONFIG="${ACCELERATE_CONFIG:-scripts/accelerate_sd35_fsdp.yaml}"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
missing=0
need() { # path, its name in download_weights.sh
    [ -e "$1" ] && return
    echo "missing: $1 — bash scripts/download_weights.sh $2" >&2
    missing=1
}
need "$TEACHER/model_index.json" "$FAMILY"
need "$STUDENT" "$FAMILY"
need "$FAKE" "$FAMILY"
need "$PICK_PROCESSOR" pick-clip
need "$PICK_MODEL" pickscore
need "$IR_MODEL" imagereward
need "$IR_MED_CONFIG" imagereward
need "$DINO" dinov2
need "$CLIP" clip
[ "$missing" = 0 ] || exit 2

source scripts/setup_env.sh
# log, ckpts, eval_images, process_vis and div_vis are folders in --run_dir; the release has a flag for each.
# A checkpoint holds both networks and both optimizers, about 55 GB: the newest two are kept.
# After SIGTERM the trainers save such a checkpoint. By default torch's launcher kills them after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"
# LAUNCH_FLAGS: further flags of accelerate launch, such as --machine_rank 1
# shellcheck disable=SC2086
exec "$PYTHON" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" ${LAUNCH_FLAGS:-} -m dpdmd.train \
    --family "$FAMILY" \
    --method dpdmd \
    --teacher_id "$TEACHER" \
    --student_id "$STUDENT" \
    --fake_id "$FAKE" \
    --prompt_txt "$PROMPTS" \
    --height 1024 \
    --width 1024 \
    --teacher_infer_steps 30 \
    --stu_inference_steps 4 \
    --per_train_fake_num 5 \
    --k_anchor 5 \
    --div_weight 0.05 \
    --teacher_guidance_scale 3.5 \
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
