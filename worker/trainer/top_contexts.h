// The places of a text at which each expert's gate is highest (the paper's table 9).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "worker/data/vocabulary.h"

namespace moe {

// Not thread-safe.
class TopContexts {
 public:
  struct Options {
    // At most so many places for each expert.
    int per_expert = 10;
    // -1: all.
    int32_t layer = -1;
    int32_t expert = -1;
    friend bool operator==(const Options&, const Options&) = default;
  };
  struct Hit {
    float gate = 0;
    // Of the token that the expert was chosen for.
    int64_t position = 0;
  };
  // The layer, the mixture as in LayerBalance, and the expert.
  using ExpertId = std::tuple<int32_t, std::string, int32_t>;

  explicit TopContexts(const Options& options) : options_(options) {}

  bool Wants(int32_t layer) const {
    return options_.layer < 0 || options_.layer == layer;
  }
  void Add(int32_t layer, const std::string& mixture, int32_t expert, float gate,
           int64_t position);
  // The highest gate first, equal ones by position. Experts that were never chosen have no entry.
  const std::map<ExpertId, std::vector<Hit>>& hits() const { return hits_; }

  // {"experts": [{"layer", "mixture", "expert", "contexts": [{"gate", "position", "before", "word",
  // "after"}]}]}; mixture only where the layer has two; before and after are some words around the word.
  std::string ToJson(std::span<const int32_t> tokens, const Vocabulary& vocabulary) const;

 private:
  const Options options_;
  std::map<ExpertId, std::vector<Hit>> hits_;
};

}  // namespace moe
