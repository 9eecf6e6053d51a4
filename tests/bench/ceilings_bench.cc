// What the machine can do at most: a large product on all cores, reading memory, and the triad
// a = b + s c, with ordinary and with non-temporal stores. Rates count what a program asks for, as STREAM
// does: an ordinary store also reads what it overwrites, which isn't counted.
#include <benchmark/benchmark.h>
#include <cblas.h>
#include <immintrin.h>

#include <cstdint>
#include <vector>

#include "common/kernels/backend.h"
#include "tests/bench/bench_backend.h"

namespace moe {
namespace {

// Large beside any cache.
constexpr int64_t kFloats = int64_t{48} << 20;
// Floats that a thread takes at a time.
constexpr int64_t kPiece = int64_t{1} << 20;

void Sgemm(benchmark::State& state) {
  Backend& backend = BackendOf(Cores());
  const int size = 2048;
  const Tensor a = MakeNormal(backend, size, size), b = MakeNormal(backend, size, size);
  const Tensor c = MakeNormal(backend, size, size);
  // The library's own threads: a backend has set them to one.
  openblas_set_num_threads(Cores());
  for (auto _ : state) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, size, size, size, 1, a.data(),
                size, b.data(), size, 0, c.data(), size);
  }
  openblas_set_num_threads(1);
  SetRate(state, "GFLOP/s", 2.0 * size * size * size);
}

struct Arrays {
  explicit Arrays(Backend& backend)
      : a(backend, kFloats), b(backend, kFloats), c(backend, kFloats) {
    for (Array<float>* array : {&a, &b, &c}) array->Zero();
  }
  Array<float> a, b, c;
};

Arrays& TheArrays() {
  static Arrays* const arrays = new Arrays(BackendOf(1));
  return *arrays;
}

template <typename Fn>
void ForPieces(Backend& backend, const Fn& fn) {
  backend.parallel().For(kFloats / kPiece, [&](int64_t i) { fn(i * kPiece); });
}

__m256 SumOf(const float* x) {
  __m256 sums[8] = {};
  for (int64_t i = 0; i < kPiece; i += 64) {
    for (int j = 0; j < 8; ++j) {
      sums[j] = _mm256_add_ps(sums[j], _mm256_load_ps(x + i + 8 * j));
    }
  }
  for (int j = 1; j < 8; ++j) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  return sums[0];
}

void Read(benchmark::State& state) {
  Backend& backend = BackendOf(Cores());
  const float* const a = TheArrays().a.data();
  for (auto _ : state) {
    ForPieces(backend,
              [&](int64_t begin) { benchmark::DoNotOptimize(SumOf(a + begin)); });
  }
  SetRate(state, "GB/s", 4.0 * kFloats);
}

template <bool kNonTemporal>
void TriadOf(float* a, const float* b, const float* c) {
  const __m256 s = _mm256_set1_ps(3);
  for (int64_t i = 0; i < kPiece; i += 8) {
    const __m256 sum = _mm256_fmadd_ps(s, _mm256_load_ps(c + i), _mm256_load_ps(b + i));
    if (kNonTemporal) {
      _mm256_stream_ps(a + i, sum);
    } else {
      _mm256_store_ps(a + i, sum);
    }
  }
  if (kNonTemporal) _mm_sfence();
}

template <bool kNonTemporal>
void Triad(benchmark::State& state) {
  Backend& backend = BackendOf(Cores());
  Arrays& arrays = TheArrays();
  for (auto _ : state) {
    ForPieces(backend, [&](int64_t i) {
      TriadOf<kNonTemporal>(arrays.a.data() + i, arrays.b.data() + i,
                            arrays.c.data() + i);
    });
    benchmark::ClobberMemory();
  }
  SetRate(state, "GB/s", 3 * 4.0 * kFloats);
}

void StreamedTriad(benchmark::State& state) { Triad<true>(state); }
void StoredTriad(benchmark::State& state) { Triad<false>(state); }

BENCHMARK(Sgemm)->UseRealTime()->MinTime(0.2);
BENCHMARK(Read)->UseRealTime()->MinTime(0.2);
BENCHMARK(StoredTriad)->Name("Triad")->UseRealTime()->MinTime(0.2);
BENCHMARK(StreamedTriad)->Name("TriadNonTemporal")->UseRealTime()->MinTime(0.2);

}  // namespace
}  // namespace moe
