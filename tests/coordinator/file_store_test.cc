#include "server/coordinator/file_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/io/file.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class FileStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = absl::StrCat(testing::TempDir(), "/store_",
                           testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
  }
  std::string folder_;
};

TEST_F(FileStoreTest, ComparesAndSwaps) {
  auto store = FileStore::Open(folder_);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_FALSE((*store)->Get("a")->has_value());
  EXPECT_EQ(*(*store)->CompareAndSwap("a", 0, "one"), 1);
  EXPECT_EQ((*store)->CompareAndSwap("a", 0, "two").status().code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ((*store)->Get("a")->value().value, "one");
  EXPECT_EQ(*(*store)->CompareAndSwap("a", 1, "two"), 2);
  EXPECT_EQ((*store)->Get("a")->value().value, "two");
  EXPECT_EQ((*store)->Get("a")->value().version, 2);
}

TEST_F(FileStoreTest, KeepsItsEntries) {
  const std::string odd("tab\t newline\n zero\0 \xff quote\" backslash\\", 40);
  {
    auto store = FileStore::Open(folder_);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->CompareAndSwap("members/server/a", 0, odd).ok());
    ASSERT_TRUE((*store)->CompareAndSwap("members/worker/b", 0, "").ok());
    ASSERT_TRUE((*store)->CompareAndSwap("membership", 0, "x").ok());
    ASSERT_TRUE((*store)->CompareAndSwap("membership", 1, "y").ok());
  }
  auto store = FileStore::Open(folder_);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->Get("membership")->value().version, 2);
  const auto members = (*store)->List("members/");
  ASSERT_TRUE(members.ok());
  ASSERT_EQ(members->size(), 2);
  EXPECT_EQ(members->at("members/server/a").value, odd);
  EXPECT_EQ(members->at("members/worker/b").value, "");
}

TEST_F(FileStoreTest, OneCoordinatorAtATime) {
  {
    auto first = FileStore::Open(folder_);
    ASSERT_TRUE(first.ok()) << first.status();
    const absl::Status second = FileStore::Open(folder_).status();
    EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(second.message()), HasSubstr(folder_));
    EXPECT_THAT(
        std::string(second.message()),
        HasSubstr(absl::StrCat("another coordinator, which is running (pid ", getpid())));
  }
  EXPECT_TRUE(FileStore::Open(folder_).ok());
}

TEST_F(FileStoreTest, RefusesTornFiles) {
  { ASSERT_TRUE((*FileStore::Open(folder_))->CompareAndSwap("key", 0, "value").ok()); }
  const std::string path = folder_ + "/state";
  const std::string whole = *ReadFile(path);
  for (size_t length = 0; length < whole.size(); ++length) {
    ASSERT_TRUE(WriteFileAtomically(path, whole.substr(0, length)).ok());
    const absl::Status status = FileStore::Open(folder_).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << length;
    ASSERT_THAT(std::string(status.message()), HasSubstr(path));
  }
  std::string flipped = whole;
  flipped.back() ^= 1;
  ASSERT_TRUE(WriteFileAtomically(path, flipped).ok());
  EXPECT_EQ(FileStore::Open(folder_).status().code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE(WriteFileAtomically(path, whole).ok());
  EXPECT_TRUE(FileStore::Open(folder_).ok());
}

TEST_F(FileStoreTest, RemovesTheTemporaryFileOfACrash) {
  { ASSERT_TRUE((*FileStore::Open(folder_))->CompareAndSwap("key", 0, "value").ok()); }
  const std::string temporary = folder_ + "/state.tmp-123-4";
  ASSERT_TRUE(WriteFileAtomically(temporary, "half a st").ok());
  auto store = FileStore::Open(folder_);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_FALSE(fs::exists(temporary));
  EXPECT_EQ((*store)->Get("key")->value().value, "value");
  EXPECT_EQ(*(*store)->CompareAndSwap("key", 1, "next"), 2);
}

TEST_F(FileStoreTest, FailedWriteChangesNothing) {
  auto store = FileStore::Open(folder_);
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE((*store)->CompareAndSwap("key", 0, "value").ok());
  fs::remove_all(folder_);
  EXPECT_FALSE((*store)->CompareAndSwap("key", 1, "lost").ok());
  EXPECT_EQ((*store)->Get("key")->value().value, "value");
}

}  // namespace
}  // namespace moe
