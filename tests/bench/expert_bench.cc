// Experts of (512, 1024), more than the caches hold, on all cores: the forward pass, and a whole step of
// forward, backward and Adam.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>

#include "common/kernels/backend.h"
#include "tests/bench/bench_backend.h"
#include "tests/bench/expert_batch.h"
#include "tests/bench/kept_fixture.h"

namespace moe {
namespace {

ExpertBatch& BatchOf(Backend& backend, int64_t rows) {
  static KeptFixture<ExpertBatch, int64_t> kept;
  return kept.Get(rows, [&] {
    return std::make_unique<ExpertBatch>(backend, 512, 1024, rows, kFull);
  });
}

// Counters: multiply-adds twice, and bytes of weights, of an iteration.
void ExpertForward(benchmark::State& state) {
  Backend& backend = BackendOf(Cores());
  const ExpertBatch& b = BatchOf(backend, state.range(0));
  for (auto _ : state) {
    backend.ExpertForward(b.experts, b.x.view(), Views<Matrix>(b.hidden), b.y.view());
  }
  state.counters["flops"] = b.flops();
  state.counters["bytes"] = b.weight_bytes();
}
BENCHMARK(ExpertForward)->Arg(4)->Arg(8)->Arg(16)->UseRealTime()->MinTime(0.2);

// As a server does it. The optimizer's gradients aren't kept.
void ExpertStep(benchmark::State& state) {
  Backend& backend = BackendOf(Cores());
  const ExpertBatch& b = BatchOf(backend, state.range(0));
  for (auto _ : state) {
    backend.ExpertForward(b.experts, b.x.view(), Views<Matrix>(b.hidden), b.y.view());
    backend.ExpertBackward(b.experts, ConstMatrix(), b.dy.view(), b.gate.data(),
                           Views<ConstMatrix>(b.hidden), b.dgate.data(),
                           Views<Matrix>(b.dhidden), b.dx.view());
    backend.ExpertUpdates(b.updates, b.x.view(), Views<ConstMatrix>(b.hidden),
                          Views<ConstMatrix>(b.dhidden), b.dy.view());
  }
  // Forward, and the products of the backward pass by the rows and by the weights.
  state.counters["flops"] = 3 * b.flops();
}
BENCHMARK(ExpertStep)->Arg(128)->UseRealTime()->MinTime(0.2);

}  // namespace
}  // namespace moe
