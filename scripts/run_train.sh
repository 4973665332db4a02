#!/usr/bin/env bash
# Distils the model of a family on 8 GPUs: bash scripts/run_train.sh MODEL, with MODEL one of sd35, sd35_large, sd3_medium,
# sdxl, sdxl_v, zimage, flux2_klein, flux2_klein_9b and qwen_image. The settings are in scripts/configs/MODEL.yaml. Set the
# paths here or in the environment:
#   RUN=outputs/mine TEACHER=/data/z-image bash scripts/run_train.sh zimage
# Further flags of dpdmd.train override the settings: bash scripts/run_train.sh zimage --resume_from_checkpoint latest
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
MODEL="${1:-}"
SETTINGS="scripts/configs/$MODEL.yaml"
FAMILY=$(sed -n 's/^  family: //p' "$SETTINGS" 2>/dev/null || true)
if [ -z "$FAMILY" ]; then
    models=$(grep -l '^  family: ' scripts/configs/*.yaml | sed 's|.*/||; s|\.yaml$||' | tr '\n' ' ')
    echo "run_train.sh '$MODEL': give a model first: ${models% }" >&2
    exit 2
fi
shift

RUN="${RUN:-outputs/${MODEL}_dpdmd}"
PROMPTS="${PROMPTS:-data/prompts_train.txt}"
TEACHER="${TEACHER:-$(sed -n 's/^  teacher_id: \([^ ]*\).*/\1/p' "$SETTINGS")}"
STUDENT="${STUDENT:-$TEACHER}"
FAKE="${FAKE:-$TEACHER}"
PICK_PROCESSOR="${PICK_PROCESSOR:-weights/CLIP-ViT-H-14-laion2B-s32B-b79K}"
PICK_MODEL="${PICK_MODEL:-weights/PickScore_v1}"
IR_MODEL="${IR_MODEL:-weights/ImageReward/ImageReward.pt}"
IR_MED_CONFIG="${IR_MED_CONFIG:-weights/ImageReward/med_config.json}"
DINO="${DINO:-weights/dinov2-base}"
CLIP="${CLIP:-weights/clip-vit-large-patch14}"
# 8 GPUs sharded; accelerate_ddp.yaml and accelerate_single_gpu.yaml are in the same folder
ACCELERATE_CONFIG="${ACCELERATE_CONFIG:-scripts/accelerate_${FAMILY}_fsdp.yaml}"

missing=0
need() { # path, its name in download_weights.sh
    [ -e "$1" ] && return
    echo "missing: $1 — bash scripts/download_weights.sh $2" >&2
    missing=1
}
need "$TEACHER/model_index.json" "$MODEL"
need "$STUDENT" "$MODEL"
need "$FAKE" "$MODEL"
need "$PICK_PROCESSOR" pick-clip
need "$PICK_MODEL" pickscore
need "$IR_MODEL" imagereward
need "$IR_MED_CONFIG" imagereward
need "$DINO" dinov2
need "$CLIP" clip
[ "$missing" = 0 ] || exit 2

source scripts/setup_env.sh
# log, ckpts, eval_images, process_vis and div_vis are folders in --run_dir; the release has a flag for each.
# After SIGTERM the trainers save a checkpoint, which holds both networks and both optimizers. By default torch's
# launcher kills them after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"
# LAUNCH_FLAGS: further flags of accelerate launch, such as --machine_rank 1
# shellcheck disable=SC2086
exec "$PYTHON" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" ${LAUNCH_FLAGS:-} -m dpdmd.train \
    --config "$SETTINGS" \
    --teacher_id "$TEACHER" \
    --student_id "$STUDENT" \
    --fake_id "$FAKE" \
    --prompt_txt "$PROMPTS" \
    --pick_processor_path "$PICK_PROCESSOR" \
    --pick_model_path "$PICK_MODEL" \
    --ir_model_path "$IR_MODEL" \
    --ir_med_config "$IR_MED_CONFIG" \
    --dino_path "$DINO" \
    --clip_path "$CLIP" \
    --run_dir "$RUN" \
    "$@"
