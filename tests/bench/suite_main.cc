// The main of the suite's benchmarks: Google Benchmark's own, and with --serve a conversation, so that
// benchmarks of several programs can take turns: for each line on stdin, the name of a benchmark, it runs
// that one and writes a line of JSON, {"seconds": of an iteration, "COUNTER": ...} or {"error": "..."}.
// What a benchmark has set up stays for the next line.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/allocator.h"

namespace moe {
namespace {

class LastRun : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      ++runs_;
      if (run.error_occurred) {
        answer_ = {{"error", run.error_message}};
        continue;
      }
      answer_ = {{"seconds", run.real_accumulated_time / run.iterations}};
      for (const auto& [name, counter] : run.counters) answer_[name] = counter.value;
    }
  }

  int runs() const { return runs_; }
  const nlohmann::json& answer() const { return answer_; }

 private:
  int runs_ = 0;
  nlohmann::json answer_;
};

void Serve() {
  std::string name;
  while (std::getline(std::cin, name)) {
    LastRun last;
    benchmark::RunSpecifiedBenchmarks(&last, "^" + name + "(/|$)");
    nlohmann::json answer = last.answer();
    if (last.runs() != 1) {
      answer = {
          {"error", std::to_string(last.runs()) + " benchmarks are called " + name}};
    }
    std::cout << answer.dump() << std::endl;
  }
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
  moe::KeepFreedMemory();
  bool serve = false;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) != "--serve") continue;
    serve = true;
    for (int j = i; j + 1 < argc; ++j) argv[j] = argv[j + 1];
    --argc;
    break;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  if (serve) {
    moe::Serve();
  } else {
    benchmark::RunSpecifiedBenchmarks();
  }
  return 0;
}
