#!/usr/bin/env bash
# Does to a farm whatever happens on a cluster, one thing after the other: chaos.sh JOB DATASET DISK
#
# Runs on the login node of lab.sh, which sees the processes of both nodes. Before each event it waits until packs have
# begun since the last one. DISK: the folder whose disk is filled. Prints a line for each event.
set -uo pipefail
job=$1 dataset=$2 disk=$3

begun() { cat "$dataset"/.farm/packs/*/attempts.jsonl 2>/dev/null | grep -c '"begin"' || :; }
unfinished() { [[ $(squeue --noheader --job="$job" --format=%T 2>/dev/null) =~ RUNNING|PENDING|COMPLETING ]]; }
say() { echo "$(date +%T) $*"; }

# Waits until N more packs have begun.
await_packs() {
  local goal=$(($(begun) + $1)) i
  for ((i = 0; i < 600; i++)); do
    (($(begun) >= goal)) && return
    unfinished || { say "the farm was over too early"; exit 1; }
    sleep 0.2
  done
  say "no pack has begun for two minutes"
  exit 1
}

await_packs 1
sleep 3
say "kill a pack's process: $(pgrep -f 'launch.farm.worker' | head -n 1)"
pkill -9 -o -f '[-]m launch.farm.worker'

await_packs 1
sleep 3
victim=$(pgrep -f 'raylet/raylet .*--node_ip_address=10.99.7.2' | head -n 1)
say "kill the raylet of nb: ${victim:-none}"
kill -9 "$victim"

await_packs 1
sleep 3
victim=$(pgrep -f -- '-m launch farm ' | tail -n 1)
say "kill the driver: ${victim:-none}"
kill -9 "$victim"

await_packs 1
say "fill the disk"
fallocate -l "$(df --output=avail -B1 "$disk" | tail -n 1)" "$disk/filler" || dd if=/dev/zero of="$disk/filler" bs=1M 2>/dev/null
sleep 12
rm -f "$disk/filler"

await_packs 1
sleep 3
say "node nb is down"
scontrol update nodename=nb state=down reason=chaos
sleep 8
scontrol update nodename=nb state=resume 2>/dev/null || :

await_packs 1
sleep 3
say "a job of a higher partition wants na"
urgent=$(sbatch --parsable --partition=urgent --nodes=1 --nodelist=na --exclusive --output=/dev/null --wrap 'sleep 3')
for ((i = 0; i < 300; i++)); do
  [[ $(scontrol show job "$urgent") == *JobState=COMPLETED* ]] && break
  sleep 0.5
done
say "the urgent job is done"
