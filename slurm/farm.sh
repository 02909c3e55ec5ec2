#!/usr/bin/env bash
#SBATCH --job-name=farm
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#SBATCH --signal=B:USR1@300
#
# Many albums on N nodes: a Ray cluster in this allocation, and the farm on it:
#
#   sbatch --nodes=8 --gpus-per-node=4 --cpus-per-task=32 --time=24:00:00 slurm/farm.sh ALBUMS --out DATASET --config sd21
#
# The arguments are those of `python -m launch farm`; relative paths start where sbatch was called. What is expected of
# file systems, of the environment (VENV, CONTAINER) and of the project's place is said in booth.sh.
#
# 300 s before the time limit, at a preemption, and at `scancel --signal=USR1 --batch JOB` all packs save, the job goes
# back to the queue and goes on from there. A node that fails is done without; a Ray process that dies is started again,
# and so is the farm itself, up to FARM_RESTARTS times (default 50). Several such jobs may share one DATASET.
set -euo pipefail
: "${SLURM_JOB_ID:?is not set: run this with sbatch}"

# sbatch runs a copy of this script, whose place says nothing.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -n 1) || :
for root in "$(dirname "$0")/.." "$(dirname "$script")/.." "$SLURM_SUBMIT_DIR"; do
  [[ ! -f $root/slurm/common.sh ]] || break
done
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"
# shellcheck source=slurm/ray_cluster.sh
source "$root/slurm/ray_cluster.sh"
find_root
find_python

start_ray
trap stop_ray EXIT
ended=$(mktemp)
for ((restart = 0; restart <= ${FARM_RESTARTS:-50}; restart++)); do
  code=0
  await_ray || code=$?
  if ((code == 0)); then
    rm -f "$ended"
    run_until_signal "${python[@]}" -m launch farm "$@" farm.address="$RAY_ADDRESS" farm.end_file="$ended" \
      farm.await_nodes="${#ray_nodes[@]}" || code=$?
    # It has come to its end by itself, or it was asked to.
    [[ -z ${asked_of_job:-} && ! -e $ended ]] || break
    # A mistake in the arguments, which another try would not mend.
    ((code != 2)) || break
  fi
  pause=$((restart < 6 ? 5 << restart : 300))
  echo "The farm has ended early (exit code $code); it is started again in $pause s." >&2
  sleep "$pause"
done
rm -f "$ended"
exit "$code"
