// Words and their ids.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moe {

class Vocabulary {
 public:
  static constexpr int32_t kUnknown = 0;        // <unk>
  static constexpr int32_t kEndOfSentence = 1;  // <eos>
  static constexpr char kUnknownWord[] = "<unk>";
  static constexpr char kEndOfSentenceWord[] = "<eos>";

  // The words that occur min_count times or more, most frequent first, ties by their
  // bytes, after <unk> and <eos>; at most max_size with these two (0: no limit).
  static Vocabulary Build(const absl::flat_hash_map<std::string, int64_t>& counts,
                          int64_t max_size, int64_t min_count);
  // The contents of a vocabulary file: a word a line. source is for errors.
  static absl::StatusOr<Vocabulary> Parse(std::string_view contents,
                                          const std::string& source);
  // The contents of a vocabulary file that others made: on each line a word, or on each a
  // word and its count, which is ignored. What it calls the unknown word (<UNK>, <unk>)
  // becomes <unk>, what it calls a sentence's ends (<S>, </S>, <s>, </s>, <eos>) <eos>;
  // one of each must be there. The other words keep their order. A line "!!!MAXTERMID" is
  // no word. INVALID_ARGUMENT, with the line, if something else is wrong.
  static absl::StatusOr<Vocabulary> ParseForeign(std::string_view contents,
                                                 const std::string& source);
  // Whether a vocabulary file calls a sentence's end so.
  static bool IsSentenceEndName(std::string_view word);

  // The same words, after <unk> and <eos> those first that occur most often; those that
  // occur equally often keep their order. counts: [size], by this vocabulary's ids.
  Vocabulary SortedBy(std::span<const int64_t> counts) const;
  std::string Serialize() const;

  int64_t size() const { return static_cast<int64_t>(words_.size()); }
  // kUnknown if the word isn't known.
  int32_t Find(std::string_view word) const;
  const std::string& word(int32_t id) const { return words_[id]; }

 private:
  Vocabulary() = default;
  // False if it is there already.
  bool Add(std::string word);

  std::vector<std::string> words_;
  absl::flat_hash_map<std::string, int32_t> ids_;
};

}  // namespace moe
