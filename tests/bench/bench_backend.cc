#include "tests/bench/bench_backend.h"

#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace moe {

int Cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) {
    std::perror("sched_getaffinity");
    std::exit(1);
  }
  return CPU_COUNT(&cores);
}

Backend& BackendOf(int64_t threads) {
  // Never destroyed: what is kept of benchmarks has memory of it, to the end.
  static auto* const backends = new std::map<int64_t, std::unique_ptr<Backend>>();
  std::unique_ptr<Backend>& backend = (*backends)[threads];
  if (backend == nullptr) {
    std::string error;
    backend = MakeCpuBackend(static_cast<int>(threads), &error);
    if (backend == nullptr) {
      std::fprintf(stderr, "%s\n", error.c_str());
      std::exit(1);
    }
  }
  return *backend;
}

Tensor MakeNormal(Backend& backend, int64_t rows, int64_t cols, float scale) {
  Tensor tensor(backend, rows, cols);
  std::vector<float> host(rows * cols);
  FillNormal({1, 2}, 0, host);
  for (float& x : host) x *= scale;
  tensor.Upload(host);
  return tensor;
}

void SetRate(benchmark::State& state, const char* name, double per_iteration) {
  state.counters[name] = benchmark::Counter(
      per_iteration / 1e9, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace moe
