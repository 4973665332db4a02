#!/usr/bin/env bash
# Distils the model of a family on 8 GPUs: bash scripts/run_train.sh MODEL, with MODEL one of sd35, sd35_large, sd3_medium,
# sdxl, sdxl_v, zimage, qwen_image, lumina2, flux2_klein and flux2_klein_9b. The settings are in
# scripts/configs/MODEL.yaml. Set the paths here or in the environment:
#   RUN=outputs/mine TEACHER=/data/z-image bash scripts/run_train.sh zimage
# Further flags of dpdmd.train, and what a further --config sets, override settings and paths:
#   bash scripts/run_train.sh zimage --resume_from_checkpoint latest
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

[ "$PWD" -ef "$(dirname "${BASH_SOURCE[0]}")/.." ] || echo "paths count from the checkout, not from $PWD" >&2
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
NAMED="${NAMED-$(compgen -e)}" # variables of the environment: unlike the paths below, they win over a --config

RUN="${RUN:-outputs/${MODEL}_dpdmd}"
PROMPTS="${PROMPTS:-data/prompts_train.txt}"
TEACHER="${TEACHER:-$(sed -n -E "/^  teacher_id: */{s///; s/ +#.*//; s/^(['\"])(.*)\1\$/\2/; p;}" "$SETTINGS")}"
STUDENT="${STUDENT:-}" FAKE="${FAKE:-}" # empty: the teacher
PICK_PROCESSOR="${PICK_PROCESSOR-weights/CLIP-ViT-H-14-laion2B-s32B-b79K}"
PICK_MODEL="${PICK_MODEL-weights/PickScore_v1}"
IR_MODEL="${IR_MODEL-weights/ImageReward/ImageReward.pt}"
IR_MED_CONFIG="${IR_MED_CONFIG-weights/ImageReward/med_config.json}"
DINO="${DINO-weights/dinov2-base}"
CLIP="${CLIP-weights/clip-vit-large-patch14}"
# 8 GPUs sharded; accelerate_ddp.yaml and accelerate_single_gpu.yaml are in the same folder
ACCELERATE_CONFIG="${ACCELERATE_CONFIG:-scripts/accelerate_${FAMILY}_fsdp.yaml}"

given() { # a flag, its other name or "", the flags of this call: whether they have it; VALUE becomes the last one's
    local names="|$1|$2|" found=1
    shift 2
    while [ $# -gt 0 ]; do
        if [[ -n ${1%%=*} && $names == *"|${1%%=*}|"* ]]; then
            found=0
            case $1 in *=*) VALUE="${1#*=}" ;; *) VALUE="${2:-}" ;; esac
            VALUE="${VALUE/#\~\//$HOME/}" # the shell leaves a ~ after = alone
        fi
        shift
    done
    return "$found"
}

configured() { # the flags of this call: prints the options that their --config files set, and eval_every=N
    local files=()
    while [ $# -gt 0 ]; do
        case $1 in --config) files+=("${2:-}") ;; --config=*) files+=("${1#*=}") ;; esac
        shift
    done
    [ ${#files[@]} -gt 0 ] || return 0
    source scripts/setup_env.sh
    "$PYTHON" - "${files[@]}" <<'PY'
import sys
from pathlib import Path

from dpdmd.utils import strict_yaml
from dpdmd.utils.paths import expanded

options = {}
for file in sys.argv[1:]:
    try:
        for key, value in strict_yaml.read(Path(expanded(file)), "--config").items():
            options |= value if isinstance(value, dict) else {key: value}
    except (ValueError, AttributeError):
        pass  # the trainer says what is wrong
print(*options, f"eval_every={options.get('eval_every', '')}", sep="\n")
PY
}
IN_FILES="$(configured "$@")"

paths=()
place() { # variable, option, other name of its flag or "", the flags of this call: passes what these and files do not set
    local variable="$1" option="$2" other="$3"
    shift 3
    if given "--$option" "$other" "$@"; then
        printf -v "$variable" %s "$VALUE"
    elif grep -qx "$option" <<<"$IN_FILES" && ! grep -qx "$variable" <<<"$NAMED"; then
        printf -v "$variable" %s ""
    else
        paths+=("--$option" "${!variable}")
    fi
}
place TEACHER teacher_id --pretrained_model_name_or_path "$@"
[ -z "$STUDENT" ] || place STUDENT student_id "" "$@"
[ -z "$FAKE" ] || place FAKE fake_id "" "$@"
place PROMPTS prompt_txt "" "$@"
place PICK_PROCESSOR pick_processor_path "" "$@"
place PICK_MODEL pick_model_path "" "$@"
place IR_MODEL ir_model_path "" "$@"
place IR_MED_CONFIG ir_med_config "" "$@"
place DINO dino_path "" "$@"
place CLIP clip_path "" "$@"
place RUN run_dir --output_dir "$@"

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
{ hub_id "$TEACHER" && [ ! -e "$TEACHER" ]; } || need "${TEACHER:+$TEACHER/model_index.json}" "$MODEL"
need "$STUDENT" "$MODEL"
need "$FAKE" "$MODEL"
given --eval_every "" "$@" || VALUE="$(sed -n 's/^eval_every=//p' <<<"$IN_FILES")"
if [ "$VALUE" != 0 ]; then # else the trainer reads no scorer
    need_both "$PICK_PROCESSOR" pick-clip "$PICK_MODEL" pickscore
    need_both "$IR_MODEL" imagereward "$IR_MED_CONFIG" imagereward
    need "$DINO" dinov2
    need "$CLIP" clip
fi
if [ ! -f "$ACCELERATE_CONFIG" ]; then
    echo "missing: $ACCELERATE_CONFIG — set ACCELERATE_CONFIG to one of scripts/accelerate_*.yaml" >&2
    missing=1
fi
[ "$missing" = 0 ] || exit 2

source scripts/setup_env.sh
# In one process: behind the launcher every rank prints its error, and the launcher a traceback.
"$PYTHON" - "$ACCELERATE_CONFIG" --config "$SETTINGS" "${paths[@]}" "$@" <<'PY'
import sys
from pathlib import Path

from dpdmd.config import parse
from dpdmd.data.prompt_files import read_prompts, read_weighted_prompts
from dpdmd.distributed.launch_env import check_accelerate_file
from dpdmd.utils.library_settings import check_torch_variables
from dpdmd.utils.programs import print_error

file, *flags = sys.argv[1:]
try:
    check_torch_variables()
    check_accelerate_file(Path(file), f"ACCELERATE_CONFIG {file}")
    data = parse(flags).data
    if data.prompt_weight_column:
        read_weighted_prompts(Path(data.prompt_txt), data.prompt_column, data.prompt_weight_column)
    else:
        read_prompts(Path(data.prompt_txt), column=data.prompt_column)
except ValueError as error:
    sys.exit(print_error("dpdmd.train", error))
PY
# log, ckpts, eval_images, process_vis and div_vis are folders in --run_dir; the release has a flag for each.
# After SIGTERM the trainers save a checkpoint, which holds both networks and both optimizers. By default torch's
# launcher kills them after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"
# LAUNCH_FLAGS: further flags of accelerate launch, such as --machine_rank 1
# shellcheck disable=SC2086
exec "$PYTHON" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" ${LAUNCH_FLAGS:-} -m dpdmd.train \
    --config "$SETTINGS" \
    "${paths[@]}" \
    "$@"
