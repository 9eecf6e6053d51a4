// Speed of the kernels on one and two threads. GFLOP/s counts two operations per multiply-add of
// the products alone; GB/s counts each float once per read and once per write.
#include <benchmark/benchmark.h>

#include <vector>

#include "common/kernels/backend.h"
#include "tests/bench/bench_backend.h"
#include "tests/bench/expert_batch.h"

namespace moe {
namespace {

void Gemm(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const int64_t m = state.range(1), n = state.range(2), k = state.range(3);
  const Transpose ta = state.range(4) % 2 ? Transpose::kYes : Transpose::kNo;
  const Transpose tb = state.range(4) / 2 ? Transpose::kYes : Transpose::kNo;
  const Tensor a =
      ta == Transpose::kYes ? MakeNormal(backend, k, m) : MakeNormal(backend, m, k);
  const Tensor b =
      tb == Transpose::kYes ? MakeNormal(backend, n, k) : MakeNormal(backend, k, n);
  const Tensor c = MakeNormal(backend, m, n);
  for (auto _ : state) backend.Gemm(ta, tb, 1, a.view(), b.view(), 0, c.view());
  SetRate(state, "GFLOP/s", 2.0 * m * n * k);
}
BENCHMARK(Gemm)
    ->ArgNames({"threads", "m", "n", "k", "t"})
    ->ArgsProduct({{1, 2}, {2048}, {2048}, {512}, {0}})
    ->ArgsProduct({{1, 2}, {1280}, {8000}, {128}, {0}})
    ->ArgsProduct({{1, 2}, {1280}, {128}, {8000}, {2}})
    ->ArgsProduct({{1, 2}, {128}, {8000}, {1280}, {1}})
    ->ArgsProduct({{1, 2}, {64}, {512}, {128}, {0}})
    ->UseRealTime();

void ExpertForward(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const ExpertBatch b(backend, state.range(1), state.range(2), state.range(3),
                      state.range(4));
  for (auto _ : state) {
    backend.ExpertForward(b.experts, b.x.view(), Views<Matrix>(b.hidden), b.y.view());
  }
  SetRate(state, "GFLOP/s", b.flops());
  SetRate(state, "weightGB/s", b.weight_bytes());
}

void ExpertBackward(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const ExpertBatch b(backend, state.range(1), state.range(2), state.range(3),
                      state.range(4));
  for (auto _ : state) {
    backend.ExpertBackward(b.experts, ConstMatrix(), b.dy.view(), b.gate.data(),
                           Views<ConstMatrix>(b.hidden), b.dgate.data(),
                           Views<Matrix>(b.dhidden), b.dx.view());
  }
  SetRate(state, "GFLOP/s", b.flops());
  SetRate(state, "weightGB/s", b.weight_bytes());
}

void ExpertUpdates(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const ExpertBatch b(backend, state.range(1), state.range(2), state.range(3),
                      state.range(4));
  for (auto _ : state) {
    backend.ExpertUpdates(b.updates, b.x.view(), Views<ConstMatrix>(b.hidden),
                          Views<ConstMatrix>(b.dhidden), b.dy.view());
  }
  SetRate(state, "GFLOP/s", b.flops());
  SetRate(state, "Gparameter/s", b.parameters());
}

void ExpertSizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"threads", "d", "h", "rows", "kept"})->UseRealTime()->MinTime(0.1);
  for (int64_t kept : {kFull, kFactored, kBfloat16}) {
    for (int64_t threads : {1, 2}) {
      for (int64_t rows : {1, 2, 4, 8, 16, 32, 64, 256}) {
        bench->Args({threads, 512, 1024, rows, kept});
        bench->Args({threads, 128, 256, rows, kept});
      }
    }
  }
}
BENCHMARK(ExpertForward)->Apply(ExpertSizes);
BENCHMARK(ExpertBackward)->Apply(ExpertSizes);
BENCHMARK(ExpertUpdates)->Apply(ExpertSizes);

