#!/bin/bash
# Installs what is missing, builds, runs every test and counts the cases.
set -euo pipefail

usage() {
  cat <<'END'
Usage: tests/run_all.sh [--help] [BAZEL_OPTION_OR_TARGET...]

Installs what is missing, builds, and runs every test (//...). Ends with the line
`N passed, N failed`, counting single cases, and fails if any of them did.
Arguments go to `bazel test`; targets among them replace //...:

  tests/run_all.sh --config=asan
  tests/run_all.sh //common/...

  JOBS=N    parallel actions and tests (default 2)
END
}

targets=()
options=()
for arg in "$@"; do
  case "$arg" in
    -h | --help) usage; exit 0 ;;
    //* | :* | -//*) targets+=("$arg") ;;
    *) options+=("$arg") ;;
  esac
done
((${#targets[@]})) || targets=(//...)

cd "$(dirname "${BASH_SOURCE[0]}")/.."
deploy/install.sh

events=$(mktemp)
trap 'rm -f "$events"' EXIT

# Keep going: one broken target must not hide the others' results.
bazel test --keep_going --jobs="${JOBS:-2}" --build_event_json_file="$events" \
  "${options[@]}" -- "${targets[@]}" &&
  status=0 || status=$?

/usr/bin/python3 tests/summarize.py "$events" "$status"
