#include "common/io/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>
#include <vector>

#include "common/io/input_file.h"
#include "common/io/mapped_file.h"
#include "gmock/gmock.h"
#include "tests/io/limited_file_size.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  std::string Path(const std::string& name) { return (folder_ / name).string(); }
  std::vector<std::string> Names() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  fs::path folder_;
};

TEST_F(FileTest, WritesAndReads) {
  const std::string contents(3'000'000, 'x');
  ASSERT_TRUE(WriteFileAtomically(Path("a"), contents).ok());
  ASSERT_TRUE(WriteFileAtomically(Path("empty"), "").ok());
  EXPECT_EQ(*ReadFile(Path("a")), contents);
  EXPECT_EQ(*ReadFile(Path("empty")), "");
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "short").ok());
  EXPECT_EQ(*ReadFile(Path("a")), "short");
  EXPECT_THAT(Names(), ElementsAre("a", "empty"));
}

TEST_F(FileTest, ReadsFilesThatHaveNoSize) {
  const auto status = ReadFile("/proc/self/status");
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_THAT(*status, HasSubstr("Threads:"));
}

TEST_F(FileTest, ErrorsNameThePathAndTheCause) {
  const absl::Status missing = ReadFile(Path("missing")).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()),
              AllOf(HasSubstr(Path("missing")), HasSubstr("No such file or directory")));
  EXPECT_THAT(std::string(ReadFile(folder_.string()).status().message()),
              HasSubstr("Is a directory"));
  const absl::Status no_folder = WriteFileAtomically(Path("no/folder"), "x");
  EXPECT_EQ(no_folder.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(no_folder.message()), HasSubstr(Path("no/folder")));
}

TEST_F(FileTest, FailedWriteLeavesTheOldFileAndNoOther) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  absl::Status status;
  {
    LimitedFileSize limit(1 << 16);
    status = WriteFileAtomically(Path("a"), std::string(1 << 20, 'x'));
  }
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(Path("a")), HasSubstr("File too large")));
  EXPECT_EQ(*ReadFile(Path("a")), "old");
  EXPECT_THAT(Names(), ElementsAre("a"));
}

TEST_F(FileTest, WriterThatFailsLeavesTheOldFile) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  const absl::Status status =
      WriteFileAtomically(Path("a"), [](FileSink& sink) -> absl::Status {
        EXPECT_TRUE(sink.Append("new").ok());
        return absl::AbortedError("stop");
      });
  EXPECT_EQ(status, absl::AbortedError("stop"));
  EXPECT_EQ(*ReadFile(Path("a")), "old");
  EXPECT_THAT(Names(), ElementsAre("a"));
}

TEST_F(FileTest, ReplacesFilesAndLinksOnly) {
  ASSERT_TRUE(MakeDirs(Path("a/b")).ok());
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  for (const std::string name : {"a", "pipe"}) {
    const absl::Status status = WriteFileAtomically(Path(name), "x");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(Path(name)));
  }
  EXPECT_TRUE(fs::is_fifo(Path("pipe")));
  fs::create_symlink("elsewhere", Path("link"));
  EXPECT_TRUE(WriteFileAtomically(Path("link"), "x").ok());
  EXPECT_THAT(Names(), ElementsAre("a", "link", "pipe"));
}

TEST_F(FileTest, ReadersNeverSeeHalfAFile) {
  const std::string versions[] = {std::string(100'000, 'a'), std::string(200'000, 'b')};
  ASSERT_TRUE(WriteFileAtomically(Path("a"), versions[0]).ok());
  std::thread writer([&] {
    for (int i = 0; i < 50; ++i)
      EXPECT_TRUE(WriteFileAtomically(Path("a"), versions[i % 2]).ok());
  });
  for (int i = 0; i < 200; ++i) {
    const auto contents = ReadFile(Path("a"));
    ASSERT_TRUE(contents.ok());
    EXPECT_TRUE(*contents == versions[0] || *contents == versions[1]);
  }
  writer.join();
}

TEST_F(FileTest, MakesAndRemovesFolders) {
  ASSERT_TRUE(MakeDirs(Path("x/y/z")).ok());
  ASSERT_TRUE(MakeDirs(Path("x/y/z")).ok());
  ASSERT_TRUE(MakeDirs(Path("x/y/slash/")).ok());
  ASSERT_TRUE(WriteFileAtomically(Path("x/y/z/file"), "1").ok());
  const absl::Status in_file = MakeDirs(Path("x/y/z/file/w"));
  EXPECT_FALSE(in_file.ok());
  EXPECT_THAT(std::string(in_file.message()), HasSubstr("x/y/z/file/w"));
  EXPECT_FALSE(MakeDirs(Path("x/y/z/file")).ok());

  fs::create_symlink(Path("x"), Path("link"));
  ASSERT_TRUE(RemoveTree(Path("link")).ok());
  EXPECT_TRUE(fs::exists(Path("x/y/z/file")));
  ASSERT_TRUE(RemoveTree(Path("x")).ok());
  ASSERT_TRUE(RemoveTree(Path("x")).ok());
  EXPECT_THAT(Names(), ElementsAre());
}

