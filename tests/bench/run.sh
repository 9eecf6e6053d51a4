#!/bin/bash
# Builds and runs the benchmark suite: the machine's ceilings, and everything whose speed is promised
# against its rival or limit, in one run of less than 20 minutes on 2 cores. It needs 12 GiB of memory.
# --help has the flags.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
readonly root
readonly suite=(/usr/bin/python3 "$root/tests/bench/suite.py" --bin "$root/bazel-bin")
for argument in "$@"; do
  case $argument in
    -h | --help | --list) exec "${suite[@]}" "$@" ;;
  esac
done
# A mistake in the flags shows before anything is built.
"${suite[@]}" --check "$@"
"$root/deploy/install.sh" build runtime test
(cd "$root" && bazel build --jobs=2 //tests/bench:suite)
exec "${suite[@]}" "$@"
