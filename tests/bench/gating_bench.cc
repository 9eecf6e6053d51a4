// Noisy top-k gating of 2,048 tokens among 4,096 experts with the load loss, forward and backward, without
// its products, on all cores.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>

#include "common/kernels/backend.h"
#include "tests/bench/bench_backend.h"
#include "tests/bench/kept_fixture.h"

namespace moe {
namespace {

constexpr int64_t kTokens = 2048, kExperts = 4096;
constexpr int32_t kChosen = 4;

struct Gating {
  explicit Gating(Backend& backend)
      : clean(MakeNormal(backend, kTokens, kExperts)),
        raw(MakeNormal(backend, kTokens, kExperts)),
        noise(backend, kTokens, kExperts),
        gate(backend, kTokens, kChosen),
        dgate(MakeNormal(backend, kTokens, kChosen)),
        dload(MakeNormal(backend, 1, kExperts)),
        dclean(backend, kTokens, kExperts),
        draw(backend, kTokens, kExperts),
        expert(backend, kTokens * kChosen),
        threshold(backend, kTokens * 2),
        importance(backend, kExperts),
        load(backend, kExperts) {
    batch.clean = clean.view();
    batch.raw = raw.view();
    batch.noise = noise.view();
    batch.k = kChosen;
    batch.with_noise = true;
    batch.key = {1, 2};
    batch.expert = expert.data();
    batch.gate = gate.data();
    batch.threshold = threshold.data();
    batch.importance = importance.data();
    batch.load = load.data();
  }
  Tensor clean, raw, noise, gate, dgate, dload, dclean, draw;
  Array<int32_t> expert, threshold;
  Array<double> importance, load;
  GateBatch batch;
};

void GatingWithLoad(benchmark::State& state) {
  static KeptFixture<Gating, int> kept;
  Backend& backend = BackendOf(Cores());
  const Gating& g = kept.Get(0, [&] { return std::make_unique<Gating>(backend); });
  for (auto _ : state) {
    backend.NoisyTopKForward(g.batch);
    backend.NoisyTopKBackward(g.batch, g.dgate.data(), g.dload.data(), g.dclean.view(),
                              g.draw.view());
  }
  // Its matrices once each: the clean and the raw logits read, the noise, and both gradients written.
  SetRate(state, "GB/s", 5 * 4.0 * kTokens * kExperts);
}
BENCHMARK(GatingWithLoad)->UseRealTime()->MinTime(0.2);

}  // namespace
}  // namespace moe