TEST_F(FileTest, RemovesWhatIsUnfinishedOfAFileAlone) {
  for (const char* name : {"a", "a.tmp-12-3", "a.tmp-7-0", "ab.tmp-1-1", "b.tmp-1-1"}) {
    std::ofstream(Path(name)) << name;
  }
  ASSERT_TRUE(RemoveUnfinished(Path("a")).ok());
  EXPECT_THAT(Names(), ElementsAre("a", "ab.tmp-1-1", "b.tmp-1-1"));
  EXPECT_THAT(std::string(RemoveUnfinished(Path("none/a")).message()),
              HasSubstr(Path("none")));
}

TEST_F(FileTest, RemovesAllThatIsUnfinished) {
  for (const char* name : {"a", "a.tmp-12-3", "b.tmp-1-1f-1", "c"}) {
    std::ofstream(Path(name)) << name;
  }
  ASSERT_TRUE(RemoveAllUnfinished(Path("")).ok());
  EXPECT_THAT(Names(), ElementsAre("a", "c"));
  // Whoever writes it fails, and leaves nothing.
  const absl::Status written =
      WriteFileAtomically(Path("d"), [this](FileSink& sink) -> absl::Status {
        const absl::Status removed = RemoveAllUnfinished(Path(""));
        return removed.ok() ? sink.Append("d") : removed;
      });
  EXPECT_FALSE(written.ok());
  EXPECT_THAT(Names(), ElementsAre("a", "c"));
}

TEST_F(FileTest, RemovesFiles) {
  std::ofstream(Path("a")) << "a";
  fs::create_directories(Path("folder"));
  EXPECT_TRUE(RemoveFile(Path("a")).ok());
  EXPECT_TRUE(RemoveFile(Path("a")).ok());
  EXPECT_THAT(std::string(RemoveFile(Path("folder")).message()),
              HasSubstr(Path("folder")));
  EXPECT_THAT(Names(), ElementsAre("folder"));
}

TEST_F(FileTest, ReadsAPlaceInAFile) {
  std::ofstream(Path("a")) << "0123456789";
  const auto file = InputFile::Open(Path("a"));
  ASSERT_TRUE(file.ok());
  char read[4];
  ASSERT_TRUE(file->ReadAt(6, read, 4).ok());
  EXPECT_EQ(std::string(read, 4), "6789");
  const absl::Status beyond = file->ReadAt(7, read, 4);
  EXPECT_EQ(beyond.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(beyond.message()),
              AllOf(HasSubstr(Path("a")), HasSubstr("ends at byte 10")));
}

TEST_F(FileTest, MapsFiles) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "contents").ok());
  ASSERT_TRUE(WriteFileAtomically(Path("empty"), "").ok());
  EXPECT_EQ((*MappedFile::Open(Path("a")))->bytes(), "contents");
  EXPECT_EQ((*MappedFile::Open(Path("empty")))->bytes(), "");
  EXPECT_EQ(MappedFile::Open(Path("missing")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(MappedFile::Open(folder_.string()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(FileTest, RegularFilesAlone) {
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  // At once, though nobody writes into the pipe.
  const absl::Status pipe = InputFile::OpenRegular(Path("pipe")).status();
  EXPECT_EQ(pipe.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(pipe.message()),
              AllOf(HasSubstr(Path("pipe")), HasSubstr("not a regular file")));
  EXPECT_EQ(InputFile::OpenRegular(folder_.string()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(InputFile::OpenRegular(Path("missing")).status().code(),
            absl::StatusCode::kNotFound);

  ASSERT_TRUE(WriteFileAtomically(Path("a"), "contents").ok());
  absl::StatusOr<InputFile> opened = InputFile::OpenRegular(Path("a"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  const InputFile file = *std::move(opened);
  EXPECT_EQ(file.Stat()->st_size, 8);
  char bytes[16];
  EXPECT_EQ(*file.Read(bytes, 5), 5u);
  EXPECT_EQ(*file.Read(bytes + 5, 11), 3u);
  EXPECT_EQ(std::string(bytes, 8), "contents");
  EXPECT_EQ(*file.Read(bytes, 16), 0u);
}

TEST_F(FileTest, ReadsPipes) {
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  std::thread writer([&] { std::ofstream(Path("pipe")) << "through the pipe"; });
  const auto contents = ReadFile(Path("pipe"));
  writer.join();
  ASSERT_TRUE(contents.ok()) << contents.status();
  EXPECT_EQ(*contents, "through the pipe");
}

}  // namespace
}  // namespace moe
