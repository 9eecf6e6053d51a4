#include "worker/data/text_paths.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "common/io/file.h"
#include "gmock/gmock.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
namespace fs = std::filesystem;

class TextPathsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    for (const char* name : {"b-10", "b-2", "B-1", "a", "odd,[x]*"})
      ASSERT_TRUE(WriteFileAtomically(Path(name), "text").ok());
  }
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  const fs::path folder_ = fs::path(testing::TempDir()) / "paths";
};

TEST_F(TextPathsTest, PathsAndPatterns) {
  EXPECT_THAT(*ExpandTextPaths(""), IsEmpty());
  EXPECT_THAT(*ExpandTextPaths(Path("a")), ElementsAre(Path("a")));
  EXPECT_THAT(*ExpandTextPaths(Path("b-*")), ElementsAre(Path("b-10"), Path("b-2")));
  EXPECT_THAT(*ExpandTextPaths(Path("b-?") + "," + Path("a") + "," + Path("[B]-1")),
              ElementsAre(Path("b-2"), Path("a"), Path("B-1")));
}

TEST_F(TextPathsTest, AFileIsThatFileWhateverItsName) {
  EXPECT_THAT(*ExpandTextPaths(Path("odd,[x]*")), ElementsAre(Path("odd,[x]*")));
}

TEST_F(TextPathsTest, PathsThatAreNotThereAreLeftToWhoOpensThem) {
  EXPECT_THAT(*ExpandTextPaths(Path("nowhere")), ElementsAre(Path("nowhere")));
}

TEST_F(TextPathsTest, PatternWithoutFiles) {
  const absl::Status status = ExpandTextPaths(Path("a") + "," + Path("c-*")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no file matches " + Path("c-*")));
}

}  // namespace
}  // namespace moe
