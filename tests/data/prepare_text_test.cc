#include "worker/data/prepare_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/io/file.h"
#include "gmock/gmock.h"
#include "tests/io/limited_file_size.h"
#include "worker/data/token_dataset.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class PrepareTextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    options_.text = Write("text", Lines(2000));
    options_.out = Path("out");
  }

  std::string Path(const std::string& name) { return (folder_ / name).string(); }
  std::string Write(const std::string& name, const std::string& contents) {
    EXPECT_TRUE(WriteFileAtomically(Path(name), contents).ok());
    return Path(name);
  }
  // Sentence i is "Word<i> all ." and a blank line.
  static std::string Lines(int n) {
    std::string text;
    for (int i = 0; i < n; ++i) absl::StrAppend(&text, "Word", i, " all.\n\n");
    return text;
  }
  absl::StatusOr<PreparedText> Prepare() {
    std::ostringstream progress;
    return PrepareText(options_, progress);
  }
  std::string Error() { return std::string(Prepare().status().message()); }
  static std::string Decode(const TokenDataset& data, TextSplit split) {
    std::string text;
    const Vocabulary vocabulary = *data.ReadVocabulary();
    for (int32_t id : data.tokens(split))
      absl::StrAppend(&text, vocabulary.word(id), " ");
    return text;
  }
  static void Damage(const std::string& path, const std::string& contents) {
    ASSERT_TRUE(WriteFileAtomically(path, contents).ok());
  }

  fs::path folder_;
  PrepareOptions options_;
};

TEST_F(PrepareTextTest, ThreeFiles) {
  options_.text.clear();
  options_.train = {Write("train", "The dog.\nthe CAT\n")};
  options_.validation = {Write("validation", "the cow\r\n")};
  options_.test = {Write("test", "dog")};
  const auto prepared = Prepare();
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto data = TokenDataset::Open(options_.out);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->ReadVocabulary()->Serialize(), "<unk>\n<eos>\nthe\n.\ncat\ndog\n");
  EXPECT_EQ(Decode(*data, TextSplit::kTrain), "the dog . <eos> the cat <eos> ");
  EXPECT_EQ(Decode(*data, TextSplit::kValidation), "the <unk> <eos> ");
  EXPECT_EQ(Decode(*data, TextSplit::kTest), "dog <eos> ");
  EXPECT_EQ(prepared->meta.split(TextSplit::kValidation).unknown, 1);
  EXPECT_EQ(prepared->meta.split(TextSplit::kTrain).lines, 2);
  EXPECT_EQ(prepared->meta.split(TextSplit::kTrain).tokens, 7);
  EXPECT_EQ(data->sha256(), DatasetSha256(prepared->meta));
}

TEST_F(PrepareTextTest, TokenizedText) {
  options_.text.clear();
  options_.tokenizer.tokenized = true;
  options_.train = {Write("ptb", " a <unk> N.5 \n")};
  options_.validation = {Write("valid", "a\n")};
  options_.test = {Write("test", "N.5\n")};
  ASSERT_TRUE(Prepare().ok());
  EXPECT_EQ(Decode(*TokenDataset::Open(options_.out), TextSplit::kTrain),
            "a <unk> N.5 <eos> ");
}

TEST_F(PrepareTextTest, FilesOfASplitFollowOneAnother) {
  options_.text.clear();
  options_.train = {Write("b", "one two\n"), Write("a", "three\nfour"),
                    Write("c", "five\n")};
  options_.validation = {Write("v1", "five one\n"), Write("v2", "five four\n")};
  options_.test = {Write("t", "one\n")};
  const auto prepared = Prepare();
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto data = TokenDataset::Open(options_.out);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(Decode(*data, TextSplit::kTrain),
            "one two <eos> three <eos> four <eos> five <eos> ");
  EXPECT_EQ(Decode(*data, TextSplit::kValidation), "five one <eos> five four <eos> ");
  EXPECT_TRUE(Prepare()->was_there);
  // The same files in another order, or in another split, are another text.
  std::swap(options_.train[0], options_.train[1]);
  EXPECT_FALSE(Prepare()->was_there);
  options_.validation.insert(options_.validation.begin(), options_.train.back());
  options_.train.pop_back();
  EXPECT_FALSE(Prepare()->was_there);
}

