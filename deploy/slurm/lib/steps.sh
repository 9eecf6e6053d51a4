# shellcheck shell=bash
# train.sbatch: the run's folder, the processes, and starting them again. Needs messages.sh, the options,
# placement.sh and ending.sh.

readonly start_patience=1800  # seconds for the coordinator to listen; it checks its checkpoint first
readonly end_patience=20      # seconds for members to leave a finished job
readonly restart_limit=20     # how often a process is started again
readonly short_life=10        # seconds: a step that lived for less goes to another node next time

coordinator=                  # its pid
coordinator_starts=0
address=
declare -A pid_of=()          # of the srun of each member that runs or is to run: server-s0, ...
declare -A number_of=() starts_of=() attempt_of=() started_at=() next_start=()

open_out() {
  mkdir -p -- "$out/logs" 2>/dev/null || die "cannot create the folder $out"
  out=$(realpath -- "$out")
  logs="$out/logs"
}

# Makes OUT/data of --text, unless it is there.
prepare_data() {
  [[ -n $text ]] || return 0
  local source
  source="${text##*/}, SHA-256 $(sha256sum <"$text" | cut -c 1-16)"
  data="$out/data"
  if [[ -f $data/source.txt ]]; then
    [[ $(<"$data/source.txt") == "$source" ]] ||
      die "$data was made of another text ($(<"$data/source.txt")); give another --out"
    return 0
  fi
  [[ ! -e $data ]] || die "$data is there and this script didn't make it; give it as --data"
  say "Preparing the text: $source"
  rm -rf "$data.new"
  "$prepare_program" --text "$text" --out "$data.new" >"$logs/data.log" 2>&1 ||
    die "preparing the text failed: $(tail -n 1 "$logs/data.log"); its log is $logs/data.log"
  say "$source" >"$data.new/source.txt"
  mv "$data.new" "$data"
}

# Beside this script, so that they live and die together; the job's output is the progress.
start_coordinator() {
  local listen flags=()
  # Members know it by its address: once it has one it keeps it.
  listen=${address:-$(bash -c "$host_command"):0}
  mapfile -t flags < <(flags_of coordinator coordinator)
  mark_start coordinator
  if [[ -z $address ]]; then rm -f "$out/coordinator.address"; fi
  "$coordinator_program" --supervised --job "$job" --listen "$listen" --servers "$servers" --workers "$workers" \
    --port_file "$out/coordinator.address" --state_dir "$out/state" \
    --checkpoint_dir "$out/checkpoints" --result_json "$out/result.json" "${flags[@]}" \
    2>>"$logs/coordinator.log" </dev/null &
  coordinator=$!
  ((++coordinator_starts))
  [[ -z $address ]] || return 0
  local deadline=$((SECONDS + start_patience))
  until [[ -s $out/coordinator.address ]]; do
    is_alive "$coordinator" || break
    ((SECONDS < deadline)) ||
      die "the coordinator is silent for $start_patience s; its log is $logs/coordinator.log"
    nap 0.2
  done
  # A job that is finished needs nobody.
  [[ -s $out/coordinator.address ]] || end_with_coordinator
  address=$(<"$out/coordinator.address")
  say "Coordinator at $address"
}

start_members() {
  local i n=0
  for ((i = 0; i < servers; ++i)); do number_of[server-s$i]=$((n++)); done
  for ((i = 0; i < workers; ++i)); do number_of[worker-w$i]=$((n++)); done
  local member
  for member in "${!number_of[@]}"; do
    starts_of[$member]=0 attempt_of[$member]=0
    start_member "$member"
  done
}

# A step of its own, on the node that is its place. Steps share the allocation's CPUs and memory there.
start_member() {
  local member=$1 name=${1#*-} node flags=() command
  node=$(place "${number_of[$member]}" "${attempt_of[$member]}")
  mark_start "$member"
  if [[ $member == server-* ]]; then
    mapfile -t flags < <(flags_of expert_server server)
    # On the node, which alone knows its name.
    # shellcheck disable=SC2016
    command=(bash -c 'host=$(bash -c "$1") && shift && exec "$@" --listen "$host:0"' "$me" "$host_command"
      "$server_program")
  else
    mapfile -t flags < <(flags_of worker worker)
    command=("$worker_program" --data "$data")
  fi
  command+=(--name "$name" --coordinator "$address" --threads "$threads" "${flags[@]}")
  srun --overlap --mem=0 --cpu-bind=none --nodes=1 --ntasks=1 --nodelist="$node" --job-name="$member" \
    --kill-on-bad-exit=0 --open-mode=append --output="$logs/$member.log" --error="$logs/$member.log" \
    "${command[@]}" 2>>"$logs/slurm.log" </dev/null &
  pid_of[$member]=$!
  started_at[$member]=$SECONDS
  ((++starts_of[$member]))
}

# Separates the runs whose output a log holds.
mark_start() { say "--- $(date '+%F %T')" >>"$logs/$1.log"; }

is_alive() { kill -0 "$1" 2>/dev/null; }

# A sleep that a signal to this script cuts short.
nap() {
  sleep "$1" &
  wait $! || true
}

# Until the coordinator has ended for good.
supervise() {
  local member
  while true; do
    look_after_coordinator
    for member in "${!pid_of[@]}"; do look_after_member "$member"; done
    nap 0.5
  done
}

look_after_coordinator() {
  if is_alive "$coordinator"; then return; fi
  local status=0
  wait "$coordinator" || status=$?
  if ((status <= 128)) || ((coordinator_starts > restart_limit)); then end_with_coordinator "$status"; fi
  say "$me: the coordinator was killed by $(name_of_signal "$status") and is started again"
  start_coordinator
}

look_after_member() {
  local member=$1 status=0
  if [[ -n ${next_start[$member]:-} ]]; then
    ((SECONDS >= next_start[$member])) || return 0
    unset "next_start[$member]"
    start_member "$member"
    return
  fi
  if is_alive "${pid_of[$member]}"; then return; fi
  wait "${pid_of[$member]}" || status=$?
  # The job is finished, or doesn't need it any more.
  if ((status == 0)); then
    unset "pid_of[$member]"
    return
  fi
  # The coordinator knows the first cause of what ends everybody.
  local deadline=$((SECONDS + 2))
  while is_alive "$coordinator" && ((SECONDS < deadline)); do nap 0.2; done
  is_alive "$coordinator" || return 0
  if ((starts_of[$member] > restart_limit)); then
    say "$me: $member ended ${starts_of[$member]} times, the last time with status $status: $(last_words "$member")"
    exit 1
  fi
  if ((SECONDS - started_at[$member] < short_life)); then ((++attempt_of[$member])); fi
  say "$me: $member ended with status $status and is started again on" \
    "$(place "${number_of[$member]}" "${attempt_of[$member]}"); its log is $logs/$member.log"
  next_start[$member]=$SECONDS
}
