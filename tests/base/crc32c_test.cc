#include "common/base/crc32c.h"

#include <gtest/gtest.h>

#include <string>

namespace moe {
namespace {

// Bit by bit.
uint32_t Slow(std::string_view bytes) {
  uint32_t crc = ~uint32_t{0};
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit)
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78 : 0);
  }
  return ~crc;
}

std::string Bytes(size_t size) {
  std::string bytes(size, '\0');
  uint32_t state = 1;
  for (char& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<char>(state >> 24);
  }
  return bytes;
}

// RFC 3720, B.4, and the usual check.
TEST(Crc32cTest, KnownValues) {
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(Crc32cTest, EveryLengthAndPlace) {
  const std::string bytes = Bytes(13000);
  for (size_t size = 0; size < 100; ++size) {
    EXPECT_EQ(Crc32c(std::string_view(bytes).substr(size % 8, size)),
              Slow(std::string_view(bytes).substr(size % 8, size)))
        << size;
  }
  // Around the ends of its blocks.
  for (const size_t size : {3071, 3072, 3073, 6143, 6144, 6151, 12999}) {
    EXPECT_EQ(Crc32c(std::string_view(bytes).substr(1, size)),
              Slow(std::string_view(bytes).substr(1, size)))
        << size;
  }
}

TEST(Crc32cTest, GoesOn) {
  const std::string bytes = Bytes(10000);
  for (const size_t cut : {0, 1, 3072, 5000, 10000}) {
    EXPECT_EQ(Crc32c(std::string_view(bytes).substr(cut), Crc32c(bytes.substr(0, cut))),
              Crc32c(bytes));
  }
}

TEST(Crc32cTest, EveryBitCounts) {
  std::string bytes = Bytes(4000);
  const uint32_t crc = Crc32c(bytes);
  for (size_t bit = 0; bit < 8 * bytes.size(); bit += 7) {
    bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
    EXPECT_NE(Crc32c(bytes), crc) << bit;
    bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
  }
}

}  // namespace
}  // namespace moe
