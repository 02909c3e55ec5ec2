#!/usr/bin/env bash
#SBATCH --job-name=array
#SBATCH --array=1-2
#SBATCH --nodes=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
#SBATCH --signal=B:USR1@120
#
# Many albums without Ray: every task of a job array takes packs that no other one has, until there are none left:
#
#   sbatch --array=1-8 --gpus-per-node=1 --cpus-per-task=8 slurm/array.sh ALBUMS --out DATASET --config sd21
#
# The arguments are those of `python -m launch farm`; relative paths start where sbatch was called. No task needs another
# one: each begins when there is room for it, more arrays can be added while one runs, and `--array=1-100%10` keeps to
# ten at a time. What is expected of file systems, of the environment (VENV, CONTAINER) and of the project's place is
# said in booth.sh. The file system has to keep locks (flock) between nodes.
#
# 120 s before the time limit, at a preemption, and at `scancel --signal=USR1 --batch JOB_TASK` the pack saves, and the
# task goes back to the queue, to go on from there. scancel alone saves and ends, within the cluster's KillWait.
set -euo pipefail
: "${SLURM_JOB_ID:?is not set: run this with sbatch}"

# sbatch runs a copy of this script, whose place says nothing.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -n 1) || :
for root in "$(dirname "$0")/.." "$(dirname "$script")/.." "$SLURM_SUBMIT_DIR"; do
  [[ ! -f $root/slurm/common.sh ]] || break
done
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"
find_root
find_python

setting farm.scheduler alone "$@"
setting runtime.num_threads "${SLURM_CPUS_ON_NODE:-1}" "$@"
code=0
run_until_signal "${python[@]}" -m launch farm "$@" "${settings[@]}" || code=$?
exit "$code"
