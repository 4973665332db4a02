#!/usr/bin/env bash
# Train on two hosts and compare with one process: two connected network namespaces, one accelerate launch in each.
# If namespaces are not allowed, the script prints the reason and passes.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/setup_env.sh"
cd "$ROOT"
names=("dpdmd_a_$$" "dpdmd_b_$$")
work="$(mktemp -d)"
clean_up() {
    for name in "${names[@]}"; do ip netns delete "$name" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean_up EXIT

skip() { echo "two hosts: skipped, $1"; exit 0; }
command -v ip >/dev/null || skip "there is no ip command"
for name in "${names[@]}"; do
    ip netns add "$name" 2>"$work/reason" || skip "network namespaces are not allowed: $(cat "$work/reason")"
done
ip link add wire0 netns "${names[0]}" type veth peer name wire1 netns "${names[1]}" 2>"$work/reason" ||
    skip "a virtual wire is not allowed: $(cat "$work/reason")"
for host in 0 1; do
    ip -n "${names[$host]}" address add "10.97.0.$((host + 1))/24" dev "wire$host"
    ip -n "${names[$host]}" link set "wire$host" up
    ip -n "${names[$host]}" link set lo up
done

flags=(--teacher_id weights/tiny/sd35 --prompt_txt data/shapes_train.txt --height 64 --width 64 --max_steps 6
    --teacher_infer_steps 4 --k_anchor 2 --stu_inference_steps 2 --lr_student 1e-3 --lr_fake 1e-3 --vis_every 0
    --report_to none)
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
pids=()
for host in 0 1; do
    GLOO_SOCKET_IFNAME="wire$host" timeout 300 ip netns exec "${names[$host]}" \
        "$PYTHON" -m accelerate.commands.launch --multi_gpu --num_machines 2 --num_processes 2 --machine_rank "$host" \
        --main_process_ip 10.97.0.1 --main_process_port 29500 --mixed_precision no --dynamo_backend no \
        -m dpdmd.train "${flags[@]}" --batch_size 2 --run_dir "$work/two" >"$work/host$host.log" 2>&1 &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
[ "$status" = 0 ] || { tail -n 20 "$work"/host*.log; echo "two hosts: failed with status $status" >&2; exit 1; }
"$PYTHON" -m dpdmd.train "${flags[@]}" --batch_size 4 --run_dir "$work/one" 2>"$work/one.log"

"$PYTHON" - "$work" <<'PY'
import sys
from pathlib import Path

from safetensors.torch import load_file

name = "ckpts/latest/student/transformer/diffusion_pytorch_model.safetensors"
one, two = (load_file(Path(sys.argv[1]) / run / name) for run in ("one", "two"))
differences = [(one[key] - two[key]).abs() for key in one]
largest = max(value.max().item() for value in differences)
mean = sum(value.sum().item() for value in differences) / sum(value.numel() for value in differences)
# Sums have another order; tests/processes/test_topologies.py explains the tolerances.
if not (mean < 1e-6 and largest < 5e-3):
    sys.exit(f"two hosts: weights differ from one process by {mean:.1e} on average, {largest:.1e} at most")
print(f"two hosts: equal to one process; weights differ by {mean:.1e} on average, {largest:.1e} at most")
PY
