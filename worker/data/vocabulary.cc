#include "worker/data/vocabulary.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/string_view.h"

namespace moe {

Vocabulary Vocabulary::Build(const absl::flat_hash_map<std::string, int64_t>& counts,
                             int64_t max_size, int64_t min_count) {
  Vocabulary vocabulary;
  vocabulary.Add(kUnknownWord);
  vocabulary.Add(kEndOfSentenceWord);

  std::vector<std::pair<int64_t, const std::string*>> order;
  for (const auto& [word, count] : counts) {
    if (count >= min_count) order.emplace_back(count, &word);
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : *a.second < *b.second;
  });
  for (const auto& [count, word] : order) {
    if (max_size > 0 && vocabulary.size() >= max_size) break;
    vocabulary.Add(*word);
  }
  return vocabulary;
}

absl::StatusOr<Vocabulary> Vocabulary::Parse(std::string_view contents,
                                             const std::string& source) {
  Vocabulary vocabulary;
  std::vector<absl::string_view> lines = absl::StrSplit(ToAbsl(contents), '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();
  for (absl::string_view line : lines) {
    if (line.empty() || !vocabulary.Add(std::string(line))) {
      return absl::DataLossError(
          absl::StrCat(source, " line ", vocabulary.size() + 1, ": ",
                       line.empty() ? "empty" : "word occurs twice"));
    }
  }
  if (vocabulary.size() < 2 || vocabulary.word(kUnknown) != kUnknownWord ||
      vocabulary.word(kEndOfSentence) != kEndOfSentenceWord) {
    return absl::DataLossError(absl::StrCat(source, " doesn't begin with ", kUnknownWord,
                                            " and ", kEndOfSentenceWord));
  }
  return vocabulary;
}

std::string Vocabulary::Serialize() const {
  return absl::StrCat(absl::StrJoin(words_, "\n"), "\n");
}

int32_t Vocabulary::Find(const std::string& word) const {
  const auto it = ids_.find(word);
  return it == ids_.end() ? kUnknown : it->second;
}

bool Vocabulary::Add(std::string word) {
  if (!ids_.emplace(word, static_cast<int32_t>(words_.size())).second) return false;
  words_.push_back(std::move(word));
  return true;
}

}  // namespace moe
