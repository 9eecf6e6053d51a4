#!/bin/bash
# Installs what is missing, builds, runs every test and counts the cases.
set -euo pipefail

usage() {
  cat <<'END'
Usage: tests/run_all.sh [--sanitize=address|thread] [--help]
                        [BAZEL_OPTION_OR_TARGET...]

Installs what is missing, builds, and runs every test (//...). Ends with the line
`N passed, N failed`, counting single cases, and fails if any of them did. Where nvcc
is installed, what is for GPUs is compiled and linked, too.
Other arguments go to `bazel test`; targets among them replace //...:

  tests/run_all.sh //common/...
  tests/run_all.sh --sanitize=address //tests/server/...

  --sanitize=address   with AddressSanitizer (leaks included) and
                       UndefinedBehaviorSanitizer; tests with processes have
                       longer deadlines
  --sanitize=thread    with ThreadSanitizer, the tests that are tagged `tsan`:
                       those of our own threads, without gRPC
  CUDA_HOME=DIR        where nvcc's toolkit is (default: /usr/local/cuda)
  JOBS=N               parallel actions and tests (default 2)
END
}

targets=()
options=()
for arg in "$@"; do
  case "$arg" in
    -h | --help) usage; exit 0 ;;
    --sanitize=address) options+=(--config=asan) ;;
    --sanitize=thread)
      options+=(--config=tsan --build_tests_only --test_tag_filters=tsan) ;;
    --sanitize*)
      echo "run_all.sh: $arg: it is --sanitize=address or --sanitize=thread (see --help)" >&2
      exit 2 ;;
    //* | :* | -//*) targets+=("$arg") ;;
    *) options+=("$arg") ;;
  esac
done
((${#targets[@]})) || targets=(//...)

cuda_home=${CUDA_HOME:-/usr/local/cuda}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
deploy/install.sh

events=$(mktemp)
trap 'rm -f "$events"' EXIT

# Keep going: one broken target must not hide the others' results.
bazel test --keep_going --jobs="${JOBS:-2}" --build_event_json_file="$events" \
  "${options[@]}" -- "${targets[@]}" &&
  status=0 || status=$?

# The backend for GPUs: nvcc's half of it, which needs no GPU.
if [[ ${targets[*]} == //... && ${#options[@]} == 0 ]]; then
  if [[ -x $cuda_home/bin/nvcc && -r $cuda_home/include/cublas_v2.h ]]; then
    if bazel build --config=cuda --define=cuda_home="$cuda_home" --jobs="${JOBS:-2}" \
      //server:expert_server //worker:worker //tests/kernels:rows_test; then
      echo "CUDA: compiled and linked with $cuda_home"
      # bazel-bin has the programs that need nothing of CUDA again.
      bazel build --jobs="${JOBS:-2}" //server:expert_server //worker:worker
    else
      echo "CUDA: doesn't compile with $cuda_home" >&2
      status=1
    fi
  else
    echo "CUDA: not compiled: there is no nvcc with cuBLAS in $cuda_home (CUDA_HOME=DIR: it is elsewhere)"
  fi
fi

/usr/bin/python3 tests/summarize.py "$events" "$status"
