#include "worker/data/vocabulary.h"

#include <gtest/gtest.h>

#include "gmock/gmock.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

const absl::flat_hash_map<std::string, int64_t>& Counts() {
  static const auto* const counts = new absl::flat_hash_map<std::string, int64_t>{
      {"the", 9}, {"b", 2}, {"a", 2}, {"B", 2}, {"once", 1}, {"<unk>", 50}, {"<eos>", 3}};
  return *counts;
}

TEST(VocabularyTest, MostFrequentFirstThenByBytes) {
  EXPECT_EQ(Vocabulary::Build(Counts(), 0, 1).Serialize(),
            "<unk>\n<eos>\nthe\nB\na\nb\nonce\n");
  EXPECT_EQ(Vocabulary::Build(Counts(), 0, 2).Serialize(),
            "<unk>\n<eos>\nthe\nB\na\nb\n");
  EXPECT_EQ(Vocabulary::Build(Counts(), 4, 1).Serialize(), "<unk>\n<eos>\nthe\nB\n");
}

TEST(VocabularyTest, Ids) {
  const Vocabulary vocabulary = Vocabulary::Build(Counts(), 0, 2);
  EXPECT_EQ(vocabulary.size(), 6);
  EXPECT_EQ(vocabulary.Find("the"), 2);
  EXPECT_EQ(vocabulary.word(2), "the");
  EXPECT_EQ(vocabulary.Find("once"), Vocabulary::kUnknown);
  EXPECT_EQ(vocabulary.Find("<unk>"), Vocabulary::kUnknown);
  EXPECT_EQ(vocabulary.Find("<eos>"), Vocabulary::kEndOfSentence);
}

TEST(VocabularyTest, ParseReadsSerialize) {
  const std::string text = Vocabulary::Build(Counts(), 0, 1).Serialize();
  const auto vocabulary = Vocabulary::Parse(text, "vocab.txt");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->Serialize(), text);
  EXPECT_EQ(vocabulary->Find("once"), 6);
}

TEST(VocabularyTest, ParseRefusesDamage) {
  const auto error = [](const std::string& text) {
    return std::string(Vocabulary::Parse(text, "vocab.txt").status().message());
  };
  EXPECT_THAT(error(""), HasSubstr("vocab.txt doesn't begin with <unk>"));
  EXPECT_THAT(error("the\na\n"), HasSubstr("doesn't begin with <unk>"));
  EXPECT_THAT(error("<unk>\n<eos>\nthe\n\na\n"), HasSubstr("vocab.txt line 4: empty"));
  EXPECT_THAT(error("<unk>\n<eos>\nthe\nthe\n"),
              HasSubstr("vocab.txt line 4: word occurs twice"));
}

}  // namespace
}  // namespace moe