void Softmax(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const int64_t rows = 256, cols = state.range(1);
  const Tensor logits = MakeNormal(backend, rows, cols);
  const std::vector<int32_t> target(rows, 5);
  for (auto _ : state) backend.SoftmaxCrossEntropy(logits.view(), target, 0.01f);
  SetRate(state, "Gelement/s", static_cast<double>(rows) * cols);
}
BENCHMARK(Softmax)
    ->ArgNames({"threads", "V"})
    ->ArgsProduct({{1, 2}, {8000, 50000}})
    ->UseRealTime();

void LstmCell(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const int64_t lanes = 64, units = state.range(1);
  const bool backward = state.range(2) != 0;
  const Tensor gates = MakeNormal(backend, lanes, 4 * units);
  const Tensor c_prev = MakeNormal(backend, lanes, units), c(backend, lanes, units);
  const Tensor tanh_c = MakeNormal(backend, lanes, units),
               h = MakeNormal(backend, lanes, units);
  Tensor dc(backend, lanes, units), dgates(backend, lanes, 4 * units);
  dc.Zero();
  for (auto _ : state) {
    if (backward) {
      backend.LstmCellBackward(gates.view(), c_prev.view(), tanh_c.view(), h.view(),
                               dc.view(), dgates.view());
    } else {
      backend.LstmCellForward(gates.view(), c_prev.view(), c.view(), tanh_c.view(),
                              h.view());
    }
  }
  SetRate(state, "Gunit/s", static_cast<double>(lanes) * units);
}
BENCHMARK(LstmCell)
    ->ArgNames({"threads", "H", "backward"})
    ->ArgsProduct({{1, 2}, {128, 512}, {0, 1}})
    ->UseRealTime();

void Gating(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const int64_t tokens = 1024, n = state.range(1);
  const bool backward = state.range(2) != 0;
  const int32_t k = 4;
  const Tensor clean = MakeNormal(backend, tokens, n),
               raw = MakeNormal(backend, tokens, n);
  const Tensor noise(backend, tokens, n), gate(backend, tokens, k);
  const Array<int32_t> expert(backend, tokens * k), threshold(backend, tokens * 2);
  const Array<double> importance(backend, n), load(backend, n);
  GateBatch batch;
  batch.clean = clean.view();
  batch.raw = raw.view();
  batch.noise = noise.view();
  batch.k = k;
  batch.with_noise = true;
  batch.expert = expert.data();
  batch.gate = gate.data();
  batch.threshold = threshold.data();
  batch.importance = importance.data();
  batch.load = load.data();
  backend.NoisyTopKForward(batch);
  const Tensor dgate = MakeNormal(backend, tokens, k), dload = MakeNormal(backend, 1, n);
  const Tensor dclean(backend, tokens, n), draw(backend, tokens, n);
  for (auto _ : state) {
    if (backward) {
      backend.NoisyTopKBackward(batch, dgate.data(), dload.data(), dclean.view(),
                                draw.view());
    } else {
      backend.NoisyTopKForward(batch);
    }
  }
  SetRate(state, "Gelement/s", static_cast<double>(tokens) * n);
}
BENCHMARK(Gating)
    ->ArgNames({"threads", "n", "backward"})
    ->ArgsProduct({{1, 2}, {32, 256, 4096}, {0, 1}})
    ->UseRealTime();

