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

TEST(VocabularyTest, ForeignFileKeepsItsOrder) {
  for (const char* text : {"the\n,\n<S>\n</S>\nThe\n<UNK>\ncafé\n",
                           "<S>\r\n</S>\r\n<UNK>\r\nthe\r\n,\r\nThe\r\ncafé",
                           "the 9\n, 8\n<S> 7\nThe 6\n<UNK> 5\ncafé 5\n",
                           "<unk>\n<eos>\nthe\n,\nThe\ncafé\n!!!MAXTERMID\n"}) {
    const auto vocabulary = Vocabulary::ParseForeign(text, "words");
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
    EXPECT_EQ(vocabulary->Serialize(), "<unk>\n<eos>\nthe\n,\nThe\ncafé\n") << text;
    EXPECT_EQ(vocabulary->Find("<UNK>"), Vocabulary::kUnknown);
  }
}

TEST(VocabularyTest, ForeignFileThatWontDo) {
  const auto error = [](const std::string& text) {
    const absl::Status status = Vocabulary::ParseForeign(text, "words").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(error(""), HasSubstr("words line 1: empty"));
  EXPECT_THAT(error("<S>\n</S>\nthe\n"), HasSubstr("words has no <UNK>"));
  EXPECT_THAT(error("<UNK>\nthe\n"), HasSubstr("words has no </S>"));
  EXPECT_THAT(error("<UNK>\n</S>\n"), HasSubstr("words has no words but"));
  EXPECT_THAT(error("<UNK>\n</S>\n\nthe\n"), HasSubstr("words line 3: empty"));
  EXPECT_THAT(error("<UNK>\n</S>\nthe\n\n"), HasSubstr("words line 4: empty"));
  EXPECT_THAT(error("<UNK>\n</S>\nthe\na\nthe\n"),
              HasSubstr("words line 5: the word the is there for the second time"));
  EXPECT_THAT(error("<UNK>\n</S>\n<UNK>\nthe\n"),
              HasSubstr("words line 3: the word <UNK> is there for the second time"));
  EXPECT_THAT(error("<UNK>\n</S>\ncaf\xe9\n"), HasSubstr("words line 3: not UTF-8"));
  EXPECT_THAT(error("<UNK>\n</S>\nof the\n"),
              HasSubstr("words line 3: \"of the\" is not a word"));
  EXPECT_THAT(error("<UNK> 7\n</S> 7\nthe\n"),
              HasSubstr("words line 3: \"the\" is not a word and its count"));
  EXPECT_THAT(error("<UNK> 7\n</S> 7\nof the\n"),
              HasSubstr("words line 3: \"of the\" is not a word and its count"));
  EXPECT_THAT(error("<UNK>\n</S>\n \n"), HasSubstr("words line 3: \" \" is not a word"));
}

TEST(VocabularyTest, SortsByCounts) {
  const auto vocabulary = Vocabulary::ParseForeign("<UNK>\n</S>\nd\nc\nb\na\n", "words");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  const Vocabulary sorted =
      vocabulary->SortedBy(std::vector<int64_t>{0, 100, 5, 9, 5, 1000});
  EXPECT_EQ(sorted.Serialize(), "<unk>\n<eos>\na\nc\nd\nb\n");
  EXPECT_EQ(sorted.Find("d"), 4);
}

}  // namespace
}  // namespace moe
