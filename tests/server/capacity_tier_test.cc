// Memory in a file: what it takes of the disk, and what happens where there is none.
#include "server/capacity_tier.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

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

TEST_F(CapacityTierTest, WhatIsReleasedIsFreeForOthers) {
  const auto tier = Make(3, 0);
  ASSERT_TRUE(tier->Extend(2 * kPage).ok());
  char* const a = tier->Reserve(kPage);
  char* const b = tier->Reserve(kPage);
  ASSERT_TRUE(tier->Extend(3 * kPage).ok());
  char* const c = tier->Reserve(3 * kPage);
  for (char* page : {a, b, c}) ASSERT_TRUE(tier->Allocate(page, kPage).ok());
  std::memset(c, 3, kPage);
  tier->Release(a, kPage);
  EXPECT_EQ(tier->allocated(), 3 * kPage) << "b is of the same segment";
  tier->Release(b, kPage);
  EXPECT_EQ(tier->allocated(), kPage);
  EXPECT_EQ(c[kPage - 1], 3);
  ASSERT_TRUE(tier->Allocate(c + kPage, 2 * kPage).ok());
  EXPECT_TRUE(std::all_of(c + kPage, c + 3 * kPage, [](char x) { return x == 0; }));
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

// As threads that work on experts do.
TEST_F(CapacityTierTest, ThreadsShareTheBudget) {
  constexpr int kThreads = 4;
  constexpr int64_t kPagesEach = 50;
  constexpr int64_t kBudget = kThreads * kPagesEach / 2;
  const auto tier = Make(kBudget, kThreads * kPagesEach);
  char* const begin = tier->Reserve(kThreads * kPagesEach * kPage);
  std::atomic<int64_t> taken = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, mine = begin + t * kPagesEach * kPage] {
      for (int64_t i = 0; i < kPagesEach; ++i) {
        char* const page = mine + i * kPage;
        tier->Prefetch(page, kPage);
        const absl::Status status = tier->Allocate(page, kPage);
        EXPECT_LE(tier->allocated(), kBudget * kPage);
        if (!status.ok()) {
          EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
          continue;
        }
        ++taken;
        std::memset(page, 1, kPage);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken, kBudget);
  EXPECT_EQ(tier->allocated(), kBudget * kPage);
}

// ---- what the system says

// Fails calls as it is told, and remembers all.
struct FakeSystem {
  // Errors of the next calls with each mode or advice.
  std::map<int, std::vector<int>> errors;
  struct Call {
    int kind = 0;
    int64_t bytes = 0;
    bool operator==(const Call&) const = default;
  };
  std::vector<Call> calls;

  CapacityTier::System System() {
    const CapacityTier::System real = CapacityTier::RealSystem();
    return {.fallocate =
                [this, real](int fd, int mode, int64_t offset, int64_t bytes) {
                  return Fails(mode, bytes) ? -1
                                            : real.fallocate(fd, mode, offset, bytes);
                },
            .madvise =
                [this, real](void* begin, size_t bytes, int advice) {
                  return Fails(kAdvice + advice, static_cast<int64_t>(bytes))
                             ? -1
                             : real.madvise(begin, bytes, advice);
                }};
  }
  bool Fails(int kind, int64_t bytes) {
    calls.push_back({kind, bytes});
    std::vector<int>& next = errors[kind];
    if (next.empty()) return false;
    errno = next.front();
    next.erase(next.begin());
    return true;
  }

  static constexpr int kAdvice = 1000;
  static constexpr int kTake = 0;
  static constexpr int kGiveBack = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  static constexpr int kPopulate = kAdvice + MADV_POPULATE_WRITE;
  static constexpr int kSoon = kAdvice + MADV_WILLNEED;
};

class CapacityTierErrorsTest : public CapacityTierTest {
 protected:
  // Of Allocate of two pages.
  absl::Status Allocate(int kind, std::vector<int> errors) {
    system_.errors[kind] = std::move(errors);
    auto tier = CapacityTier::Create(
        {.folder = folder_, .disk_bytes = 8 * kPage, .system = system_.System()},
        8 * kPage);
    EXPECT_TRUE(tier.ok()) << tier.status();
    char* const begin = (*tier)->Reserve(2 * kPage);
    system_.calls.clear();
    const absl::Status status = (*tier)->Allocate(begin, 2 * kPage);
    EXPECT_EQ((*tier)->allocated(), status.ok() ? 2 * kPage : 0);
    gave_back_ = std::count(system_.calls.begin(), system_.calls.end(),
                            FakeSystem::Call{FakeSystem::kGiveBack, 2 * kPage});
    return status;
  }

  FakeSystem system_;
  int64_t gave_back_ = 0;
};

TEST_F(CapacityTierErrorsTest, AFullDiskNeedsRoom) {
  for (int error : {ENOSPC, EDQUOT}) {
    const absl::Status status = Allocate(FakeSystem::kTake, {error});
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("cannot take another 8.0 KiB of the disk in " + folder_),
                      HasSubstr(std::strerror(error)), HasSubstr("make room")));
    // A part of it may have been taken.
    EXPECT_EQ(gave_back_, 1);
  }
}

