#!/bin/bash
# Debian's Python has the PyTorch that deploy/packages.txt names; whatever else is on PATH may not.
set -euo pipefail
exec /usr/bin/python3 tests/worker/sampled_softmax_torch_test.py tests/worker/sampled_softmax_dump
