#!/bin/bash
# Builds and runs the benchmark suite: the machine's ceilings, and everything whose speed is promised
# against its rival or limit, in one run of less than 20 minutes on 2 cores. --help has the flags.
set -euo pipefail
cd "$(dirname "$0")/../.."
for argument in "$@"; do
  case $argument in
    -h | --help | --list) exec /usr/bin/python3 tests/bench/suite.py "$@" ;;
  esac
done
# A mistake in the flags shows before anything is built.
/usr/bin/python3 tests/bench/suite.py --check "$@"
deploy/install.sh build runtime test
bazel build --jobs=2 //tests/bench:suite
exec /usr/bin/python3 tests/bench/suite.py "$@"