TEST_F(CapacityTierErrorsTest, OtherErrorsHaveTheirOwnAdvice) {
  absl::Status status = Allocate(FakeSystem::kTake, {EIO});
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("Input/output error"), HasSubstr("is the disk in order?"),
                    Not(HasSubstr("make room"))));
  EXPECT_FALSE(absl::IsResourceExhausted(status));
  EXPECT_EQ(gave_back_, 1);
  status = Allocate(FakeSystem::kTake, {EOPNOTSUPP});
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("a file system that can reserve room"),
                    Not(HasSubstr("make room"))));
  status = Allocate(FakeSystem::kTake, {EFBIG});
  EXPECT_THAT(std::string(status.message()), HasSubstr("limit on the size of files"));
}

TEST_F(CapacityTierErrorsTest, AnInterruptedCallIsMadeAgain) {
  EXPECT_TRUE(Allocate(FakeSystem::kTake, {EINTR, EINTR}).ok());
  EXPECT_TRUE(Allocate(FakeSystem::kPopulate, {EINTR}).ok());
  EXPECT_FALSE(Allocate(FakeSystem::kTake, {EINTR, ENOSPC}).ok());
  system_.errors[FakeSystem::kGiveBack] = {EINTR};
  EXPECT_FALSE(Allocate(FakeSystem::kTake, {ENOSPC}).ok());
  EXPECT_EQ(gave_back_, 2);
}

TEST_F(CapacityTierErrorsTest, PagesThatCannotBeMadeAreAnErrorButOnOldKernels) {
  EXPECT_TRUE(Allocate(FakeSystem::kPopulate, {EINVAL}).ok());
  for (int error : {EFAULT, EIO}) {
    const absl::Status status = Allocate(FakeSystem::kPopulate, {error});
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("pages of the file in " + folder_),
                      HasSubstr(std::strerror(error)), Not(HasSubstr("make room"))));
    EXPECT_EQ(gave_back_, 1);
  }
  EXPECT_THAT(std::string(Allocate(FakeSystem::kPopulate, {ENOMEM}).message()),
              HasSubstr("needs more memory"));
}

TEST_F(CapacityTierErrorsTest, ReadsWholePagesAhead) {
  auto tier = CapacityTier::Create(
      {.folder = folder_, .disk_bytes = 8 * kPage, .system = system_.System()},
      8 * kPage);
  char* const begin = (*tier)->Reserve(3 * kPage);
  ASSERT_TRUE((*tier)->Allocate(begin, 3 * kPage).ok());
  system_.calls.clear();
  (*tier)->Prefetch(begin + kPage + 8, kPage);
  (*tier)->Prefetch(begin, 1);
  EXPECT_EQ(system_.calls, (std::vector<FakeSystem::Call>{{FakeSystem::kSoon, 2 * kPage},
                                                          {FakeSystem::kSoon, kPage}}));
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