TEST_F(PrepareTextTest, GivenVocabulary) {
  options_.text.clear();
  options_.tokenizer.tokenized = true;
  options_.train = {Write("train", "c b c zzz <UNK>\n\nc b e\n")};
  options_.validation = {Write("validation", "a zzz\n")};
  options_.test = {Write("test", "b\n")};
  options_.vocabulary_file = Write("words", "<S>\n</S>\n<UNK>\na\nb\nc\nd\ne\n");
  const auto prepared = Prepare();
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto data = TokenDataset::Open(options_.out);
  ASSERT_TRUE(data.ok()) << data.status();
  // By the training text's counts; a, d and their like in the file's order.
  EXPECT_EQ(data->ReadVocabulary()->Serialize(), "<unk>\n<eos>\nc\nb\ne\na\nd\n");
  EXPECT_EQ(Decode(*data, TextSplit::kTrain), "c b c <unk> <unk> <eos> c b e <eos> ");
  EXPECT_EQ(Decode(*data, TextSplit::kValidation), "a <unk> <eos> ");
  EXPECT_EQ(prepared->meta.split(TextSplit::kTrain).unknown, 2);
  EXPECT_EQ(prepared->meta.split(TextSplit::kTrain).lines, 2);
  EXPECT_TRUE(Prepare()->was_there);
  options_.vocabulary_file = Write("other", "<UNK>\n</S>\na\nb\nc\n");
  EXPECT_FALSE(Prepare()->was_there);
  EXPECT_EQ(TokenDataset::Open(options_.out)->ReadVocabulary()->Serialize(),
            "<unk>\n<eos>\nc\nb\na\n");
}

TEST_F(PrepareTextTest, GivenVocabularyThatWontDo) {
  options_.vocabulary_file = Write("words", "</S>\nall\n");
  EXPECT_THAT(Error(), HasSubstr("words has no <UNK>"));
  options_.vocabulary_file = Write("words", "<UNK>\n</S>\nALL\n");
  EXPECT_THAT(Error(), HasSubstr("the training text has no word of " + Path("words")));
  options_.vocabulary_file = Path("nowhere");
  EXPECT_THAT(Error(), AllOf(HasSubstr("nowhere"), HasSubstr("No such file")));
  options_.vocabulary_file = Write("words", "<UNK>\n</S>\nall\n");
  options_.tokenizer.tokenized = true;
  for (const char* end : {"</S>", "<S>", "<eos>"}) {
    options_.text = Write("text", Lines(300) + "all " + end + "\n");
    EXPECT_THAT(Error(), HasSubstr("text line 601 has the word " + std::string(end)));
  }
  EXPECT_FALSE(fs::exists(options_.out));
}

TEST_F(PrepareTextTest, NoEndOfSentenceAmongTheTextsOwnWords) {
  options_.text.clear();
  options_.tokenizer.tokenized = true;
  const std::string train = Write("train", Lines(30));
  const std::string validation = Write("validation", "all Word1\n");
  const std::string test = Write("test", "all Word2\n");
  for (const char* end : {"</S>", "<S>", "<s>", "</s>", "<eos>"}) {
    const std::string spoilt =
        Write("spoilt", "one\n\nall " + std::string(end) + " two\n");
    for (int split = 0; split < 3; ++split) {
      options_.train = {split == 0 ? spoilt : train};
      options_.validation = {split == 1 ? spoilt : validation};
      options_.test = {split == 2 ? spoilt : test};
      EXPECT_THAT(Error(), HasSubstr("spoilt line 3 has the word " + std::string(end)))
          << split;
    }
  }
  EXPECT_FALSE(fs::exists(options_.out));
  options_.test = {test};
  EXPECT_TRUE(Prepare().ok());
}

TEST_F(PrepareTextTest, WarnsOfAVocabularyOfAnotherText) {
  options_.vocabulary_file = Write("words", "<UNK>\n</S>\nall\n.\n");
  std::ostringstream progress;
  ASSERT_TRUE(PrepareText(options_, progress).ok());
  EXPECT_THAT(progress.str(),
              HasSubstr("warning: 33 % of the training text isn't in " + Path("words")));
  options_.text =
      Write("text", "one all .\n" + std::string(10000, '.') + "\n" + Lines(100));
  std::ostringstream silence;
  ASSERT_TRUE(PrepareText(options_, silence).ok());
  EXPECT_EQ(silence.str(), "");
}

TEST_F(PrepareTextTest, RefusesTheSameTextTwice) {
  options_.text.clear();
  options_.train = {Write("a", "one\n"), Write("b", "two\n")};
  options_.validation = {Write("c", "three\n")};
  options_.test = {Write("d", "two\n")};
  EXPECT_THAT(Error(), HasSubstr(Path("b") + " and " + Path("d") + " are the same text"));
}

TEST_F(PrepareTextTest, RemovesWhatAKilledRunLeft) {
  fs::create_directories(options_.out);
  Write("out/train.bin.tmp-123-4", "half");
  Write("out/notes.tmp-1", "mine");
  ASSERT_TRUE(Prepare().ok());
  EXPECT_FALSE(fs::exists(Path("out/train.bin.tmp-123-4")));
  EXPECT_TRUE(fs::exists(Path("out/notes.tmp-1")));
}

