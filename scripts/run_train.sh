#!/usr/bin/env bash
# Distils the model of a family on 8 GPUs: bash scripts/run_train.sh MODEL, with MODEL one of sd35, sd35_large, sd3_medium,
# sdxl, sdxl_v, zimage, qwen_image, lumina2, flux2_klein and flux2_klein_9b. The settings are in
# scripts/configs/MODEL.yaml. Set the paths here or in the environment:
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
source scripts/given.sh

RUN="${RUN:-outputs/${MODEL}_dpdmd}"
PROMPTS="${PROMPTS:-data/prompts_train.txt}"
TEACHER="${TEACHER:-$(sed -n -E "/^  teacher_id: */{s///; s/ +#.*//; s/^(['\"])(.*)\1\$/\2/; p;}" "$SETTINGS")}"
TEACHER="$(given --teacher_id "$TEACHER" "$@")"
STUDENT="$(given --student_id "${STUDENT:-$TEACHER}" "$@")"
FAKE="$(given --fake_id "${FAKE:-$TEACHER}" "$@")"
PICK_PROCESSOR="$(given --pick_processor_path "${PICK_PROCESSOR-weights/CLIP-ViT-H-14-laion2B-s32B-b79K}" "$@")"
PICK_MODEL="$(given --pick_model_path "${PICK_MODEL-weights/PickScore_v1}" "$@")"
IR_MODEL="$(given --ir_model_path "${IR_MODEL-weights/ImageReward/ImageReward.pt}" "$@")"
IR_MED_CONFIG="$(given --ir_med_config "${IR_MED_CONFIG-weights/ImageReward/med_config.json}" "$@")"
DINO="$(given --dino_path "${DINO-weights/dinov2-base}" "$@")"
CLIP="$(given --clip_path "${CLIP-weights/clip-vit-large-patch14}" "$@")"
# 8 GPUs sharded; accelerate_ddp.yaml and accelerate_single_gpu.yaml are in the same folder
ACCELERATE_CONFIG="${ACCELERATE_CONFIG:-scripts/accelerate_${FAMILY}_fsdp.yaml}"

hub_id() { # whether a name is an id of the Hub, as dpdmd.utils.hub.parse_id decides
    [[ $1 =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*(@.+)?$ ]] || return 1
    [[ $1 != *@* ]] || return 0
    case ${1%%/*} in weights | outputs | data | scripts) return 1 ;; esac
    [ ! -d "${1%%/*}" ]
}

missing=0
need() { # path, its name in download_weights.sh; an empty path leaves its scorer out
    [ -z "$1" ] || [ -e "$1" ] || hub_id "$1" && return
    echo "missing: $1 — bash scripts/download_weights.sh $2" >&2
    missing=1
}
need_both() { # path, name, another path of the same scorer, its name
    [ -z "$1" ] || [ -z "$3" ] || { need "$1" "$2" && need "$3" "$4"; }
}
hub_id "$TEACHER" && [ ! -e "$TEACHER" ] || need "$TEACHER/model_index.json" "$MODEL"
need "$STUDENT" "$MODEL"
need "$FAKE" "$MODEL"
need_both "$PICK_PROCESSOR" pick-clip "$PICK_MODEL" pickscore
need_both "$IR_MODEL" imagereward "$IR_MED_CONFIG" imagereward
need "$DINO" dinov2
need "$CLIP" clip
if [ ! -f "$ACCELERATE_CONFIG" ]; then
    echo "missing: $ACCELERATE_CONFIG — set ACCELERATE_CONFIG to one of scripts/accelerate_*.yaml" >&2
    missing=1
fi
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
