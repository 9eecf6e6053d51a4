# shellcheck shell=bash
# run_local.sh: processes that it starts, and that end with it. Needs messages.sh.

declare -A name_of=()    # pid -> what it is, for all that the script started and that may be alive
declare -A status_of=()  # pid -> exit status, once reap has been called
stop_patience=4          # seconds between SIGTERM and SIGKILL

# launch NAME LOG COMMAND...: starts COMMAND in a session of its own, so that Ctrl-C reaches the
# script alone, and with SIGTERM on its way should the script be killed. Sets `launched`.
launch() {
  local name=$1 log=$2
  shift 2
  setsid setpriv --pdeathsig TERM "$@" >>"$log" 2>&1 </dev/null {lock}>&- {errors}>&- &
  launched=$!
  name_of[$launched]=$name
}

is_alive() { kill -0 "$1" 2>/dev/null; }

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