// Strictly balanced gating of 2,048 tokens, k = 4. part 0: x W_g for d = 512, to compare with;
// 1: LogSoftmax, 2: ChooseLargest, 3: CountAbove, 4: the gates forward, 5: and backward.
void StrictGating(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const int64_t tokens = 2048, n = state.range(1), part = state.range(2), d = 512;
  const Tensor input = MakeNormal(backend, tokens, d), wg = MakeNormal(backend, d, n);
  const Tensor x = MakeNormal(backend, tokens, n), out(backend, tokens, n);
  const Tensor threshold = MakeNormal(backend, 1, n);
  const int64_t pairs = 4 * tokens;
  const Array<uint8_t> chosen(backend, tokens * n / 8);
  const Array<int32_t> count(backend, n), offset(backend, tokens + 1);
  const Array<int32_t> expert(backend, pairs);
  const Tensor gate(backend, 1, pairs), dgate = MakeNormal(backend, 1, pairs);
  const auto choose = [&] {
    backend.ChooseLargest(x.view(), pairs / n, {1, 2}, chosen.data());
  };
  const auto forward = [&] {
    backend.CountChosen(tokens, n, chosen.data(), offset.data());
    backend.ChosenSoftmaxForward(x.view(), chosen.data(), offset.data(), expert.data(),
                                 gate.data());
  };
  choose();
  forward();
  for (auto _ : state) {
    switch (part) {
      case 0:
        backend.Gemm(Transpose::kNo, Transpose::kNo, 1, input.view(), wg.view(), 0,
                     out.view());
        break;
      case 1:
        backend.LogSoftmax(x.view());
        break;
      case 2:
        choose();
        break;
      case 3:
        backend.CountAbove(x.view(), threshold.data(), count.data());
        break;
      case 4:
        forward();
        break;
      case 5:
        backend.ChosenSoftmaxBackward(offset.data(), expert.data(), gate.data(),
                                      dgate.data(), out.view());
        break;
    }
  }
  SetRate(state, "Gelement/s", static_cast<double>(tokens) * n);
}
BENCHMARK(StrictGating)
    ->ArgNames({"threads", "n", "part"})
    ->ArgsProduct({{1, 2}, {32, 256, 2048}, {0, 1, 2, 3, 4, 5}})
    ->UseRealTime();

// 64 M parameters.
void Adam(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const int64_t kept = state.range(1);
  const int64_t rows = int64_t{1} << 16, cols = int64_t{1} << 10, n = rows * cols;
  const Tensor g = MakeNormal(backend, rows, cols), w = MakeNormal(backend, rows, cols);
  Tensor m(backend, 1, kept == kFull ? n : 0);
  Tensor v(backend, 1, kept == kFull ? n : rows + cols);
  m.Zero();
  v.Zero();
  const OptimizerStep step = StepOf(kept, 1e-4f);
  for (auto _ : state) {
    backend.OptimizerUpdate(step, g.view(), w.data(), m.data(), v.data());
  }
  // The factored one reads the gradient twice.
  SetRate(state, "GB/s", (kept == kFull ? 28.0 : 16.0) * n);
  SetRate(state, "Gparameter/s", static_cast<double>(n));
}
BENCHMARK(Adam)
    ->ArgNames({"threads", "kept"})
    ->ArgsProduct({{1, 2}, {kFull, kFactored}})
    ->UseRealTime();

void Normal(benchmark::State& state) {
  std::vector<float> x(4096);
  uint64_t row = 0;
  for (auto _ : state) FillNormal({1, 2}, row++, x);
  SetRate(state, "Gelement/s", 4096);
}
BENCHMARK(Normal);

void Dropout(benchmark::State& state) {
  Backend& backend = BackendOf(state.range(0));
  const Tensor x = MakeNormal(backend, 1280, 512), y(backend, 1280, 512);
  for (auto _ : state) backend.DropoutForward({1, 2}, 0.3f, x.view(), x.view(), y.view());
  SetRate(state, "Gelement/s", 1280.0 * 512);
}
BENCHMARK(Dropout)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();

void EmptyParallel(benchmark::State& state) {
  Backend& backend = BackendOf(2);
  for (auto _ : state) backend.parallel().For(2, [](int64_t) {});
}
BENCHMARK(EmptyParallel)->UseRealTime();

}  // namespace
}  // namespace moe
