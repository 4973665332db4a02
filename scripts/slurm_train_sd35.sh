#!/usr/bin/env bash
# SD3.5-Medium on two SLURM nodes of 8 GPUs; goes on by itself after the time limit and after preemption.
#   sbatch scripts/slurm_train_sd35.sh                     paths as in run_train_sd35.sh: RUN=... TEACHER=... sbatch ...
#   sbatch --nodes=1 scripts/slurm_train_sd35.sh           one node; more than two: give --batch_size as well
#SBATCH --job-name=dpdmd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm_%j.log
#SBATCH --signal=USR1@900
# USR1 comes 15 minutes before the end, to every process of the step: the trainers finish their step and save. A
# checkpoint of SD3.5-Medium is some 55 GB; give a slow disk more.
set -uo pipefail

# In a job this is a copy that lies elsewhere.
if [ -z "${SLURM_JOB_ID:-}" ]; then
    source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
    echo "this is a job: sbatch scripts/slurm_train_sd35.sh (without SLURM: scripts/run_train_sd35.sh)" >&2
    exit 2
fi
unset CDPATH # with it, cd prints or goes elsewhere
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
export ACCELERATE_CONFIG="${ACCELERATE_CONFIG:-scripts/accelerate_multi_node.yaml}"

output="$(mktemp)"
# The paper's global batch of 32; sd35.yaml has it on one node.
[ "${SLURM_NNODES:-1}" = 1 ] || set -- --config scripts/configs/sd35_16gpus.yaml "$@"
# The launcher between srun and the trainers would die of USR1, which it does not know: it ignores it, and the
# trainers, which inherit that, set their own answer.
srun --kill-on-bad-exit=0 bash -c '
    trap "" USR1
    export LAUNCH_FLAGS="--machine_rank $SLURM_NODEID --num_machines $SLURM_NNODES --main_process_ip $MASTER_ADDR --num_processes $((8 * SLURM_NNODES))"
    exec bash scripts/run_train_sd35.sh --resume_from_checkpoint latest "$@"
' bash "$@" 2>&1 | tee "$output"
status=${PIPESTATUS[0]}

# Behind a launcher the trainers' own status is lost, but each prints what ended it. SIGTERM while they load does not
# count: the launcher sends it if one of them has failed.
grep -qE "stopped: (SIG[A-Z0-9]+: |SIGUSR1)" "$output"
warned=$?
rm -f "$output"
if [ "$status" != 0 ] && [ "$warned" = 0 ]; then
    echo "stopped by a signal: queued again"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
