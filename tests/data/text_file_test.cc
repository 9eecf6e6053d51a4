#include "worker/data/text_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "common/io/file.h"
#include "common/io/sha256.h"
#include "gmock/gmock.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TextFileTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& contents) {
    const std::string path = testing::TempDir() + "/text";
    EXPECT_TRUE(WriteFileAtomically(path, contents).ok());
    return path;
  }
  static absl::StatusOr<TextFile> Open(const std::string& path) {
    return TextFile::Open(path, [](int64_t) {});
  }
  static std::string Error(const std::string& path) {
    return std::string(Open(path).status().message());
  }
  // The lines; their numbers are checked.
  std::vector<std::string> Lines(const std::string& contents) {
    const auto file = Open(Write(contents));
    EXPECT_TRUE(file.ok()) << file.status();
    std::vector<std::string> lines;
    const absl::Status status =
        file->ForEachLine([&](std::string_view line, int64_t number) {
          lines.emplace_back(line);
          EXPECT_EQ(number, static_cast<int64_t>(lines.size()));
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
    return lines;
  }
};

TEST_F(TextFileTest, Lines) {
  EXPECT_THAT(Lines("a\nb c\r\n\né"), ElementsAre("a", "b c\r", "", "é"));
  EXPECT_THAT(Lines("a\n"), ElementsAre("a"));
  EXPECT_THAT(Lines("\n"), ElementsAre(""));
}

// The file is read in blocks of a mebibyte: lines end and begin around their ends.
TEST_F(TextFileTest, LinesAcrossBlocks) {
  constexpr size_t kBlock = 1 << 20;
  std::vector<std::string> expected;
  std::string contents;
  for (const size_t length : {kBlock - 1, kBlock, size_t{3}, 5 * kBlock / 2, kBlock - 2,
                              size_t{0}, size_t{7}, 3 * kBlock + 1}) {
    expected.emplace_back(length, static_cast<char>('a' + expected.size()));
    contents += expected.back() + "\n";
  }
  EXPECT_TRUE(Lines(contents) == expected);
  contents.pop_back();
  EXPECT_TRUE(Lines(contents) == expected);
}

TEST_F(TextFileTest, ChecksumAndProgress) {
  const std::string contents(5 << 19, 'x');
  int64_t bytes = 0;
  const auto file = TextFile::Open(Write(contents), [&](int64_t n) { bytes += n; });
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->sha256(), Sha256Hex(contents));
  EXPECT_EQ(bytes, 5 << 19);
}

TEST_F(TextFileTest, StopsAtTheFirstError) {
  const auto file = Open(Write("a\nb\nc\n"));
  ASSERT_TRUE(file.ok()) << file.status();
  int lines = 0;
  const absl::Status status =
      file->ForEachLine([&](std::string_view line, int64_t) -> absl::Status {
        ++lines;
        return line == "b" ? absl::OutOfRangeError("enough") : absl::OkStatus();
      });
  EXPECT_EQ(status.message(), "enough");
  EXPECT_EQ(lines, 2);
}

TEST_F(TextFileTest, RefusesWhatIsNoText) {
  EXPECT_THAT(Error(Write("")), HasSubstr("text is empty"));
  EXPECT_THAT(Error(Write("a\n\xff\n")), HasSubstr("text line 2 is not UTF-8"));
  EXPECT_THAT(Error(Write("\x1f\x8b\x08 ...")), HasSubstr("text is compressed"));
  EXPECT_THAT(Error(testing::TempDir()), HasSubstr("not a regular file"));
  EXPECT_THAT(Error(testing::TempDir() + "/nowhere"), HasSubstr("No such file"));
  const std::string longest(TextFile::kMaxLineBytes, 'x');
  EXPECT_THAT(Error(Write("a\n" + longest + "x")),
              HasSubstr("text line 2 is longer than 16.0 MiB"));
}

TEST_F(TextFileTest, RefusesAFileThatHasChanged) {
  const std::string path = Write("a\nb\n");
  const auto file = Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto read = [&] {
    return file->ForEachLine([](std::string_view, int64_t) { return absl::OkStatus(); });
  };
  EXPECT_TRUE(read().ok());
  Write("a\nc\n");  // as long, and another file under the same name
  EXPECT_EQ(read().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(read().message()), HasSubstr("text has changed"));
  std::filesystem::remove(path);
  EXPECT_THAT(std::string(read().message()), HasSubstr("No such file"));
}

}  // namespace
}  // namespace moe
