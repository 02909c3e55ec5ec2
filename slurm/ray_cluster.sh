# shellcheck shell=bash
# A Ray cluster inside a Slurm allocation; farm.sh sources it after common.sh.
#
#   start_ray    starts Ray's head on this node and a worker on each other one, keeps them there, sets RAY_ADDRESS
#   await_ray    waits until the head answers; fails when it does not within three minutes
#   stop_ray     ends all of it, and nobody else's Ray
#
# A Ray process that dies is started again, as long as its node is there. The cluster has a secret of its own: no other
# user of the nodes can send it work.

start_ray() {
  local node
  export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
  RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
  export RAY_AUTH_TOKEN
  mapfile -t ray_nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  # The batch script runs on the first node.
  local address
  address=$(getent ahostsv4 "${ray_nodes[0]}" | awk '$1 !~ /^127\./ {print $1; exit}')
  address=${address:-$(hostname --ip-address | awk '{print $1}')}
  ray_port=$((20000 + SLURM_JOB_ID % 10000))
  export RAY_ADDRESS=$address:$ray_port
  ray_options=(--num-cpus="${SLURM_CPUS_ON_NODE:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --object-store-memory="${RAY_OBJECT_STORE_BYTES:-100000000}" --disable-usage-stats --block)
  # Sockets live in there, whose paths must be short.
  ray_folder=/tmp/ray-$SLURM_JOB_ID
  _keep_ray head "${ray_nodes[0]}" --head --node-ip-address="$address" --port="$ray_port" --include-dashboard=false \
    --temp-dir="$ray_folder" &
  ray_keepers=($!)
  for node in "${ray_nodes[@]:1}"; do
    _keep_ray worker "$node" --address="$RAY_ADDRESS" &
    ray_keepers+=($!)
  done
}

# _keep_ray ROLE NODE OPTION...: Ray on a node, again and again, until TERM.
_keep_ray() {
  local role=$1 node=$2 step="" ending="" pause=2
  shift 2
  trap 'ending=1; [[ -z $step ]] || kill -TERM "$step" 2>/dev/null || :' TERM
  trap '' USR1 INT
  while [[ -z $ending ]]; do
    # The node tells its own address, since it may have several. What a former head left in the folder is of no use.
    # shellcheck disable=SC2016
    srun --overlap --mem=0 --nodes=1 --ntasks=1 --nodelist="$node" --cpu-bind=none --kill-on-bad-exit=1 \
      bash -c 'role=$1 folder=$2; shift 2
        [[ $role == head ]] && rm -rf "$folder"
        [[ $role == head ]] || set -- "$@" --node-ip-address="$(hostname --ip-address | cut -d" " -f1)"
        exec "$@"' _ "$role" "$ray_folder" "${python[@]}" -m ray.scripts.scripts start "$@" "${ray_options[@]}" &
    step=$!
    while kill -0 "$step" 2>/dev/null; do wait "$step" || :; done
    [[ -n $ending ]] && break
    echo "Ray's $role on $node has ended; it is started again in $pause s." >&2
    sleep "$pause" &
    step=$!
    wait "$step" || :
    pause=$((pause < 60 ? pause * 2 : 60))
  done
}

await_ray() {
  local i
  for ((i = 0; i < 90; i++)); do
    if "${python[@]}" -m ray.scripts.scripts health-check --address "$RAY_ADDRESS" >/dev/null 2>&1; then return 0; fi
    kill -0 "${ray_keepers[0]}" 2>/dev/null || break
    sleep 2
  done
  echo "Ray's head at $RAY_ADDRESS does not answer." >&2
  return 70
}

stop_ray() {
  local keeper
  for keeper in "${ray_keepers[@]:-}"; do [[ -z $keeper ]] || kill -TERM "$keeper" 2>/dev/null || :; done
  for keeper in "${ray_keepers[@]:-}"; do [[ -z $keeper ]] || wait "$keeper" 2>/dev/null || :; done
  rm -rf "${ray_folder:-/tmp/ray-none}"
}
