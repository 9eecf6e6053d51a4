#!/bin/bash
# Trains a job on this machine: one coordinator, expert servers and workers as separate processes on
# 127.0.0.1, from installing what is missing to the evaluated model.
set -euo pipefail

readonly me=run_local.sh
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly repo
readonly bin="$repo/bazel-bin"
readonly targets=(
  //server/coordinator:coordinator
  //server:expert_server
  //worker:worker
  //worker/data:prepare_text
  //client:moectl
)
# What a run starts; `bin` has them under the names of their targets.
readonly programs=(
  "$bin/server/coordinator/coordinator"
  "$bin/server/expert_server"
  "$bin/worker/worker"
  "$bin/worker/data/prepare_text"
)

# Seconds.
readonly quiet_build=5     # a build that takes longer shows its progress
readonly start_patience=20 # for the coordinator's address
readonly cause_patience=9  # for the coordinator's account of a failure: its lease, and time to tell
readonly end_patience=8    # for members to leave a finished job
stop_patience=4            # between SIGTERM and SIGKILL

usage() {
  cat <<'END'
Usage: deploy/run_local.sh [OPTION...]

Trains a mixture-of-experts language model on this machine. Installs and builds what is missing,
prepares the text, starts a coordinator, expert servers and workers as separate processes on
127.0.0.1, shows the progress, evaluates, and stops every process it started.

  --servers N    expert servers (default 2)
  --workers N    workers, at most as many as the job has replicas (default 2)
  --threads N    compute threads of each server and of each worker (default: the processors
                 divided among them)
  --job FILE     the job to train (default deploy/configs/kjv-moe.textproto; with --resume the
                 job that the run began with)
  --steps N      train for N optimizer steps, whatever the job says
  --text FILE    train on this text, one sentence or paragraph a line (default: the King James
                 Bible, from Debian's sword-text-kjv)
  --data DIR     train on a text that prepare_text has already prepared
  --out DIR      where data, checkpoints and logs go (default: out, in the repository)
  --resume       go on from the last checkpoint in --out; servers, workers and threads may differ
                 from those of the first run and change nothing in the result
  --help         this text

Ctrl-C stops everything; --resume goes on from the last checkpoint.

Exit status: 0 the job finished, 1 it failed (the cause is printed), 2 wrong options, 130 or 143
stopped by Ctrl-C or SIGTERM.

Examples:
  deploy/run_local.sh
  deploy/run_local.sh --servers 4 --steps 200 --out /tmp/first
  deploy/run_local.sh --resume --servers 1 --steps 400 --out /tmp/first
  deploy/run_local.sh --text book.txt --job deploy/configs/tiny.textproto --out /tmp/book
END
}

say() { printf '%s\n' "$*"; }

# For errors. Standard error itself goes to a log while processes are watched, since Bash announces
# there who was killed by a signal.
exec {errors}>&2

die() {
  printf '%s: %s\n' "$me" "$*" >&"$errors"
  exit 1
}

die_usage() {
  printf '%s: %s (see --help)\n' "$me" "$*" >&"$errors"
  exit 2
}

# ---- options

servers=2
workers=2
threads=
job=
steps=
text=
data=
out="$repo/out"
resume=0

parse_options() {
  while (($#)); do
    local option=$1 value=
    shift
    case "$option" in
      --*=*) value=${option#*=} option=${option%%=*} ;;
      --servers | --workers | --threads | --job | --steps | --text | --data | --out)
        (($#)) || die_usage "$option needs a value"
        value=$1
        shift
        ;;
    esac
    case "$option" in
      --servers) servers=$(count "$option" "$value") ;;
      --workers) workers=$(count "$option" "$value") ;;
      --threads) threads=$(count "$option" "$value") ;;
      --steps) steps=$(count "$option" "$value") ;;
      --job) job=$(existing_file "$option" "$value") ;;
      --text) text=$(existing_file "$option" "$value") ;;
      --data) data=$(existing_folder "$option" "$value") ;;
      --out)
        [[ -n $value ]] || die_usage "--out needs a folder"
        out=$value
        ;;
      --resume) resume=1 ;;
      --help | -h)
        usage
        exit 0
        ;;
      *) die_usage "unknown option: $option" ;;
    esac
  done
  [[ -z $text || -z $data ]] || die_usage "--text and --data exclude each other"
}

