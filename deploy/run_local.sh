#!/bin/bash
# Trains a job on this machine: one coordinator, expert servers and workers as separate processes on
# 127.0.0.1, from installing what is missing to the evaluated model.
set -euo pipefail

readonly me=run_local.sh
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly repo
readonly bin="$repo/bazel-bin"

readonly lib="$repo/deploy/lib"
source "$lib/messages.sh"
source "$lib/values.sh"
source "$lib/options.sh"
source "$lib/processes.sh"
source "$lib/build.sh"
source "$lib/run_folder.sh"
source "$lib/data.sh"
source "$lib/cluster.sh"
source "$lib/ending.sh"

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

main "$@"
