# shellcheck shell=bash
# run_local.sh: how a run ends: by a signal, by a failure, or well. Needs messages.sh, processes.sh,
# and the pids that cluster.sh keeps.

# Seconds for the coordinator's account of a failure: its lease, and time to tell.
readonly cause_patience=9

stopped_by= # the signal that ended the script

on_signal() {
  stopped_by=$1
  exit "$2"
}

on_exit() {
  local status=$?
  trap - EXIT
  trap '' HUP
  # A second Ctrl-C: no more patience.
  trap kill_all INT TERM
  if [[ -n $stopped_by ]]; then
    say
    say "Stopping (signal $stopped_by)"
    stop_coordinator
  fi
  stop_all
  if [[ -n $stopped_by && ${#started[@]} -gt 0 ]]; then say_how_to_go_on; fi
  exit "$status"
}

# The coordinator first: it tells the members, which then leave of their own accord.
stop_coordinator() {
  [[ -n $coordinator ]] && is_alive "$coordinator" || return 0
  kill -TERM "$coordinator" 2>/dev/null || true
  wait_until_ended "$stop_patience" "$coordinator" || true
}

# fail PID: PID was seen first among those that ended badly.
fail() {
  # The coordinator knows the first cause; the others may only report that the job is over.
  if wait_until_ended "$cause_patience" "$coordinator"; then
    wait_until_ended 2 "$viewer" || true
  fi
  stop_patience=1
  {
    say
    say "$me: the job failed"
    describe_failure "$1"
    say_how_to_go_on
    say "  logs: $logs"
  } >&"$errors"
  exit 1
}

# Who was killed, and the cause as the coordinator gives it, or else the first to end badly.
describe_failure() {
  local pid
  for pid in "${started[@]}"; do
    is_alive "$pid" && continue
    reap "$pid"
    ((status_of[$pid] <= 128)) || say "  $(describe_end "$pid")"
  done
  local speaker=$coordinator
  [[ ${status_of[$coordinator]:-} == 1 ]] || speaker=$1
  say "  $(words_of "$speaker" | tail -n 1)"
}

# What a process of the cluster said in this run: its lines that aren't logging, or a failed check.
words_of() {
  local said
  said=$(awk '
    /^--- / { said = ""; failed = 0; next }
    failed || /^[IWE][0-9]+ / || /^ *@ / { next }
    /^F[0-9]+ / { failed = 1; said = "" }
    { said = said $0 "\n" }
    END { printf "%s", said }' "${log_of[$1]}")
  say "${said:-${name_of[$1]} said nothing; its log is ${log_of[$1]}}"
}

# "server s1 was killed by SIGKILL", "worker w0 ended with status 1"
describe_end() {
  reap "$1"
  local status=${status_of[$1]}
  if ((status > 128)); then
    say "${name_of[$1]} was killed by SIG$(kill -l "$status")"
  else
    say "${name_of[$1]} ended with status $status"
  fi
}

say_how_to_go_on() {
  local last
  last=$(last_checkpoint)
  if [[ -n $last ]]; then
    say "  the last checkpoint is $last"
    say "  go on from it: deploy/run_local.sh --resume --out $(printf '%q' "$out")"
  else
    say "  no checkpoint was taken yet; the same command starts from the beginning"
  fi
}

say_where_things_are() {
  say
  say "checkpoints  $out/checkpoints"
  say "logs         $logs"
  say "result       $out/result.json"
}