count() {
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die_usage "$1 is '$2'; it must be a whole number of at least 1"
  say "$2"
}

existing_file() {
  [[ -f $2 && -r $2 ]] || die_usage "$1: there is no readable file '$2'"
  realpath -- "$2"
}

existing_folder() {
  [[ -d $2 && -r $2 ]] || die_usage "$1: there is no readable folder '$2'"
  realpath -- "$2"
}

# ---- processes

declare -A name_of=()  # pid -> what it is, for all that this script started and that may be alive
started=()             # pids of the cluster
coordinator=           # its pid

# launch NAME LOG COMMAND...: starts COMMAND in a session of its own, so that Ctrl-C reaches this
# script alone, and with SIGTERM on its way should the script be killed. Sets `launched`.
launch() {
  local name=$1 log=$2
  shift 2
  setsid setpriv --pdeathsig TERM "$@" >>"$log" 2>&1 </dev/null {lock}>&- {errors}>&- &
  launched=$!
  name_of[$launched]=$name
}

is_alive() { kill -0 "$1" 2>/dev/null; }

declare -A status_of=()  # pid -> exit status, once reap has been called

# Takes the status of a process that has ended.
reap() {
  [[ -z ${status_of[$1]:-} ]] || return 0
  local status=0
  wait "$1" 2>/dev/null || status=$?
  status_of[$1]=$status
}

# wait_until_ended SECONDS PID...: fails if one of them is still alive after that time.
wait_until_ended() {
  local deadline=$((SECONDS + $1)) pid
  shift
  for pid in "$@"; do
    while is_alive "$pid"; do
      ((SECONDS < deadline)) || return 1
      sleep 0.1
    done
  done
}

# The coordinator first: it tells the members, which then leave of their own accord.
stop_coordinator() {
  [[ -n $coordinator ]] && is_alive "$coordinator" || return 0
  kill -TERM "$coordinator" 2>/dev/null || true
  wait_until_ended "$stop_patience" "$coordinator" || true
}

