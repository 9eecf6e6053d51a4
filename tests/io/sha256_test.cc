#include "common/io/sha256.h"

#include <gtest/gtest.h>

#include "common/io/file.h"

namespace moe {
namespace {

// FIPS 180-2, appendix B.
constexpr char kEmpty[] =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc[] =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kMillionA[] =
    "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(Sha256Test, KnownDigests) {
  EXPECT_EQ(Sha256Hex(""), kEmpty);
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
  EXPECT_EQ(Sha256Hex(std::string(1'000'000, 'a')), kMillionA);
}

TEST(Sha256Test, PiecesAndReadingOnTheWay) {
  Sha256 sha256;
  EXPECT_EQ(sha256.Hex(), kEmpty);
  sha256.Update("a");
  sha256.Update("");
  sha256.Update("bc", 2);
  EXPECT_EQ(sha256.Hex(), kAbc);
  EXPECT_EQ(sha256.Hex(), kAbc);
  Sha256 moved = std::move(sha256);
  moved.Update("d");
  EXPECT_EQ(moved.Hex(), Sha256Hex("abcd"));
}

TEST(Sha256Test, Files) {
  const std::string path = testing::TempDir() + "/sha256_test_file";
  ASSERT_TRUE(WriteFileAtomically(path, std::string(3'000'001, 'a')).ok());
  EXPECT_EQ(*Sha256File(path), Sha256Hex(std::string(3'000'001, 'a')));
  EXPECT_EQ(Sha256File(path + ".missing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(Sha256File(testing::TempDir()).ok());
}

}  // namespace
}  // namespace moe
