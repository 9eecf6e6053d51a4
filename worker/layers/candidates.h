// The words that a sampled softmax compares the targets with.
#pragma once

#include <cstdint>
#include <vector>

namespace moe {

// One step's candidates: distinct words, drawn from P(w) = ln((w + 2) / (w + 1)) / ln(V + 1), the
// log-uniform distribution over a vocabulary of V words sorted by frequency (Jozefowicz et al.
// 2016), until there are enough.
struct Candidates {
  int64_t vocabulary = 0;
  std::vector<int32_t> words;  // in the order in which they were drawn
  int64_t draws = 0;           // repetitions included

  // ln of the probability 1 - (1 - P(word))^draws that the draws have the word, 0 if they have all: what a sampled
  // softmax subtracts from the word's logit.
  float LogExpectedCount(int32_t word) const;
};

// A function of (seed, step) alone: the same for all replicas and waves. 1 <= count <= vocabulary.
Candidates DrawCandidates(uint64_t seed, uint64_t step, int64_t vocabulary,
                          int32_t count);

}  // namespace moe
