# shellcheck shell=bash
# train.sbatch: how it ends: by a signal, before the time limit, or with its coordinator. Needs messages.sh,
# steps.sh and the options.

readonly stop_patience=8       # seconds between SIGTERM and SIGKILL; below Slurm's KillWait (30)
readonly checkpoint_patience=90 # seconds; --signal of the allocation leaves 120
readonly try_again=75          # EX_TEMPFAIL

# end_with_coordinator [STATUS]: members have been told, and leave by themselves.
end_with_coordinator() {
  local status=${1:-}
  if [[ -z $status ]]; then
    status=0
    wait "$coordinator" || status=$?
  fi
  if ((status != 0)); then say "$me: $(last_words coordinator)"; fi
  local deadline=$((SECONDS + end_patience)) pid
  for pid in "${pid_of[@]}"; do
    while is_alive "$pid" && ((SECONDS < deadline)); do nap 0.2; done
  done
  exit "$status"
}

on_signal() {
  say "$me: stopping (SIG$1)"
  exit "$2"
}

on_time_limit() {
  trap '' USR1
  say "$me: the time is almost over; takes a checkpoint"
  local flags=()
  mapfile -t flags < <(flags_of moectl operator)
  timeout "$checkpoint_patience" "$moectl_program" checkpoint --coordinator "$address" "${flags[@]}" &
  wait $! || say "$me: no checkpoint was taken; the job goes on from the last one"
  if ((requeue)); then
    # Slurm stops this script.
    scontrol requeue "$SLURM_JOB_ID" || say "$me: cannot requeue the job"
    exit 0
  fi
  say "$me: submitted again, the same command goes on from there"
  exit "$try_again"
}

on_exit() {
  local status=$? pid alive=() deadline
  trap - EXIT
  trap '' TERM INT HUP USR1
  # The coordinator leaves the job to the next start, and members stop in order.
  for pid in "$coordinator" "${pid_of[@]}"; do
    if [[ -n $pid ]] && is_alive "$pid"; then
      alive+=("$pid")
      kill -TERM "$pid" 2>/dev/null || true
    fi
  done
  deadline=$((SECONDS + stop_patience))
  for pid in "${alive[@]}"; do
    while is_alive "$pid" && ((SECONDS < deadline)); do sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
  done
  exit "$status"
}

# What a process said last that is no logging.
last_words() {
  local said
  said=$(awk '/^--- / { said = ""; next } /^[IWE][0-9]+ |^slurmstepd|^srun/ { next } NF { said = $0 } END { print said }' \
    "$logs/$1.log")
  say "${said:-$1 said nothing; its log is $logs/$1.log}"
}

# name_of_signal STATUS: of a process that it ended.
name_of_signal() { say "SIG$(kill -l "$1")"; }
