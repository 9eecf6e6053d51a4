// Text to tokens.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

struct TokenizerOptions {
  // Words in small letters. Covers the Latin, Greek and Cyrillic alphabets.
  bool lowercase = true;
  // The text is tokenised already: split at ASCII white space and change nothing.
  bool tokenized = false;
};

// The tokens of a line of UTF-8. A token is
//   a word: letters and digits, with apostrophes and hyphens between them ("shew-bread",
//   "Abraham's"), a number, with points and commas between its digits ("1,000.5"), or any
//   other visible character by itself.
// White space, the byte order mark and zero-width characters separate tokens. A byte that
// isn't UTF-8 becomes a token U+FFFD.
class Tokenizer {
 public:
  explicit Tokenizer(const TokenizerOptions& options) : options_(options) {}

  // Valid until the next call, and not longer than the line.
  std::span<const std::string_view> Tokenize(std::string_view line);

 private:
  void Split(std::string_view line);
  void FindWords(std::string_view line);

  const TokenizerOptions options_;
  std::vector<std::string_view> tokens_;
  std::string text_;          // of tokens that aren't as they stand in the line
  std::vector<size_t> ends_;  // in text_
};

// Whether text is UTF-8 without surrogates and over-long forms.
bool IsUtf8(std::string_view text);

}  // namespace moe
