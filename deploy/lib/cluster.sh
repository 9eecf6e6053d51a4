# shellcheck shell=bash
# run_local.sh: starts the cluster's processes and watches them. Needs messages.sh, processes.sh,
# ending.sh, the options and the run's folder.

# Seconds.
readonly start_patience=20 # for the coordinator's address
readonly end_patience=8    # for members to leave a finished job
readonly restart_limit=10  # how often a member that is killed is started again
readonly disk_patience=10m # as a flag: for each other, of members with experts on disk
readonly longest_socket=107 # bytes of a unix socket's path

started=()           # pids of the cluster
coordinator=         # its pid
declare -A log_of=() # pid -> the file that holds its output
declare -A command_of=()  # pid of a member -> its command, quoted
declare -A restarts_of=() # name of a member -> how often it was started again

start_cluster() {
  local address_file="$out/coordinator.address" i
  local server_threads=${threads:-$(share_of_processors "$servers")}
  local worker_threads=${threads:-$(share_of_processors "$workers")}
  rm -f "$address_file"

  local coordinator_flags=(
    --job "$job" --listen 127.0.0.1:0 --port_file "$address_file"
    --state_dir "$out/state" --checkpoint_dir "$out/checkpoints"
    --servers "$servers" --workers "$workers" --result_json "$out/result.json"
  )
  ((resume)) && coordinator_flags+=(--resume)
  exec 2>>"$logs/run_local.log"
  start_coordinator "${coordinator_flags[@]}"
  await_address "$address_file"

  # A step that waits for the disk may be slow.
  local server_flags=() worker_flags=()
  if [[ -n $disk_gib ]]; then
    mkdir -p "$out/disk"
    server_flags=(--disk_dir "$out/disk" --disk_gib "$disk_gib" --rendezvous_timeout "$disk_patience")
    worker_flags=(--step_timeout "$disk_patience")
  fi
  for ((i = 0; i < servers; ++i)); do
    start_member "server s$i" "$logs/server-s$i.log" "$bin/server/expert_server" --name "s$i" \
      --listen "$(server_address "s$i")" --coordinator "$address" --threads "$server_threads" \
      "${server_flags[@]}"
  done
  for ((i = 0; i < workers; ++i)); do
    start_member "worker w$i" "$logs/worker-w$i.log" "$bin/worker/worker" --name "w$i" \
      --coordinator "$address" --data "$out/data" --threads "$worker_threads" "${worker_flags[@]}"
  done
}

# A unix socket, which takes a quarter less of the processors than loopback, if its path may be so long.
server_address() {
  local LC_ALL=C  # counts bytes
  local path="$out/$1.socket"
  if ((${#path} > longest_socket)); then path=; fi
  say "${path:+unix:}${path:-127.0.0.1:0}"
}

share_of_processors() {
  local share=$(($(nproc) / $1))
  say $((share > 0 ? share : 1))
}

start_member() {
  local name=$1 log=$2
  mark_start "$log"
  launch "$@"
  started+=("$launched")
  log_of[$launched]=$log
  printf -v "command_of[$launched]" '%q ' "${@:3}"
}

# Separates the runs whose output a log holds.
mark_start() { say "--- $(date '+%F %T')" >>"$1"; }

# The coordinator's standard output is the progress: a file, shown as it grows.
start_coordinator() {
  local progress="$logs/progress.log" log="$logs/coordinator.log" size
  mark_start "$log"
  mark_start "$progress"
  size=$(stat -c %s "$progress")
  setsid setpriv --pdeathsig TERM "$bin/server/coordinator/coordinator" "$@" \
    >>"$progress" 2>>"$log" </dev/null {lock}>&- {errors}>&- &
  coordinator=$!
  name_of[$coordinator]="the coordinator"
  log_of[$coordinator]=$log
  started+=("$coordinator")
  setsid setpriv --pdeathsig TERM tail -s 0.2 -f -c +$((size + 1)) --pid="$coordinator" \
    "$progress" {lock}>&- {errors}>&- &
  viewer=$!
  name_of[$viewer]="the progress display"
}

await_address() {
  local deadline=$((SECONDS + start_patience))
  until [[ -s $1 ]]; do
    if ! is_alive "$coordinator"; then
      wait_until_ended 2 "$viewer" || true
      die "the coordinator did not start
$(words_of "$coordinator")"
    fi
    ((SECONDS < deadline)) ||
      die "the coordinator is silent for $start_patience s; its log is ${log_of[$coordinator]}"
    sleep 0.05
  done
  address=$(<"$1")
  say "Coordinator at $address: bazel-bin/client/moectl top --coordinator $address"
}

# Until the coordinator has ended well. Members that are killed are started again; the script ends if any
# process fails.
supervise() {
  local pid
  while is_alive "$coordinator"; do
    for pid in "${started[@]}"; do
      restart_if_killed "$pid" || fail_if_failed "$pid"
    done
    sleep 0.2
  done
  fail_if_failed "$coordinator"
  if ! wait_until_ended "$end_patience" "${started[@]}"; then
    say "$me: some processes did not leave the finished job and are stopped" >&"$errors"
  fi
}

# Fails if it didn't start anything.
restart_if_killed() {
  if is_alive "$1"; then return 1; fi
  reap "$1"
  local name=${name_of[$1]} command=${command_of[$1]:-} log=${log_of[$1]} pid others=()
  if [[ -z $command ]] || ((status_of[$1] <= 128)) || ! is_alive "$coordinator"; then return 1; fi
  ((restarts_of[$name] = ${restarts_of[$name]:-0} + 1))
  if ((restarts_of[$name] > restart_limit)); then return 1; fi
  say "$me: $(describe_end "$1") and is started again; its log is $log" >&"$errors"
  for pid in "${started[@]}"; do
    if [[ $pid != "$1" ]]; then others+=("$pid"); fi
  done
  started=("${others[@]}")
  eval "start_member $(printf '%q %q' "$name" "$log") $command"
}

fail_if_failed() {
  if is_alive "$1"; then return; fi
  reap "$1"
  if ((status_of[$1] != 0)); then fail "$1"; fi
}
