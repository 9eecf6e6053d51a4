// Adam on 64 M parameters, on all cores: matrices of an expert's size, as most parameters are.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "common/kernels/backend.h"
#include "tests/bench/bench_backend.h"
#include "tests/bench/expert_batch.h"
#include "tests/bench/kept_fixture.h"

namespace moe {
namespace {

constexpr int64_t kMatrices = 128, kRows = 512, kCols = 1024;
constexpr double kParameters = static_cast<double>(kMatrices) * kRows * kCols;

struct Parameters {
  Parameters(Backend& backend, bool factored) {
    for (int64_t i = 0; i < kMatrices; ++i) {
      g.push_back(MakeNormal(backend, kRows, kCols));
      w.push_back(MakeNormal(backend, kRows, kCols));
      m.emplace_back(backend, 1, factored ? 0 : kRows * kCols).Zero();
      v.emplace_back(backend, 1, factored ? kRows + kCols : kRows * kCols).Zero();
    }
  }
  std::vector<Tensor> g, w, m, v;
};

// bytes: read and written of each parameter, at least.
void Update(benchmark::State& state, Kept kept, double bytes) {
  static KeptFixture<Parameters, Kept> parameters;
  Backend& backend = BackendOf(Cores());
  const Parameters& p = parameters.Get(
      kept, [&] { return std::make_unique<Parameters>(backend, kept == kFactored); });
  const OptimizerStep step = StepOf(kept, 1e-4f);
  for (auto _ : state) {
    for (int64_t i = 0; i < kMatrices; ++i) {
      backend.OptimizerUpdate(step, p.g[i].view(), p.w[i].data(), p.m[i].data(),
                              p.v[i].data());
    }
  }
  SetRate(state, "GB/s", bytes * kParameters);
}

// Reads g, w, m and v, writes w, m and v.
void Adam(benchmark::State& state) { Update(state, kFull, 7 * 4); }
// Reads g and w, writes w. It goes over g twice, but from memory only once: a matrix fits into a cache.
void FactoredAdam(benchmark::State& state) { Update(state, kFactored, 3 * 4); }
BENCHMARK(Adam)->UseRealTime()->MinTime(0.2);
BENCHMARK(FactoredAdam)->UseRealTime()->MinTime(0.2);

}  // namespace
}  // namespace moe
