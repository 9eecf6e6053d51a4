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
out="${1:-out/kjv-series}"
mkdir -p "$out"

finished() { grep -qs '"phase": "FINISHED"' "$1/result.json"; }

# run NAME JOB SEED SED: trains JOB, changed by the sed script, as OUT/NAME.
run() {
  local name="$1" job="$2" seed="$3" change="$4" folder="$out/$1"
  finished "$folder" && return
  echo "== $name"
  if compgen -G "$folder/checkpoints/step-*/manifest.json" > /dev/null; then
    deploy/run_local.sh --resume --out "$folder"
    return
  fi
  rm -rf "$folder"
  sed -e "s/^seed: .*/seed: $seed/" -e "$change" "$job" > "$out/$name.textproto"
  deploy/run_local.sh --job "$out/$name.textproto" --out "$folder"
}

for seed in 1 2 3; do
  run "moe-$seed" deploy/configs/kjv-moe.textproto "$seed" ''
  run "dense-$seed" deploy/configs/kjv-dense.textproto "$seed" ''
done
run "moe-1-no-losses" deploy/configs/kjv-moe.textproto 1 's/w_\(importance\|load\): .*/w_\1: 0/'

/usr/bin/python3 tests/experiments/kjv_table.py "$out"
