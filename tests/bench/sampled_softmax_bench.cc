// Sampled softmax of 2,048 words of width 512, a vocabulary of 50,000 and 1,024 candidates: from the rows
// of the table to the gradients of those rows and of the input, on all cores.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "common/kernels/backend.h"
#include "tests/bench/bench_backend.h"
#include "tests/bench/kept_fixture.h"
#include "worker/layers/sampled_softmax.h"

namespace moe {
namespace {

constexpr int64_t kTokens = 2048, kWidth = 512, kVocabulary = 50'000, kCandidates = 1024;

// Every kVocabulary / kCandidates-th word is a candidate, and targets are log-uniform, as words nearly are.
struct Words {
  Words() {
    for (int64_t i = 0; i < kCandidates; ++i) {
      candidate.push_back(static_cast<int32_t>(i * kVocabulary / kCandidates));
    }
    std::map<int32_t, int32_t> rows;
    std::vector<int32_t> words;
    for (int64_t t = 0; t < kTokens; ++t) {
      // Any order does that leaves no neighbours together.
      const double at = static_cast<double>(t * 797 % kTokens) / kTokens;
      words.push_back(static_cast<int32_t>(std::exp(at * std::log(kVocabulary + 1.0))) -
                      1);
      rows[words.back()] = 0;
    }
    for (auto& [word, row] : rows) {
      row = static_cast<int32_t>(target.size());
      target.push_back(word);
    }
    for (const int32_t word : words) {
      row_of.push_back(rows.at(word));
      const auto found = std::lower_bound(candidate.begin(), candidate.end(), word);
      const bool is_candidate = found != candidate.end() && *found == word;
      hit.push_back(is_candidate ? static_cast<int32_t>(found - candidate.begin()) : -1);
    }
  }
  std::vector<int32_t> candidate, target;  // ascending
  std::vector<int32_t> row_of, hit;        // by token
};

struct Softmax {
  explicit Softmax(Backend& backend)
      : table(MakeNormal(backend, kVocabulary, kWidth, 0.04f)),
        x(MakeNormal(backend, kTokens, kWidth)),
        candidates(backend, kCandidates, kWidth),
        targets(backend, words.target.size(), kWidth),
        candidate_bias(MakeNormal(backend, 1, kCandidates)),
        target_bias(MakeNormal(backend, 1, words.target.size())),
        dcandidates(backend, kCandidates, kWidth),
        dtargets(backend, words.target.size(), kWidth),
        dcandidate_bias(backend, 1, kCandidates),
        dtarget_bias(backend, 1, words.target.size()),
        dx(backend, kTokens, kWidth),
        softmax(backend) {}
  const Words words;
  Tensor table, x, candidates, targets, candidate_bias, target_bias;
  Tensor dcandidates, dtargets, dcandidate_bias, dtarget_bias, dx;
  SampledSoftmax softmax;
};

void SampledSoftmax50000(benchmark::State& state) {
  static KeptFixture<Softmax, int> kept;
  Backend& backend = BackendOf(Cores());
  Softmax& s = kept.Get(0, [&] { return std::make_unique<Softmax>(backend); });
  for (auto _ : state) {
    backend.GatherRows(s.table.view(), s.words.candidate, nullptr, s.candidates.view());
    backend.GatherRows(s.table.view(), s.words.target, nullptr, s.targets.view());
    for (Tensor* gradient :
         {&s.dcandidates, &s.dtargets, &s.dcandidate_bias, &s.dtarget_bias}) {
      gradient->Zero();
    }
    benchmark::DoNotOptimize(s.softmax.Train(
        s.x.view(), {s.candidates.view(), s.candidate_bias.data()},
        {s.targets.view(), s.target_bias.data()}, {s.words.row_of, s.words.hit},
        1.0f / kTokens, {s.dcandidates.view(), s.dcandidate_bias.data()},
        {s.dtargets.view(), s.dtarget_bias.data()}, s.dx.view()));
  }
  state.counters["words"] = kTokens;
}
BENCHMARK(SampledSoftmax50000)->UseRealTime()->MinTime(0.2);

}  // namespace
}  // namespace moe
