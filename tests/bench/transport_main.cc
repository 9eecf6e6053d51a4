#include <benchmark/benchmark.h>

#include "common/base/allocator.h"

// As in the programs.
int main(int argc, char** argv) {
  moe::KeepFreedMemory();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
