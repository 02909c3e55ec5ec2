# shellcheck shell=bash
# What PuzzleBooth's batch scripts share; they find and source it, see the top of booth.sh.
#
#   find_root     sets `root`, the project's folder, and lets Python find the project there from any folder
#   find_python   sets `python`, an array: the words of a command that runs Python
#   setting KEY VALUE ARGUMENT...   adds KEY=VALUE to the array `settings`, unless one of the arguments gives it already
#   run_until_signal COMMAND...   runs it, saves and requeues the job at USR1, saves and ends at TERM; returns its code,
#                                 and the signal's name in `asked_of_job`, which is empty where none came

find_root() {
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
  # The job's folder may be another copy of the project, which is not meant.
  export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
}

# VENV: a virtual environment. CONTAINER: words, quoted as for a shell, that run a command in a container.
find_python() {
  local container=()
  if [[ -n ${CONTAINER:-} ]]; then
    eval "container=($CONTAINER)"
    python=("${container[@]}" "${VENV:+$VENV/bin/}python")
    return
  fi
  local environment=${VENV:-}
  [[ -z $environment && -x $root/.venv/bin/python ]] && environment=$root/.venv
  if [[ -n $environment ]]; then
    python=("$environment/bin/python")
  else
    python=("$(command -v python || command -v python3 || echo python)")
  fi
  if ! command -v "${python[0]}" >/dev/null; then
    echo "There is no ${python[0]}: set VENV to the project's virtual environment, or activate it before sbatch." >&2
    return 127
  fi
}

settings=()
setting() {
  local word
  for word in "${@:3}"; do [[ $word != "$1="* ]] || return 0; done
  settings+=("$1=$2")
}

# Slurm's name of this job; of an array's task, whose number alone may mean the whole array.
_job() {
  echo "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_JOB_ID:+_$SLURM_ARRAY_TASK_ID}"
}

# Whether SIGTERM comes before a preemption, and is no scancel.
_preempted() {
  [[ $(scontrol show job "$(_job)" 2>/dev/null) =~ PreemptTime=[0-9] ]]
}

run_until_signal() {
  local code=0 again=0 child="" asked="" woken=""
  asked_of_job=""
  trap 'asked=USR1 woken=1; kill -TERM "$child" 2>/dev/null || :' USR1
  trap 'asked=${asked:-TERM} woken=1; kill -TERM "$child" 2>/dev/null || :' TERM
  "$@" &
  child=$!
  [[ -z $asked ]] || kill -TERM "$child"
  while :; do
    woken=""
    again=$code code=0
    wait "$child" || code=$?
    # A signal ends the wait, but not the command; had it ended just then, its code is not known a second time.
    [[ -n $woken ]] && continue
    ((code != 127)) || code=$again
    break
  done
  trap '' USR1 TERM
  # shellcheck disable=SC2034  # for who has called
  asked_of_job=$asked
  # Only what was stopped goes on: the command may have come to its end, or to an error, in the meantime.
  ((code > 128)) || return "$code"
  [[ $asked == TERM ]] && _preempted && asked=USR1
  [[ $asked == USR1 ]] || return "$code"
  echo "Saved; $(_job) goes back to the queue." >&2
  scontrol requeue "$(_job)" || return "$code"
}