stop_all() {
  local pid alive=()
  for pid in "${!name_of[@]}"; do
    if is_alive "$pid"; then
      alive+=("$pid")
      kill -TERM "$pid" 2>/dev/null || true
    fi
  done
  ((${#alive[@]})) || return 0
  if ! wait_until_ended "$stop_patience" "${alive[@]}"; then
    kill_all
    wait_until_ended 2 "${alive[@]}" || true
  fi
}

kill_all() {
  local pid
  for pid in "${!name_of[@]}"; do
    if is_alive "$pid"; then kill -KILL "$pid" 2>/dev/null || true; fi
  done
}

# run_step NAME LOG COMMAND...: runs COMMAND to its end; shows the end of its log if it fails.
run_step() {
  local name=$1 log=$2 status=0
  : >"$log"
  launch "$@"
  wait "$launched" || status=$?
  unset "name_of[$launched]"
  ((status == 0)) && return
  tail -n 20 "$log" >&2
  die "$name failed (status $status); its log is $log"
}

stopped_by=

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

# ---- installing and building

build() {
  local stamp="$bin/run_local.stamp"
  is_built "$stamp" && return
  local log="$logs/build.log" next=$((SECONDS + quiet_build)) shown="" status=0
  : >"$log"
  launch "the build" "$log" env -C "$repo" bazel build -c opt --jobs=2 --color=no --curses=no \
    --show_progress_rate_limit=1 "${targets[@]}"
  while is_alive "$launched"; do
    sleep 0.1
    ((SECONDS >= next)) || continue
    next=$((SECONDS + quiet_build))
    [[ -n $shown ]] || say "Building (minutes, the first time; log: $log)"
    local progress
    progress=$(grep '^\[' "$log" | tail -n 1 || true)
    [[ -z $progress || $progress == "$shown" ]] || say "  $progress"
    shown=${progress:-begun}
  done
  wait "$launched" || status=$?
  unset "name_of[$launched]"
  if ((status != 0)); then
    grep -v '^\[\|^Loading\|^Analyzing' "$log" | tail -n 30 >&2 || true
    die "the build failed; its log is $log"
  fi
  fingerprint_of_programs >"$stamp"
}

# Whether the programs are those that this script built last and no source has changed since: asking
# Bazel takes seconds when its server isn't running.
is_built() {
  [[ -f $1 && $(fingerprint_of_programs) == "$(<"$1")" ]] || return 1
  local changed
  changed=$(cd "$repo" && find BUILD WORKSPACE .bazelrc proto common server client worker \
    third_party -newer "$1" -print -quit)
  [[ -z $changed ]]
}

fingerprint_of_programs() {
  stat -L -c '%n %s %Y' "${programs[@]}" 2>/dev/null || true
}

# ---- the run's folder
#
#   OUT/job.textproto   the job as it runs
#   OUT/data/           vocabulary and words; source.txt says of which text. Or a link to --data
#   OUT/checkpoints/    step-<step>/ each
#   OUT/state/          the coordinator's
#   OUT/logs/
#   OUT/result.json     written at the end of the job

open_out() {
  mkdir -p -- "$out" 2>/dev/null || die "cannot create the folder $out"
  out=$(realpath -- "$out")
  [[ -w $out ]] || die "the folder $out is not writable"
  logs="$out/logs"
  mkdir -p "$logs"
  exec {lock}>"$out/.lock"
  flock -n "$lock" || die "another run is using $out; give this one another --out"

  local last
  last=$(last_checkpoint)
  if ((resume)); then
    [[ -n $last ]] || die "there is no checkpoint in $out to go on from; start without --resume"
  elif [[ -n $last ]]; then
    die "$out already holds a run (checkpoint ${last##*/}): go on with it by --resume, give
  another folder by --out, or remove this one"
  else
    # Of a run that ended before its first checkpoint.
    rm -f "$out/result.json" "$out/job.textproto"
  fi
}

# The newest committed checkpoint's folder; empty if there is none.
last_checkpoint() {
  local manifest last=
  for manifest in "$out"/checkpoints/step-*/manifest.json; do
    [[ -f $manifest ]] && last=${manifest%/manifest.json}
  done
  say "$last"
}

prepare_job() {
  if [[ -z $job ]]; then
    job="$repo/deploy/configs/kjv-moe.textproto"
    if ((resume)) && [[ -f $out/job.textproto ]]; then job="$out/job.textproto"; fi
  fi
  local derived
  derived=$(if [[ -n $steps ]]; then set_steps "$steps" "$job"; else cat "$job"; fi)
  say "$derived" >"$out/job.textproto"
  # Errors shall name the user's own file where they can.
  if [[ -n $steps ]]; then job="$out/job.textproto"; fi
}

# set_steps N FILE: the job with training.steps = N. Reads just enough text format for that: names,
# braces, comments and strings.
set_steps() {
  awk -v steps="$1" '
    { text = text $0 "\n" }
    END {
      depth = 0; training = 0; done = 0
      while (length(text) > 0) {
        if (match(text, /^#[^\n]*/) || match(text, /^"([^"\\\n]|\\.)*"/) ||
            match(text, /^[A-Za-z0-9_.+-]+/) || match(text, /^[ \t\r\n]+/)) {
          token = substr(text, 1, RLENGTH)
        } else {
          token = substr(text, 1, 1)
        }
        text = substr(text, length(token) + 1)
        if (token ~ /^[{<]/) {
          if (++depth == 1) training = name == "training"
        } else if (token ~ /^[}>]/) {
          if (--depth == 0 && training && !done) { token = "  steps: " steps "\n" token; done = 1 }
        } else if (token == "steps" && training && depth == 1) {
          sub(/^[ \t\r\n]*:[ \t\r\n]*[0-9]+/, ": " steps, text)
          done = 1
        } else if (token ~ /^[A-Za-z0-9_]/) {
          name = token
        }
        printf "%s", token
      }
      if (!done) printf "training { steps: %s }\n", steps
    }' "$2"
}

# Makes OUT/data, or a link there to what --data names.
prepare_data() {
  local folder="$out/data" source prepared=""
  if [[ -n $data ]]; then
    [[ $data -ef $folder ]] && return
    remove_data
    ln -s "$data" "$folder"
    return
  fi
  if ((resume)) && [[ -z $text && -e $folder/meta.json ]]; then return; fi
  source=$(describe_source)
  [[ -f $folder/source.txt ]] && prepared=$(<"$folder/source.txt")
  [[ $prepared != "$source" ]] || return 0
  if ((resume)); then
    die "the run in $out was trained on another text (${prepared:-that of $(realpath "$folder")})"
  fi

  say "Preparing the text: $source"
  local log="$logs/data.log" fresh="$out/data.new"
  local prepare=("$bin/worker/data/prepare_text" --out "$fresh")
  remove_data
  rm -rf "$fresh"
  if [[ -n $text ]]; then
    prepare+=(--text "$text")
  else
    fetch_kjv
    prepare+=(--text "$kjv" --strip_verse_references --min_count 3)
  fi
  run_step "preparing the text" "$log" "${prepare[@]}"
  say "$source" >"$fresh/source.txt"
  mv "$fresh" "$folder"
}

# Removes OUT/data of an earlier run, and never a folder that isn't this script's.
remove_data() {
  local folder="$out/data"
  [[ ! -e $folder || -L $folder || -f $folder/source.txt ]] ||
    die "$folder is there and no run of this script made it; give another folder by --out"
  rm -rf "$folder"
}

# Sets `kjv` to the King James Bible as a text file. Reading it takes some seconds, so it is kept.
fetch_kjv() {
  local reader="$repo/deploy/kjv_text.sh"
  kjv="${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/switchyard/kjv-$(kjv_version).txt"
  if [[ ! -f $kjv || $reader -nt $kjv ]]; then
    run_step "reading the King James Bible" "$logs/data.log" "$reader" "$kjv"
  fi
}

kjv_version() { dpkg-query -W -f '${Version}' sword-text-kjv; }

describe_source() {
  if [[ -n $text ]]; then
    say "${text##*/}, SHA-256 $(sha256sum <"$text" | cut -c 1-16)"
  else
    say "King James Bible, sword-text-kjv $(kjv_version)"
  fi
}

# ---- the cluster

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

  for ((i = 0; i < servers; ++i)); do
    start_member "server s$i" "$logs/server-s$i.log" "$bin/server/expert_server" --name "s$i" \
      --listen 127.0.0.1:0 --coordinator "$address" --threads "$server_threads"
  done
  for ((i = 0; i < workers; ++i)); do
    start_member "worker w$i" "$logs/worker-w$i.log" "$bin/worker/worker" --name "w$i" \
      --coordinator "$address" --data "$out/data" --threads "$worker_threads"
  done
}

share_of_processors() {
  local share=$(($(nproc) / $1))
  say $((share > 0 ? share : 1))
}

declare -A log_of=()

start_member() {
  local name=$1 log=$2
  mark_start "$log"
  launch "$@"
  started+=("$launched")
  log_of[$launched]=$log
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

# Until the coordinator has ended well; ends the script if any process fails.
supervise() {
  local pid
  while is_alive "$coordinator"; do
    for pid in "${started[@]}"; do fail_if_failed "$pid"; done
    sleep 0.2
  done
  fail_if_failed "$coordinator"
  if ! wait_until_ended "$end_patience" "${started[@]}"; then
    say "$me: some processes did not leave the finished job and are stopped" >&"$errors"
  fi
}

fail_if_failed() {
  if is_alive "$1"; then return; fi
  reap "$1"
  if ((status_of[$1] != 0)); then fail "$1"; fi
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

main() {
  parse_options "$@"
  trap on_exit EXIT
  trap 'on_signal INT 130' INT
  trap 'on_signal TERM 143' TERM
  trap 'on_signal HUP 129' HUP
  open_out
  install_packages
  build
  prepare_job
  prepare_data
  start_cluster
  supervise
  wait_until_ended 2 "$viewer" || true
  say_where_things_are
}

install_packages() {
  "$repo/deploy/install.sh" build runtime
}

main "$@"
