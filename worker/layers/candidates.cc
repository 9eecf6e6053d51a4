#include "worker/layers/candidates.h"

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "common/random/random.h"
#include "glog/logging.h"

namespace moe {

float Candidates::LogExpectedCount(int32_t word) const {
  if (static_cast<int64_t>(words.size()) == vocabulary) return 0;
  const double p = std::log1p(1.0 / (word + 1.0)) / std::log(vocabulary + 1.0);
  return static_cast<float>(
      std::log(-std::expm1(static_cast<double>(draws) * std::log1p(-p))));
}

Candidates DrawCandidates(uint64_t seed, uint64_t step, int64_t vocabulary,
                          int32_t count) {
  CHECK(count >= 1 && count <= vocabulary) << count << " of " << vocabulary;
  const RandomKey key = MakeKey(seed, Purpose::kCandidate, {.step = step});
  const double range = std::log(static_cast<double>(vocabulary) + 1);
  Candidates candidates;
  candidates.vocabulary = vocabulary;
  candidates.words.reserve(count);
  absl::flat_hash_set<int32_t> drawn(count);
  // A row of random bits at a time.
  std::vector<uint32_t> bits(std::max<int32_t>(count, 64));
  for (uint64_t row = 0;; ++row) {
    FillBits(key, row, bits);
    for (const uint32_t b : bits) {
      const double uniform = (b + 0.5) * 0x1p-32;
      const auto word =
          std::min(static_cast<int64_t>(std::exp(uniform * range)) - 1, vocabulary - 1);
      ++candidates.draws;
      if (!drawn.insert(static_cast<int32_t>(word)).second) continue;
      candidates.words.push_back(static_cast<int32_t>(word));
      if (static_cast<int32_t>(candidates.words.size()) == count) return candidates;
    }
  }
}

}  // namespace moe
