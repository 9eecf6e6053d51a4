#!/bin/bash
# Builds the backend for GPUs with nvcc alone, checks its kernels and times its experts beside PyTorch.
set -euo pipefail

usage() {
  cat <<'END'
Usage: tests/bench/gpu.sh [--out DIR] [--compile-only | --on-host] [--help]

Needs NVIDIA's toolkit (12 or newer), a C++20 compiler and a card of sm_80 or newer; for the comparison
python3 with PyTorch. No network, Bazel, gRPC or Abseil. Ends within 8 minutes:

  1. compiles common/kernels and its tests, as many files at once as there are processors;
  2. runs the kernel tests on the card, against float64 references, and under compute-sanitizer the
     shorter ones, if it is there;
  3. times experts on the card, in fp32, tf32 and with bf16 matrices, and dense products of as many
     operations; then PyTorch's batched products;
  4. prints both as a table, and leaves it as DIR/gpu.md (default: gpu-bench).

  --compile-only   step 1 alone: on a machine without a card
  --on-host        steps 1 and 2 by the host in place of the card, with the compiler and without nvcc
                   (docs/design/cuda.md)
  CUDA_HOME=DIR    the toolkit (default: /usr/local/cuda)
  JOBS=N           files that are compiled at once (default: the processors)
END
}

out=gpu-bench
mode=card
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --out) out=${2:?gpu.sh: --out needs a folder}; shift ;;
    --compile-only) mode=compile ;;
    --on-host) mode=host ;;
    *) echo "gpu.sh: $1: no such option (see --help)" >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cuda=${CUDA_HOME:-/usr/local/cuda}
export objects="$out/objects" nvcc="$cuda/bin/nvcc"
mkdir -p "$objects"
host_options="-std=c++20 -O2 -march=x86-64-v3 -ffp-contract=off -fno-math-errno -pthread -I."
include="-Itests/bench/gpu/stand_ins"
devices=tests/kernels/devices.cc
code="-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90"
if [[ $mode == card ]]; then
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '. ')
  code="-arch=sm_$capability"
fi
if [[ $mode == host ]]; then
  host_options+=" -DMakeCudaOnHostBackend=MakeCudaBackend"
  devices=tests/kernels/devices_on_host.cc
  include+=" -isystem tests/kernels/cuda_on_host/include"
elif ! [[ -x $nvcc ]]; then
  echo "gpu.sh: no $nvcc; CUDA_HOME=DIR says where the toolkit is" >&2
  exit 1
else
  host_options+=" -isystem $cuda/include"
fi
device_options="-std=c++20 -O3 --expt-relaxed-constexpr -fmad=false $code -I."
device_options+=" -Xcompiler=-march=x86-64-v3,-ffp-contract=off"
export host_options include device_options mode

sources=(common/kernels/cuda/*.cu common/kernels/cpu/*.cc common/kernels/fingerprint.cc
  common/random/random.cc "$devices" tests/bench/gpu/*.cc)
for test in activations bfloat16_experts bits experts gating gemm host_experts optimizer rows \
  sampled_softmax softmax strict_gating; do
  sources+=("tests/kernels/${test}_test.cc")
done
[[ $mode != host ]] || sources+=(tests/kernels/cuda_on_host/*.cc)

# shellcheck disable=SC2317  # xargs calls it
compile() {
  local object=$objects/${1//\//-}.o
  # shellcheck disable=SC2086  # each of these is several options
  case "$mode $1" in
    *few_rows_kernels.cc)
      g++ $host_options $include -c "$1" -o "$object"
      g++ $host_options $include -march=x86-64-v4 -Wno-uninitialized -Wno-maybe-uninitialized \
        -c "$1" -o "${object%.cc.o}_avx512.cc.o" ;;
    *.cc) g++ $host_options $include -c "$1" -o "$object" ;;
    host*) g++ $host_options $include -x c++ -c "$1" -o "$object" ;;
    *) "$nvcc" $device_options -c "$1" -o "$object" ;;
  esac
}
export -f compile

SECONDS=0
printf '%s\n' "${sources[@]}" |
  xargs -P "${JOBS:-$(nproc)}" -I{} bash -c 'compile {}'
libraries=(-pthread)
[[ $mode == host ]] || libraries+=("-L$cuda/lib64" "-Wl,-rpath,$cuda/lib64" -lcublas -lcudart)
mapfile -t library < <(ls "$objects"/common-*.o)
[[ $mode != host ]] || library+=("$objects"/tests-kernels-cuda_on_host-*.o)
g++ -o "$out/kernel_tests" "$objects"/tests-kernels-*_test.cc.o \
  "$objects/${devices//\//-}.o" "$objects/tests-bench-gpu-check_main.cc.o" \
  "${library[@]}" "${libraries[@]}"
g++ -o "$out/experts_bench" "$objects/tests-bench-gpu-experts_bench.cc.o" "${library[@]}" \
  "${libraries[@]}"
echo "compiled and linked in $SECONDS s"
[[ $mode != compile ]] || exit 0

status=0
timeout 120 "$out/kernel_tests" "$([[ $mode == host ]] || echo Cuda)" |
  tee "$out/tests.log" | grep -v '^passed' || status=1
[[ $mode != host ]] || exit "$status"

sanitizer=$cuda/bin/compute-sanitizer
if [[ -x $sanitizer ]]; then
  for test in Activations Rows StrictGating; do
    if timeout 25 "$sanitizer" --error-exitcode=9 "$out/kernel_tests" "$test" \
      > "$out/sanitizer.log" 2>&1; then
      echo "compute-sanitizer: $test: no error"
    else
      echo "compute-sanitizer: $test: status $? (see $out/sanitizer.log)"
      status=1
    fi
  done
fi

gib=$(nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits | head -1)
timeout 90 "$out/experts_bench" 75 "$((gib / 1024))" | tee "$out/ours.txt" || status=1
if python3 -c 'import torch; assert torch.cuda.is_available()' 2> /dev/null; then
  timeout 80 python3 tests/bench/gpu/torch_experts.py 65 | tee "$out/torch.txt" || status=1
else
  echo "python3 has no PyTorch for this card: no comparison" | tee "$out/torch.txt"
fi
cat "$out/ours.txt" "$out/torch.txt" | python3 tests/bench/gpu/table.py > "$out/gpu.md"
cat "$out/gpu.md"
echo "all of it took $SECONDS s"
exit "$status"
