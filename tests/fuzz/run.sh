#!/bin/bash
# Builds fuzz targets with Clang and lets libFuzzer search, one after the other.
set -euo pipefail

readonly me=run.sh
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly here
root="$(cd "$here/../.." && pwd)"
readonly root
source "$root/deploy/lib/messages.sh"

usage() {
  cat <<'END'
Usage: tests/fuzz/run.sh [--seconds N] [--out DIR] [--build_only] [--help] [TARGET...]

Installs what is missing, builds the targets of tests/fuzz (all, or those named,
such as frames_fuzz) with Clang, libFuzzer and the address and undefined-
behaviour sanitizers, and searches with each in turn, from its seeds, its
findings, and what earlier searches left in DIR. Prints a line for each and
fails if anything was found; the input then lies in DIR/<target>/found.

  --seconds N    for each target (default 60)
  --out DIR      corpora, logs and findings (default out/fuzz)
  --build_only   don't search
END
}

seconds=60
out="$root/out/fuzz"
build_only=0
targets=()
while (($#)); do
  case "$1" in
    --seconds) seconds="${2:?--seconds needs a number}"; shift ;;
    --out) out="$(realpath -m "${2:?--out needs a folder}")"; shift ;;
    --build_only) build_only=1 ;;
    -h | --help) usage; exit 0 ;;
    -*) die_usage "unknown argument: $1" ;;
    *) targets+=("$1") ;;
  esac
  shift
done
[[ $seconds =~ ^[0-9]+$ ]] || die_usage "--seconds must be a whole number, not $seconds"

cd "$root"
((${#targets[@]})) || mapfile -t targets < <(cd tests/fuzz && printf '%s\n' *_fuzz.cc | sed 's/\.cc$//')
for target in "${targets[@]}"; do
  [[ -r tests/fuzz/$target.cc ]] || die_usage "there is no tests/fuzz/$target.cc"
done

deploy/install.sh build test fuzz

# A compiler of its own has an output folder of its own, or each would drop what the other built.
bazel() {
  command bazel --output_base="${SWITCHYARD_FUZZ_BASE:-$HOME/.cache/switchyard-fuzz}" "$@"
}
build=(--config=fuzz "--jobs=${JOBS:-2}" --symlink_prefix=/)
labels=()
for target in "${targets[@]}"; do
  labels+=("//tests/fuzz:$target" "//tests/fuzz:${target}_test")
done
bazel build "${build[@]}" "${labels[@]}"
((!build_only)) || exit 0
bin="$(bazel info "${build[@]}" bazel-bin 2>/dev/null)"

found=0
for target in "${targets[@]}"; do
  folder="$out/$target"
  mkdir -p "$folder/corpus" "$folder/found"
  "$bin/tests/fuzz/${target}_test" --write_seeds "$folder/seeds"
  findings="$root/tests/fuzz/findings/$target"
  [[ -d $findings ]] || findings="$folder/seeds"
  status=0
  # An input that takes ten seconds hangs. Entropic's accounts take longer than the larger targets.
  (cd "$folder" && TEST_TMPDIR="$folder" "$bin/tests/fuzz/$target" \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=8192 -entropic=0 \
    -print_final_stats=1 -artifact_prefix="$folder/found/" \
    corpus seeds "$findings") >"$folder/log" 2>&1 || status=$?
  last="$(grep -E '^#[0-9]+.*cov:' "$folder/log" | tail -1 | tr -s '\t ' ' ')"
  echo "$target: $( ((status)) && echo "FOUND (see $folder/log)" || echo "nothing found"): $last"
  ((!status)) || found=1
done
exit "$found"
