// A layer of 512 LSTM units on 64 lanes of 32 words, forward and backward, on all cores.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>

#include "common/kernels/backend.h"
#include "tests/bench/bench_backend.h"
#include "tests/bench/kept_fixture.h"
#include "worker/layers/lstm.h"

namespace moe {
namespace {

constexpr int64_t kUnits = 512;
constexpr int32_t kLanes = 64, kUnroll = 32;
constexpr int64_t kTokens = int64_t{kLanes} * kUnroll;

struct Layer {
  explicit Layer(Backend& backend)
      : wx(MakeNormal(backend, kUnits, 4 * kUnits, 0.04f)),
        wh(MakeNormal(backend, kUnits, 4 * kUnits, 0.04f)),
        b(MakeNormal(backend, 1, 4 * kUnits)),
        dwx(backend, kUnits, 4 * kUnits),
        dwh(backend, kUnits, 4 * kUnits),
        db(backend, 1, 4 * kUnits),
        x(MakeNormal(backend, kTokens, kUnits)),
        dy(MakeNormal(backend, kTokens, kUnits)),
        dr(backend, kTokens, kUnits),
        dx(backend, kTokens, kUnits),
        lstm(
            backend,
            {{wx.view(), dwx.view()}, {wh.view(), dwh.view()}, {b.view(), db.view()}, {}},
            kLanes, kUnroll, /*waves=*/1) {
    for (Tensor* gradient : {&dwx, &dwh, &db}) gradient->Zero();
  }
  Tensor wx, wh, b, dwx, dwh, db, x, dy, dr, dx;
  Lstm lstm;
};

void Lstm512(benchmark::State& state) {
  static KeptFixture<Layer, int> kept;
  Backend& backend = BackendOf(Cores());
  Layer& layer = kept.Get(0, [&] { return std::make_unique<Layer>(backend); });
  for (auto _ : state) {
    layer.lstm.Forward(0, layer.x.view());
    // The backward pass destroys it.
    backend.Copy(layer.dy.data(), layer.dr.data(), layer.dr.size() * sizeof(float));
    layer.lstm.Backward(0, layer.x.view(), layer.dr.view(), /*add=*/false,
                        layer.dx.view());
  }
  // One product by the input and one by what recurs, and two of each backward.
  SetRate(state, "GFLOP/s", 3 * 2.0 * kTokens * (2 * kUnits) * (4 * kUnits));
}
BENCHMARK(Lstm512)->UseRealTime()->MinTime(0.2);

}  // namespace
}  // namespace moe
