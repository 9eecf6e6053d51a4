# shellcheck shell=bash
# run_local.sh: installs packages and builds programs, where they are missing. Needs messages.sh,
# processes.sh, `repo`, `bin` and `logs`.

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

readonly quiet_build=5 # seconds; a build that takes longer shows its progress

install_packages() {
  "$repo/deploy/install.sh" build runtime
}

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
