#include "worker/trainer/top_contexts.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_join.h"

namespace moe {
namespace {

constexpr int64_t kWordsBefore = 10;
constexpr int64_t kWordsAfter = 4;

bool Before(const TopContexts::Hit& a, const TopContexts::Hit& b) {
  return a.gate != b.gate ? a.gate > b.gate : a.position < b.position;
}

// Tokens [begin, end) of the text, as far as there are such.
std::string Words(std::span<const int32_t> tokens, int64_t begin, int64_t end,
                  const Vocabulary& vocabulary) {
  std::vector<std::string> words;
  const int64_t size = static_cast<int64_t>(tokens.size());
  for (int64_t i = std::max<int64_t>(begin, 0); i < std::min(end, size); ++i) {
    words.push_back(vocabulary.word(tokens[i]));
  }
  return absl::StrJoin(words, " ");
}

}  // namespace

void TopContexts::Add(int32_t layer, const std::string& mixture, int32_t expert,
                      float gate, int64_t position) {
  if (!Wants(layer) || (options_.expert >= 0 && options_.expert != expert)) return;
  std::vector<Hit>& hits = hits_[{layer, mixture, expert}];
  const Hit hit{gate, position};
  const bool full = static_cast<int>(hits.size()) == options_.per_expert;
  if (full && !Before(hit, hits.back())) return;
  if (full) hits.pop_back();
  hits.insert(std::upper_bound(hits.begin(), hits.end(), hit, Before), hit);
}

std::string TopContexts::ToJson(std::span<const int32_t> tokens,
                                const Vocabulary& vocabulary) const {
  nlohmann::ordered_json experts = nlohmann::ordered_json::array();
  for (const auto& [key, hits] : hits_) {
    nlohmann::ordered_json contexts = nlohmann::ordered_json::array();
    for (const Hit& hit : hits) {
      const int64_t at = hit.position;
      contexts.push_back(
          {{"gate", hit.gate},
           {"position", at},
           {"before", Words(tokens, at - kWordsBefore, at, vocabulary)},
           {"word", Words(tokens, at, at + 1, vocabulary)},
           {"after", Words(tokens, at + 1, at + 1 + kWordsAfter, vocabulary)}});
    }
    const auto& [layer, mixture, expert] = key;
    nlohmann::ordered_json json = {{"layer", layer}};
    if (!mixture.empty()) json["mixture"] = mixture;
    json["expert"] = expert;
    json["contexts"] = std::move(contexts);
    experts.push_back(std::move(json));
  }
  const nlohmann::ordered_json json = {{"experts", experts}};
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

}  // namespace moe
