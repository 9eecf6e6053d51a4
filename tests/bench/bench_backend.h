// What benchmarks of kernels share: backends by their number of threads, and matrices with values.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>

#include "common/kernels/backend.h"

namespace moe {

// That this process may run on.
int Cores();

// One for the whole process. Ends it with the reason if there can't be such a backend.
Backend& BackendOf(int64_t threads);

// Standard normal values times scale.
Tensor MakeNormal(Backend& backend, int64_t rows, int64_t cols, float scale = 1);

// per_iteration: 1e9 of it in a second are shown as 1.
void SetRate(benchmark::State& state, const char* name, double per_iteration);

}  // namespace moe
