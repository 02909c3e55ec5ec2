#!/usr/bin/env bash
# A private Slurm cluster of two nodes on this machine, for as long as a command runs:
#
#   tests/cluster/lab.sh DIR COMMAND...
#
# DIR must not exist; logs and Slurm's state go there. COMMAND runs on a login node called ctl, beside the nodes na and
# nb with CORES cores and GPUS pretended GPUs each. A node has its own network, host name, processes, /dev/shm and
# /tmp; DIR/small is a disk of SMALL_MB (default 0: none), to be filled. Folders in SHARED (words; DIR and the working folder always) are seen by all of them, as on a cluster's file
# system. Everything lives in namespaces of its own, so it cannot be seen from outside, and ends with COMMAND.
#
# Partitions: main (default; its jobs are requeued when preempted, after a grace of 30 s) and urgent, which preempts.
# Needs slurmctld, slurmd, the slurm client, munge, iproute2, and root or user namespaces.
set -euo pipefail

# In braces, so that the whole is read before it runs: an editor may save this file meanwhile.
{
if [[ ${1:-} != --inside ]]; then
  (($# >= 2)) || { echo "usage: $0 DIR COMMAND..." >&2; exit 64; }
  [[ ! -e $1 ]] || { echo "$1 is there already" >&2; exit 64; }
  user=()
  [[ $(id -u) -eq 0 ]] || user=(--user --map-current-user --keep-caps)
  exec unshare "${user[@]}" --mount --uts --net --ipc --pid --fork --kill-child --mount-proc --propagation private \
    -- bash "$0" --inside "$@"
fi
shift
mkdir -p "$1"
dir=$(realpath "$1")
shift

nodes=(na nb)
cores=${CORES:-2} gpus=${GPUS:-0} memory_mb=${MEMORY_MB:-8000}
small_mb=${SMALL_MB:-0}
subnet=10.99.7
export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF=$dir/etc/slurm.conf
mkdir -p "$dir"/{etc,log,state,munge,dev}
chmod 755 "$dir" "$dir/munge" "$dir/log"

if ((small_mb > 0)); then
  mkdir "$dir/small"
  mount -t tmpfs -o "size=${small_mb}m" tmpfs "$dir/small"
fi

# -- names and network ---------------------------------------------------------------------------------------------
{
  echo "127.0.0.1 localhost"
  echo "$subnet.100 ctl"
  for i in "${!nodes[@]}"; do echo "$subnet.$((i + 1)) ${nodes[i]}"; done
} >"$dir/etc/hosts"
mount --bind "$dir/etc/hosts" /etc/hosts
hostname ctl
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
ip link set lo up
ip link add cluster type bridge
ip addr add "$subnet.100/24" dev cluster
ip link set cluster up
for i in "${!nodes[@]}"; do
  node=${nodes[i]}
  ip netns add "$node"
  ip link add "to-$node" type veth peer name eth0 netns "$node"
  ip link set "to-$node" master cluster up
  ip -n "$node" link set lo up
  ip -n "$node" link set eth0 up
  ip -n "$node" addr add "$subnet.$((i + 1))/24" dev eth0
done

# -- Slurm ---------------------------------------------------------------------------------------------------------
gres="" types=""
: >"$dir/etc/gres.conf"
if ((gpus > 0)); then
  for ((i = 0; i < gpus; i++)); do ln -s /dev/null "$dir/dev/nvidia$i"; done # has to look like a device
  echo "Name=gpu File=$dir/dev/nvidia[0-$((gpus - 1))]" >"$dir/etc/gres.conf"
  gres="Gres=gpu:$gpus" types="GresTypes=gpu"
fi
echo "CgroupPlugin=cgroup/v1" >"$dir/etc/cgroup.conf"
cat >"$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=ctl($subnet.100)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((memory_mb / cores))
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SlurmdTimeout=30
ReturnToService=2
KillWait=5
MinJobAge=3600
$types
NodeName=na,nb CPUs=$cores SocketsPerBoard=1 CoresPerSocket=$cores ThreadsPerCore=1 RealMemory=$memory_mb $gres
PartitionName=main Nodes=ALL Default=YES DefaultTime=30 PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL DefaultTime=10 PriorityTier=10
CONF
(umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
  --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed"
slurmctld -i

# -- nodes ---------------------------------------------------------------------------------------------------------
start_node() {
  local node=$1
  mkdir -p -m 1777 "$dir/nodes/$node/tmp"
  # shellcheck disable=SC2016
  ip netns exec "$node" unshare --uts --mount --ipc --pid --fork --kill-child --mount-proc bash -euc '
    node=$1 dir=$2
    shift 2
    hostname "$node"
    mount -t tmpfs -o size=4g tmpfs /dev/shm
    own=$dir/nodes/$node/tmp
    # What is shared and lies below /tmp is seen in the node'"'"'s own /tmp, too.
    for shared; do
      case $shared in /tmp/*)
        mkdir -p "$own/${shared#/tmp/}"
        mount --rbind "$shared" "$own/${shared#/tmp/}" ;;
      esac
    done
    mount --rbind "$own" /tmp
    slurmd -D -N "$node" &
    wait' _ "$node" "$dir" "$dir" "$PWD" ${SHARED:-} >"$dir/log/node-$node.out" 2>&1 &
}
for node in "${nodes[@]}"; do start_node "$node"; done
for ((i = 0; i < 300; i++)); do
  [[ $(sinfo --noheader --Node --partition=main --states=idle --format=%N 2>/dev/null | wc -l) -eq ${#nodes[@]} ]] && break
  sleep 0.1
done
if ((i == 300)); then
  sinfo --Node --long >&2 || true
  tail -n 5 "$dir"/log/* >&2
  exit 70
fi
code=0
"$@" || code=$?
exit "$code"
}
