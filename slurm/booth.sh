#!/usr/bin/env bash
#SBATCH --job-name=booth
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --signal=B:USR1@120
#
# One album, or a pack of some, trained on all GPUs of N nodes (on their cores where they have no GPU):
#
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=16 --time=2:00:00 slurm/booth.sh ALBUM... --config NAME key=value
#
# The arguments are those of `python -m launch run`; relative paths start where sbatch was called. runtime.num_nodes,
# runtime.node_launcher, runtime.devices and runtime.num_threads follow the allocation unless they are among them.
# Several nodes train the personalisation; the stages behind it go on in one process on the first node.
#
# Expected: the project, the albums, the output folder and the environment lie on file systems that all nodes see, and
# nodes know each other by name. The project is found by the path of this script, or is the folder that sbatch was
# called in. Python is that of VENV (a virtual environment), else of .venv in the project, else the active one. Where
# CONTAINER holds words, such as "apptainer exec --nv image.sif", Python runs behind them; with several nodes srun must
# work in there, too. Which network the nodes use is NCCL's and Gloo's choice; NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME
# change it.
#
# 120 s before the time limit, at a preemption, and at `scancel --signal=USR1 --batch JOB` the training saves, ends, and
# the job goes back to the queue, to go on from there. scancel alone saves and ends, within the cluster's KillWait.
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

devices=${SLURM_GPUS_ON_NODE:-0}
((devices > 0)) || devices=1
threads=$((${SLURM_CPUS_ON_NODE:-1} / devices))
setting runtime.devices "$devices" "$@"
setting runtime.num_threads "$((threads > 0 ? threads : 1))" "$@"
setting runtime.num_nodes "$SLURM_JOB_NUM_NODES" "$@"
if ((SLURM_JOB_NUM_NODES > 1)); then
  launcher="srun --overlap --mem=0 --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1"
  launcher+=" --cpu-bind=none --kill-on-bad-exit=1 ${CONTAINER:-}"
  # In YAML's quotes, since a value is read as YAML.
  setting runtime.node_launcher "'${launcher//\'/\'\'}'" "$@"
fi

code=0
run_until_signal "${python[@]}" -m launch run "$@" "${settings[@]}" || code=$?
exit "$code"
