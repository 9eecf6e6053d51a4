#include "worker/data/vocabulary.h"

#include <glog/logging.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/string_view.h"
#include "worker/data/tokenizer.h"

namespace moe {
namespace {

constexpr char kSpaces[] = " \t\v\f";
// Closes the vocabulary file of a published model of the One Billion Word Benchmark.
constexpr char kEndMark[] = "!!!MAXTERMID";

bool IsUnknownName(std::string_view word) {
  return word == "<UNK>" || word == Vocabulary::kUnknownWord;
}

}  // namespace

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

absl::StatusOr<Vocabulary> Vocabulary::ParseForeign(std::string_view contents,
                                                    const std::string& source) {
  Vocabulary vocabulary;
  vocabulary.Add(kUnknownWord);
  vocabulary.Add(kEndOfSentenceWord);
  std::set<std::string> special;  // names of these two that were there
  bool has_unknown = false, has_end = false, has_counts = false;
  int64_t number = 0;
  const auto wrong = [&](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, " line ", number, ": ", what...));
  };
  absl::string_view text = ToAbsl(contents);
  absl::ConsumeSuffix(&text, "\n");
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    absl::ConsumeSuffix(&line, "\r");
    if (line.empty()) return wrong("empty; each line must be a word");
    if (!IsUtf8(ToStd(line))) {
      return wrong("not UTF-8; convert the file, for example with iconv");
    }
    const std::vector<absl::string_view> fields =
        absl::StrSplit(line, absl::ByAnyChar(kSpaces), absl::SkipEmpty());
    if (number == 1) has_counts = fields.size() == 2;
    int64_t count = 0;
    if (fields.size() != (has_counts ? 2 : 1) ||
        (has_counts && !absl::SimpleAtoi(fields[1], &count))) {
      return wrong("\"", line, "\" is not a ", has_counts ? "word and its count" : "word",
                   "; each line must be a word, or each a word and its count");
    }
    const std::string word(fields[0]);
    if (word == kEndMark) continue;
    const bool is_unknown = IsUnknownName(word);
    const bool is_end = IsSentenceEndName(word);
    has_unknown |= is_unknown;
    has_end |= is_end;
    if (is_unknown || is_end ? !special.insert(word).second : !vocabulary.Add(word)) {
      return wrong("the word ", word, " is there for the second time");
    }
  }
  const auto lacks = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(source, " has no ", what...));
  };
  if (!has_unknown) {
    return lacks("<UNK>; a vocabulary needs this word, for all that it doesn't have");
  }
  if (!has_end) return lacks("</S>; a vocabulary needs this word, for a sentence's end");
  if (vocabulary.size() < 3) return lacks("words but <UNK> and </S>");
  return vocabulary;
}

bool Vocabulary::IsSentenceEndName(std::string_view word) {
  return word == "<S>" || word == "</S>" || word == "<s>" || word == "</s>" ||
         word == kEndOfSentenceWord;
}

Vocabulary Vocabulary::SortedBy(std::span<const int64_t> counts) const {
  CHECK_EQ(static_cast<int64_t>(counts.size()), size());
  std::vector<int32_t> order(words_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin() + kEndOfSentence + 1, order.end(),
                   [&](int32_t a, int32_t b) { return counts[a] > counts[b]; });
  Vocabulary sorted;
  for (const int32_t id : order) sorted.Add(words_[id]);
  return sorted;
}

std::string Vocabulary::Serialize() const {
  return absl::StrCat(absl::StrJoin(words_, "\n"), "\n");
}

int32_t Vocabulary::Find(std::string_view word) const {
  const auto it = ids_.find(ToAbsl(word));
  return it == ids_.end() ? kUnknown : it->second;
}

bool Vocabulary::Add(std::string word) {
  if (!ids_.emplace(word, static_cast<int32_t>(words_.size())).second) return false;
  words_.push_back(std::move(word));
  return true;
}

}  // namespace moe
