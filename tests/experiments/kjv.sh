#!/bin/bash
# The King James series: the mixture of experts against the dense model of equal active
# multiply-adds, three seeds each, and the mixture without its balancing losses.
#
#   tests/experiments/kjv.sh [OUT]        OUT: where the runs go (default: out/kjv-series)
#
# Each run is deploy/run_local.sh on the shipped job with another seed. A run that is finished is not
# repeated, one that was stopped goes on from its last checkpoint: call it again after an
# interruption. Prints a table and writes OUT/kjv.csv. About 45 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/experiments/series.sh
out="${1:-out/kjv-series}"
open_series "$out" 1

for seed in 1 2 3; do
  for model in moe dense; do
    train "$out" "$model-$seed" \
      < <(sed "s/^seed: .*/seed: $seed/" "deploy/configs/kjv-$model.textproto")
  done
done
train "$out" "moe-1-no-losses" \
  < <(sed 's/w_\(importance\|load\): .*/w_\1: 0/' deploy/configs/kjv-moe.textproto)
end_series

/usr/bin/python3 tests/experiments/kjv_table.py "$out"
