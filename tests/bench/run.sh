#!/bin/bash
# Builds and times training against PyTorch in one run; the flags are those of training.py.
#   tests/bench/run.sh [--rounds N] [--steps N] [--d_model D --hidden H --experts N --k K] [--csv FILE]
set -euo pipefail
cd "$(dirname "$0")/../.."
deploy/install.sh build runtime test
bazel build --jobs=2 //server:expert_server //server/coordinator:coordinator //worker:worker \
  //worker/data:prepare_text //tests/cluster:train_in_process
exec /usr/bin/python3 tests/bench/training.py "$@"