TEST_F(PrepareTextTest, Verses) {
  std::string text;
  for (int i = 1; i <= 200; ++i)
    absl::StrAppend(&text, "Psalms 3:", i, ": Many", i, " are.\n\n");
  options_.text = Write("verses", text + "(module)\n");
  options_.strip_verse_references = true;
  const auto prepared = Prepare();
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  int64_t tokens = 0;
  for (const auto& split : prepared->meta.splits) tokens += split.tokens;
  EXPECT_EQ(tokens, 200 * 4);
}

TEST_F(PrepareTextTest, SplitsCoverTheTextAndAreSpread) {
  const auto prepared = Prepare();
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  int64_t lines = 0;
  for (TextSplit split : kTextSplits) lines += prepared->meta.split(split).lines;
  EXPECT_EQ(lines, 2000);
  for (TextSplit split : {TextSplit::kValidation, TextSplit::kTest}) {
    EXPECT_NEAR(prepared->meta.split(split).lines, 100, 50) << TextSplitName(split);
  }
  // Held-out sentences lie in both halves.
  options_.min_count = 1;
  std::set<int> halves;
  const auto data = TokenDataset::Open(options_.out);
  const Vocabulary vocabulary = *data->ReadVocabulary();
  std::set<std::string> trained;
  for (int32_t id : data->tokens(TextSplit::kTrain)) trained.insert(vocabulary.word(id));
  for (int i = 0; i < 2000; ++i) {
    if (!trained.contains(absl::StrCat("word", i))) halves.insert(i / 1000);
  }
  EXPECT_EQ(halves.size(), 2);
}

TEST_F(PrepareTextTest, SameInputSameBytesElsewhere) {
  const auto here = Prepare();
  options_.text = Write("copy of the text", Lines(2000));
  options_.out = Path("other/folder");
  const auto there = Prepare();
  ASSERT_TRUE(here.ok() && there.ok());
  EXPECT_FALSE(there->was_there);
  EXPECT_EQ(DatasetSha256(here->meta), DatasetSha256(there->meta));
  for (const char* name :
       {"meta.json", "vocab.txt", "train.bin", "validation.bin", "test.bin"}) {
    EXPECT_EQ(*ReadFile(Path(std::string("out/") + name)),
              *ReadFile(Path(std::string("other/folder/") + name)));
  }
}

TEST_F(PrepareTextTest, SkipsWorkThatIsDone) {
  ASSERT_TRUE(Prepare().ok());
  EXPECT_TRUE(Prepare()->was_there);
  options_.force = true;
  EXPECT_FALSE(Prepare()->was_there);
  options_.force = false;
  EXPECT_TRUE(Prepare()->was_there);
  options_.min_count = 2;
  EXPECT_FALSE(Prepare()->was_there);
  EXPECT_TRUE(Prepare()->was_there);
  options_.text = Write("text", Lines(1999));
  EXPECT_FALSE(Prepare()->was_there);
  Damage(Path("out/test.bin"), "");
  EXPECT_FALSE(Prepare()->was_there);
  EXPECT_TRUE(Prepare()->was_there);
}

TEST_F(PrepareTextTest, ShortTextsStillGetAllSplits) {
  options_.text = Write("short", Lines(100));
  const auto prepared = Prepare();
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  for (TextSplit split : kTextSplits) {
    EXPECT_GE(prepared->meta.split(split).lines, 1) << TextSplitName(split);
  }
}

TEST_F(PrepareTextTest, RefusesTextThatWontDo) {
  options_.text = Write("empty", "");
  EXPECT_THAT(Error(), HasSubstr("empty is empty"));
  options_.text = Write("blank", "\n \n\t\n");
  EXPECT_THAT(Error(), HasSubstr("blank has no text"));
  options_.text = Write("two", "one line\nand another\n");
  EXPECT_THAT(Error(), AllOf(HasSubstr("two is too short"), HasSubstr("2 lines")));
  options_.text = Write("latin1", "good\ncaf\xe9\n");
  EXPECT_THAT(Error(), HasSubstr("latin1 line 2 is not UTF-8"));
  options_.text = Path("missing");
  EXPECT_THAT(Error(), AllOf(HasSubstr("missing"), HasSubstr("No such file")));
  options_.text = Write("plain", Lines(1000));
  options_.strip_verse_references = true;
  EXPECT_THAT(Error(), HasSubstr("no verses"));
  options_.strip_verse_references = false;
  options_.min_count = 5000;
  EXPECT_THAT(Error(), HasSubstr("--min_count=5000"));
  EXPECT_FALSE(fs::exists(options_.out));
}

