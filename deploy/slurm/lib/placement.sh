# shellcheck shell=bash
# train.sbatch: which member runs on which node. Needs messages.sh and the options.

slots=() # the node of each task of the allocation

find_slots() {
  local nodes=() per_node=() part i n=0
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  # As in 3,1(x2): tasks of each node.
  for part in ${SLURM_TASKS_PER_NODE//,/ }; do
    if [[ $part =~ ^([0-9]+)\(x([0-9]+)\)$ ]]; then
      for ((i = 0; i < BASH_REMATCH[2]; ++i)); do per_node+=("${BASH_REMATCH[1]}"); done
    else
      per_node+=("$part")
    fi
  done
  for ((n = 0; n < ${#nodes[@]}; ++n)); do
    for ((i = 0; i < ${per_node[n]:-1}; ++i)); do slots+=("${nodes[n]}"); done
  done
  local needed=$((1 + servers + workers))
  ((${#slots[@]} >= needed)) ||
    die_usage "the allocation has ${#slots[@]} tasks for $needed processes; submit it with sbatch --ntasks=$needed"
}

# place MEMBER_NUMBER ATTEMPT: the node of the member. The first task is the coordinator's. With each attempt
# that came to nothing it is that of the next task.
place() {
  say "${slots[(1 + $1 + $2) % ${#slots[@]}]}"
}
