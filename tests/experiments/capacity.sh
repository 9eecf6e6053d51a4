#!/bin/bash
# The paper's figure 2 in small: perplexity against the number of experts at equal compute.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/experiments/series.sh

usage() {
  cat <<'END'
Usage: tests/experiments/capacity.sh --data DIR --name NAME [OPTION...]

Trains models of equal multiply-adds for each word on one text: mixtures of 4,
16, 64 and 256 experts, 4 for each word; a hierarchical one of 32 groups of 32, 2
groups and 2 experts of each; and four dense models. Text, batch, schedule and
steps are the same for all. After every run writes a table, a CSV file and a
plot.

  --data DIR     the text, as prepare_text made it
  --name NAME    its name, for the files and their titles
  --out DIR      where the runs go (default out/capacity-NAME)
  --results DIR  where jobs, table, CSV and plot go (default docs/results)
  --models LIST  some of them, with commas (default all:
                 moe-4,moe-256,moe-1-wide,moe-64,4xlstm,moe-1024-h,moe-16,
                 lstm-projected,moe-1-deep)
  --steps N      optimizer steps of a run, of 2,048 words each (default 4400)
  --candidates N of the sampled softmax of training; 0: the full one (default
                 1024). Perplexities are always those of the full softmax
  --dropout P    on the output of every layer (default 0.1)
  --seed N       (default 1)
  --servers N    expert servers (default 1)
  --workers N    workers (default 1)
  --resume       go on with the runs in DIR: finished ones stay, an interrupted
                 one goes on from its last checkpoint
  --help         this text

A run takes about ten minutes on two cores. Ctrl-C stops; --resume goes on. A run that
fails does not stop the others.
END
}

data=
name=
out=
results=docs/results
models=moe-4,moe-256,moe-1-wide,moe-64,4xlstm,moe-1024-h,moe-16,lstm-projected,moe-1-deep
steps=4400
candidates=1024
dropout=0.1
seed=1
resume=0
processes=(--servers 1 --workers 1)
while (($#)); do
  option=$1
  shift
  case "$option" in
    --resume | --help | -h) ;;
    --*)
      (($#)) || die_usage "$option needs a value"
      value=$1
      shift
      ;;
  esac
  case "$option" in
    --data) data=$value ;;
    --name) name=$value ;;
    --out) out=$value ;;
    --results) results=$value ;;
    --models) models=$value ;;
    --steps) steps=$(count "$option" "$value") ;;
    --candidates) candidates=$value ;;
    --dropout) dropout=$value ;;
    --seed) seed=$(count "$option" "$value") ;;
    --servers | --workers) processes+=("$option" "$(count "$option" "$value")") ;;
    --resume) resume=1 ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) die_usage "unknown option: $option" ;;
  esac
done
[[ -f $data/meta.json ]] || die_usage "--data: '$data' is no folder that prepare_text has made"
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
  die_usage "--name is '$name'; it must be letters, digits, '-', '_' and '.'"
[[ $candidates =~ ^[0-9]+$ ]] || die_usage "--candidates is '$candidates'; it must be a number"
[[ $dropout =~ ^0(\.[0-9]+)?$ ]] || die_usage "--dropout is '$dropout'; it must be in [0, 1)"
out=${out:-out/capacity-$name}

# ---- the models
#
# Two LSTMs of 128 units have 262,144 multiply-adds, and what is between them about as many: two more
# LSTMs, one expert, or the experts of a word and the gate. A larger gate is paid for by smaller
# experts.

lstm() { echo "layers { lstm { hidden: 128 forget_bias: 1 } dropout: $dropout residual: true }"; }

# moe FIELD...
moe() {
  local fields=("$@" "gating: GATING_NOISY_TOP_K")
  [[ $1 == "experts: 1" ]] || fields+=("w_importance: 0.01" "w_load: 0.01")
  fields+=("sigmoid_output: true")
  printf '%s\n' "layers {" "    moe {" "${fields[@]/#/      }" "    }" "    dropout: $dropout" \
    "    residual: true" "  }"
}

# between MODEL: the layers between the first LSTM and the last; fails if there is no such model.
between() {
  case "$1" in
    moe-4) moe "experts: 4" "k: 4" "groups: 4" "hidden: 255" ;;
    moe-16) moe "experts: 16" "k: 4" "groups: 4" "hidden: 252" ;;
    moe-64) moe "experts: 64" "k: 4" "groups: 4" "hidden: 240" ;;
    moe-256) moe "experts: 256" "k: 4" "groups: 8" "hidden: 192" ;;
    moe-1024-h)
      moe "experts: 1024" "groups: 32" "k_primary: 2" "k: 2" "hidden: 232"
      ;;
    moe-1-wide) moe "experts: 1" "k: 1" "groups: 1" "hidden: 1023" ;;
    moe-1-deep)
      moe "experts: 1" "k: 1" "groups: 1" "hidden: 256" "hidden: 256" "hidden: 256" "hidden: 256"
      ;;
    4xlstm) printf '%s\n  %s' "$(lstm)" "$(lstm)" ;;
    *) return 1 ;;
  esac
}

layers() {
  if [[ $1 == lstm-projected ]]; then
    # As LSTM-2048-512 of the paper: one layer, without a residual connection.
    echo "layers { lstm { hidden: 455 projection: 128 forget_bias: 1 } dropout: $dropout }"
    return
  fi
  local middle
  middle=$(between "$1") || die_usage "--models: there is no model '$1'"
  printf '%s\n  %s\n  %s\n' "$(lstm)" "$middle" "$(lstm)"
}

job() {
  local layers tables=""
  layers=$(layers "$1")
  ((candidates == 0)) || tables="tables { shards: 4 candidates: $candidates }"
  cat <<END
name: "$1"
seed: $seed
model {
  d_model: 128
  embedding_dropout: $dropout
  $tables
  $layers
}
optimizer {
  adam {}
  schedule {
    base_rate: 0.004
    inverse_sqrt { warmup_steps: 200 }
  }
}
training {
  # 2 replicas * 32 lanes * 32 words = 2,048 words a step.
  replicas: 2
  waves: 2
  lanes: 32
  unroll: 32
  steps: $steps
}
checkpointing { every_steps: 550 }
END
}

# ---- the series

for model in ${models//,/ }; do layers "$model" >/dev/null; done
deploy/install.sh build runtime experiments
open_series "$out" "$resume"
readonly jobs="$results/capacity-$name"
mkdir -p "$jobs"
if [[ ! -x bazel-bin/client/moectl ]]; then
  echo "Building moectl (log: $out/build.log)"
  bazel build -c opt --jobs=2 //client:moectl >"$out/build.log" 2>&1 ||
    die "the build of moectl failed; its log is $out/build.log"
fi
words=$(wc -l <"$data/vocab.txt")
for model in ${models//,/ }; do
  job "$model" >"$jobs/$model.textproto"
  bazel-bin/client/moectl describe --job "$jobs/$model.textproto" --vocabulary "$words" --json \
    >"$out/$model.describe.json"
done
tabulate() { /usr/bin/python3 tests/experiments/capacity_table.py "$out" "$results" "$name"; }
tabulate
for model in ${models//,/ }; do
  train "$out" "$model" --data "$data" "${processes[@]}" <"$jobs/$model.textproto"
  tabulate
done
end_series
