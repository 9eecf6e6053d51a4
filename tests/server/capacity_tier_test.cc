// Memory in a file: what it takes of the disk, and what happens where there is none.
#include "server/capacity_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

namespace moe {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kPage = CapacityTier::kPage;

class CapacityTierTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/capacity_tier";
    std::filesystem::create_directories(folder_);
  }

  std::unique_ptr<CapacityTier> Make(int64_t disk_pages, int64_t address_pages) {
    auto tier = CapacityTier::Create(
        {.folder = folder_, .disk_bytes = disk_pages * kPage}, address_pages * kPage);
    EXPECT_TRUE(tier.ok()) << tier.status();
    return *std::move(tier);
  }

  std::string folder_;
};

TEST_F(CapacityTierTest, HasMoreAddressesThanDisk) {
  // 64 GiB of addresses for two pages of the disk.
  const auto tier = Make(2, int64_t{1} << 24);
  char* const a = tier->Reserve(10);
  char* const b = tier->Reserve(int64_t{1} << 35);
  EXPECT_EQ(b - a, kPage);
  ASSERT_TRUE(tier->Allocate(a, 10).ok());
  ASSERT_TRUE(tier->Allocate(b + 5 * kPage, kPage).ok());
  EXPECT_EQ(tier->allocated(), 2 * kPage);
  EXPECT_TRUE(std::all_of(a, a + kPage, [](char c) { return c == 0; }));
  std::memset(a, 1, kPage);
  std::memset(b + 5 * kPage, 2, kPage);
  EXPECT_EQ(a[kPage - 1], 1);
  EXPECT_EQ(b[5 * kPage], 2);
}

TEST_F(CapacityTierTest, BudgetIsNeverExceeded) {
  const auto tier = Make(3, 10);
  char* const begin = tier->Reserve(10 * kPage);
  ASSERT_TRUE(tier->Allocate(begin, 2 * kPage).ok());
  const absl::Status status = tier->Allocate(begin + 2 * kPage, 2 * kPage);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(folder_), HasSubstr("8.0 KiB"), HasSubstr("12.0 KiB"),
                    HasSubstr("--disk_gib")));
  EXPECT_EQ(tier->allocated(), 2 * kPage);
  EXPECT_TRUE(tier->Allocate(begin + 2 * kPage, kPage).ok());
}

TEST_F(CapacityTierTest, LeavesNothingInTheFolder) {
  const auto tier = Make(1, 1);
  ASSERT_TRUE(tier->Allocate(tier->Reserve(1), 1).ok());
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(CapacityTierTest, NamesAFolderThatIsNotThere) {
  const auto tier =
      CapacityTier::Create({.folder = "/no/folder", .disk_bytes = kPage}, 1);
  EXPECT_THAT(std::string(tier.status().message()),
              AllOf(HasSubstr("/no/folder"), HasSubstr("No such file")));
}

}  // namespace
}  // namespace moe
