#include "worker/data/tokenizer.h"

#include <gtest/gtest.h>

#include "gmock/gmock.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<std::string> Tokenize(std::string_view line,
                                  const TokenizerOptions& options) {
  Tokenizer tokenizer(options);
  // What an earlier line leaves behind must not matter.
  tokenizer.Tokenize("Earlier words, of a longer line than any of those below.");
  const std::span<const std::string_view> tokens = tokenizer.Tokenize(line);
  return {tokens.begin(), tokens.end()};
}

TEST(TokenizerTest, EnglishText) {
  EXPECT_THAT(Tokenize("And the LORD said, \"Go!\"", {}),
              ElementsAre("and", "the", "lord", "said", ",", "\"", "go", "!", "\""));
  EXPECT_THAT(Tokenize("Abraham’s shew-bread, don't", {}),
              ElementsAre("abraham’s", "shew-bread", ",", "don't"));
  EXPECT_THAT(Tokenize("fathers’ -- 'tis en-", {}),
              ElementsAre("fathers", "’", "-", "-", "'", "tis", "en", "-"));
  EXPECT_THAT(Tokenize("In 1,000.5 days, 3. 12th", {}),
              ElementsAre("in", "1,000.5", "days", ",", "3", ".", "12th"));
  EXPECT_THAT(Tokenize("a.b,c", {}), ElementsAre("a", ".", "b", ",", "c"));
}

TEST(TokenizerTest, WhiteSpace) {
  EXPECT_THAT(Tokenize("", {}), IsEmpty());
  EXPECT_THAT(Tokenize(" \t\r\f ", {}), IsEmpty());
  EXPECT_THAT(Tokenize("\xEF\xBB\xBF"
                       "a\u00A0b\u2003c\u200Bd\r",
                       {}),
              ElementsAre("a", "b", "c", "d"));
}

TEST(TokenizerTest, OtherAlphabets) {
  EXPECT_THAT(Tokenize("¿Qué ÑANDÚ?", {}), ElementsAre("¿", "qué", "ñandú", "?"));
  EXPECT_THAT(Tokenize("Æneas ŒUVRE Žižek Ÿ", {}),
              ElementsAre("æneas", "œuvre", "žižek", "ÿ"));
  EXPECT_THAT(Tokenize("ΛΌΓΟΣ Слово ЁЖ", {}), ElementsAre("λόγοσ", "слово", "ёж"));
  EXPECT_THAT(Tokenize("2×3 €5 «a»—b…", {}),
              ElementsAre("2", "×", "3", "€", "5", "«", "a", "»", "—", "b", "…"));
  EXPECT_THAT(Tokenize("日本、語 😀", {}), ElementsAre("日本", "、", "語", "😀"));
}

TEST(TokenizerTest, KeepsCapitalsOnRequest) {
  EXPECT_THAT(Tokenize("The LORD", {.lowercase = false}), ElementsAre("The", "LORD"));
}

TEST(TokenizerTest, TokenizedTextIsOnlySplit) {
  EXPECT_THAT(Tokenize(" the <unk> N \t U.S. n't \r", {.tokenized = true}),
              ElementsAre("the", "<unk>", "N", "U.S.", "n't"));
  EXPECT_THAT(Tokenize("The\u00A0end", {.tokenized = true}), ElementsAre("The\u00A0end"));
  EXPECT_THAT(Tokenize(" \t\r", {.tokenized = true}), IsEmpty());
}

TEST(TokenizerTest, BadUtf8) {
  EXPECT_THAT(Tokenize("a\xff"
                       "b",
                       {}),
              ElementsAre("a", "\uFFFD", "b"));
  EXPECT_THAT(Tokenize("\xe2\x80", {}), ElementsAre("\uFFFD", "\uFFFD"));
  EXPECT_TRUE(IsUtf8("añ日😀"));
  EXPECT_TRUE(IsUtf8(""));
  EXPECT_FALSE(IsUtf8("caf\xe9"));
  for (size_t at = 0; at < 20; ++at) {
    std::string text(20, 'a');
    text[at] = '\xe9';
    EXPECT_FALSE(IsUtf8(text)) << at;
    EXPECT_TRUE(IsUtf8(std::string(at, 'a') + "é" + std::string(20 - at, 'a'))) << at;
  }
  EXPECT_FALSE(IsUtf8("\xc0\x80"));          // over-long
  EXPECT_FALSE(IsUtf8("\xe0\x80\x80"));      // over-long
  EXPECT_FALSE(IsUtf8("\xed\xa0\x80"));      // surrogate
  EXPECT_FALSE(IsUtf8("\xf4\x90\x80\x80"));  // beyond Unicode
  EXPECT_FALSE(IsUtf8("\xe2\x82"));          // cut off
}

}  // namespace
}  // namespace moe
