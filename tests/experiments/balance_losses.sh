#!/bin/bash
# The paper's table 6 in small: what the balancing losses do.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/experiments/series.sh

usage() {
  cat <<'END'
Usage: tests/experiments/balance_losses.sh [OPTION...]

Trains deploy/configs/kjv-moe.textproto with 64 experts, on the King James
Bible, with the six settings of w_importance and w_load of table 6 in Shazeer et
al. 2017. Writes balance_losses.csv and balance_losses.md after every run.

  --out DIR      where the runs go (default out/balance-losses)
  --results DIR  where the table goes (default docs/results)
  --seeds LIST   seeds, with commas (default 1)
  --steps N      optimizer steps of a run (default: three passes over the text)
  --servers N    expert servers (default 1)
  --workers N    workers (default 1)
  --resume       go on with the runs in DIR: finished ones stay, an interrupted
                 one goes on from its last checkpoint
  --help         this text

A run takes 5 to 8 minutes on two cores. Ctrl-C stops; --resume goes on.
END
}

out=out/balance-losses
results=docs/results
seeds=1
steps=
resume=0
processes=(--servers 1 --workers 1)
while (($#)); do
  option=$1
  shift
  case "$option" in
    --out | --results | --seeds | --steps | --servers | --workers)
      (($#)) || die_usage "$option needs a value"
      value=$1
      shift
      ;;
  esac
  case "$option" in
    --out) out=$value ;;
    --results) results=$value ;;
    --seeds) seeds=$value ;;
    --steps) steps=$(count "$option" "$value") ;;
    --servers | --workers) processes+=("$option" "$(count "$option" "$value")") ;;
    --resume) resume=1 ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) die_usage "unknown option: $option" ;;
  esac
done
[[ $seeds =~ ^[0-9]+(,[0-9]+)*$ ]] || die_usage "--seeds is '$seeds'; it must be numbers with commas"

# job SEED W_IMPORTANCE W_LOAD
job() {
  sed -e "s/^name: .*/name: \"kjv-moe-64\"/" -e "s/^seed: .*/seed: $1/" \
    -e "s/experts: .*/experts: 64/" \
    -e "s/w_importance: .*/w_importance: $2/" -e "s/w_load: .*/w_load: $3/" \
    ${steps:+-e "s/^  epochs: .*/  steps: $steps/"} \
    -e '/^#/d' deploy/configs/kjv-moe.textproto
}

open_series "$out" "$resume"
mkdir -p "$results"
for seed in ${seeds//,/ }; do
  for weights in "0 0" "0.2 0" "0 0.2" "0.1 0.1" "0.01 0.01" "1 1"; do
    read -r w_importance w_load <<<"$weights"
    train "$out" "importance-$w_importance-load-$w_load-seed-$seed" "${processes[@]}" \
      < <(job "$seed" "$w_importance" "$w_load")
    /usr/bin/python3 tests/experiments/balance_losses_table.py "$out" "$results"
  done
done
cat "$results/balance_losses.md"
end_series