TEST_F(PrepareTextTest, RefusesOptionsThatMakeNoSense) {
  const auto refused = [](PrepareOptions options) {
    std::ostringstream progress;
    return absl::IsInvalidArgument(PrepareText(options, progress).status());
  };
  const auto with = [this](const std::function<void(PrepareOptions&)>& change) {
    PrepareOptions options = options_;
    change(options);
    return options;
  };
  EXPECT_TRUE(refused(with([](PrepareOptions& o) { o.text.clear(); })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) { o.train = {"x"}; })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) { o.out.clear(); })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) { o.vocabulary_size = 2; })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) { o.vocabulary_size = -1; })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) { o.min_count = 0; })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) {
    o.vocabulary_file = "x";
    o.min_count = 3;
  })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) {
    o.vocabulary_file = "x";
    o.vocabulary_size = 10;
  })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) { o.test_fraction = 0.95; })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) { o.test_fraction = -0.1; })));
  EXPECT_TRUE(refused(with([](PrepareOptions& o) { o.test_fraction = 0.0 / 0.0; })));
}

TEST_F(PrepareTextTest, HoldsOutNothingOnRequest) {
  options_.validation_fraction = options_.test_fraction = 0;
  ASSERT_TRUE(Prepare().ok());
  const auto data = TokenDataset::Open(options_.out);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_TRUE(data->tokens(TextSplit::kValidation).empty());
  EXPECT_EQ(data->tokens(TextSplit::kTrain).size(), 2000 * 4);
}

TEST_F(PrepareTextTest, FullDiskIsNoData) {
  ASSERT_TRUE(Prepare().ok());
  options_.min_count = 2;
  {
    LimitedFileSize limit(1 << 12);
    EXPECT_THAT(Error(), HasSubstr("File too large"));
  }
  const absl::Status status = TokenDataset::Open(options_.out).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("prepare_text"));
  EXPECT_TRUE(Prepare().ok());
}

TEST_F(PrepareTextTest, TheWordsStayOnDiskAndAreTheSameOrRefused) {
  ASSERT_TRUE(Prepare().ok());
  const auto data = TokenDataset::Open(options_.out);
  ASSERT_TRUE(data.ok()) << data.status();
  const auto vocabulary = data->ReadVocabulary();
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(data->vocabulary_size(), vocabulary->size());
  EXPECT_GT(data->vocabulary_size(), 2);
  Damage(Path("out/vocab.txt"), vocabulary->Serialize() + "more\n");
  EXPECT_THAT(std::string(data->ReadVocabulary().status().message()),
              HasSubstr("vocab.txt is damaged"));
}

TEST_F(PrepareTextTest, OpenRefusesDamage) {
  ASSERT_TRUE(Prepare().ok());
  const auto error = [this] {
    return std::string(TokenDataset::Open(options_.out).status().message());
  };
  const auto damaged = [&](const std::string& name, const std::string& contents) {
    const std::string path = Path("out/" + name);
    const std::string good = *ReadFile(path);
    Damage(path, contents);
    const std::string message = error();
    Damage(path, good);
    EXPECT_EQ(error(), "");
    return message;
  };
  const std::string train = *ReadFile(Path("out/train.bin"));
  EXPECT_THAT(damaged("train.bin", train.substr(0, train.size() - 3)),
              AllOf(HasSubstr("train.bin is damaged"), HasSubstr("bytes")));
  std::string bad_id = train;
  bad_id[7] = 0x7f;
  EXPECT_THAT(damaged("train.bin", bad_id),
              AllOf(HasSubstr("token 1"), HasSubstr("isn't in the vocabulary")));
  bad_id[7] = '\xff';
  EXPECT_THAT(damaged("train.bin", bad_id), HasSubstr("isn't in the vocabulary"));
  std::string other = train;
  other[0] ^= 1;
  EXPECT_THAT(damaged("train.bin", other), HasSubstr("checksum"));
  EXPECT_THAT(damaged("vocab.txt", "<unk>\n<eos>\n"), HasSubstr("vocab.txt is damaged"));
  EXPECT_THAT(damaged("meta.json", "{"), HasSubstr("meta.json is damaged"));
  EXPECT_THAT(damaged("meta.json", "{}"), HasSubstr("meta.json is damaged"));
  EXPECT_THAT(damaged("meta.json", "[1]"), HasSubstr("meta.json is damaged"));
  EXPECT_THAT(damaged("meta.json", R"({"format": "other"})"), HasSubstr("\"other\""));
  fs::remove(Path("out/validation.bin"));
  EXPECT_THAT(error(), AllOf(HasSubstr("validation.bin"), HasSubstr("No such file")));
  fs::remove_all(options_.out);
  EXPECT_THAT(error(), HasSubstr("prepare_text"));
}

}  // namespace
}  // namespace moe
