#!/usr/bin/env bash
# Distils the small world's 30-step teacher into a 4-step student, then shows figures and pictures.
#   bash scripts/run_train_tiny.sh                                   the whole run
#   bash scripts/run_train_tiny.sh --max_steps 12 --run_dir X        further flags of dpdmd.train win
#   GRID_PROMPT="a circle above a square" MEASURED_PROMPTS=data/pairs_geneval.txt bash scripts/run_train_tiny.sh \
#       --teacher_id weights/tiny/sd35_pairs --prompt_txt data/pairs_train.txt --run_dir outputs/tiny/pairs
#                                                                    two objects: GenEval's kinds of prompts
# A run that was stopped goes on from its last checkpoint when the same command is given again.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

# The default leaves colour, size and position open: what the grids should vary in.
GRID_PROMPT="${GRID_PROMPT:-a circle on a white background}"
MEASURED_PROMPTS="${MEASURED_PROMPTS:-data/shapes_eval.txt}" # what the figures are taken over
NUM_SEEDS="${NUM_SEEDS:-16}"                                 # pictures of each of them; the benchmarks use 64

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
[ "$PWD" -ef "$ROOT" ] || echo "paths count from the checkout, not from $PWD" >&2
cd "$ROOT"

# `latest` starts anew where there is no checkpoint yet. One process: no launcher needed.
flags=(--config scripts/configs/tiny.yaml --resume_from_checkpoint latest "$@")

# Where it goes and whom it learns from: asked of the trainer's own parser, which knows every form of a flag. What only
# comes after the training is checked here.
answer="$("$PYTHON" - "$GRID_PROMPT" "$MEASURED_PROMPTS" "$NUM_SEEDS" "${flags[@]}" <<'PY'
import sys

from dpdmd.compare.measure_commands import parse_command
from dpdmd.config import parse
from dpdmd.run_folder import RunFolder
from dpdmd.utils.error_lines import one_line
from dpdmd.utils.text_files import check_prompt

grid_prompt, prompts, num_seeds, *flags = sys.argv[1:]
default = []
try:
    config = parse(flags)
    if config.run.run_dir is None:
        default = ["--run_dir=outputs/tiny/dpdmd"]
        config = parse([*flags, *default])
except ValueError as error:
    print(f"dpdmd.train: error: {one_line(error)}", file=sys.stderr)
    sys.exit(2)
folder = RunFolder.from_config(config.run)
model = folder.ckpts / "latest"
measure = ["-m", "dpdmd.shapes.measure", f"--model={model}", f"--out={folder.figures}"]
try:
    check_prompt(grid_prompt, "GRID_PROMPT")
    parse_command([*measure, f"--prompt_txt={prompts}", f"--num_seeds={num_seeds}"]).check(
        folder.root, next(iter(config.data.image_sizes))
    )
except ValueError as error:
    message = one_line(error).replace("--prompt_txt", "MEASURED_PROMPTS").replace("--num_seeds", "NUM_SEEDS")
    print(f"run_train_tiny.sh: {message}", file=sys.stderr)
    sys.exit(2)
print(*default or [""], folder.root, model, config.model.teacher_id, sep="\n")
PY
)"
{ read -r default; read -r run; read -r model; read -r teacher; } <<<"$answer"
flags+=(${default:+"$default"})

"$PYTHON" -m dpdmd.train "${flags[@]}"

pictures="$run/pictures"
for name in student teacher; do
    [ "$name" = student ] && source_of="$model" || source_of="$teacher"
    "$PYTHON" -m dpdmd.generate --model "$source_of" --prompt="$GRID_PROMPT" --num_images 9 --seed 0 --out "$pictures/$name" >/dev/null
done
echo
"$PYTHON" -m dpdmd.shapes.measure --model "$teacher" "$model" --prompt_txt "$MEASURED_PROMPTS" \
    --num_seeds "$NUM_SEEDS" --out "$run/figures.json"
"$PYTHON" -m dpdmd.report "$run" >/dev/null # once more: it shows these figures too
cat <<EOT

"$GRID_PROMPT", the same nine start noises:
  teacher   $pictures/teacher/grid.png
  student   $pictures/student/grid.png
EOT
training="$run/process_vis/latest.png" # none in a run shorter than --vis_every
[ ! -f "$training" ] || echo "training    $training"
cat <<EOT
figures     $run/figures.json
report      $run/report.html
EOT
