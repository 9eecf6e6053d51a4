#include "common/base/crc32c.h"

#include <nmmintrin.h>

#include <array>
#include <cstddef>
#include <cstring>

namespace moe {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

// The instruction gives one result a cycle, but each three cycles after its input: three blocks
// are worked on at a time. A power of two.
constexpr size_t kBlock = 1024;

// A linear map of CRCs: the image of each bit.
using Matrix = std::array<uint32_t, 32>;

constexpr uint32_t Times(const Matrix& matrix, uint32_t crc) {
  uint32_t image = 0;
  for (size_t bit = 0; bit < matrix.size(); ++bit) {
    if ((crc >> bit) & 1) image ^= matrix[bit];
  }
  return image;
}

// What a CRC becomes when kBlock zero bytes follow, by each of its bytes.
constexpr std::array<std::array<uint32_t, 256>, 4> MakeShift() {
  Matrix shift{};  // of one bit
  shift[0] = kPolynomial;
  for (size_t bit = 1; bit < shift.size(); ++bit) shift[bit] = uint32_t{1} << (bit - 1);
  for (size_t bits = 1; bits < 8 * kBlock; bits *= 2) {
    Matrix twice{};
    for (size_t bit = 0; bit < twice.size(); ++bit) twice[bit] = Times(shift, shift[bit]);
    shift = twice;
  }
  std::array<std::array<uint32_t, 256>, 4> tables{};
  for (uint32_t byte = 0; byte < 4; ++byte) {
    for (uint32_t value = 0; value < 256; ++value) {
      tables[byte][value] = Times(shift, value << (8 * byte));
    }
  }
  return tables;
}
constexpr std::array<std::array<uint32_t, 256>, 4> kShift = MakeShift();

uint64_t Shift(uint64_t crc) {
  return kShift[0][crc & 255] ^ kShift[1][(crc >> 8) & 255] ^
         kShift[2][(crc >> 16) & 255] ^ kShift[3][(crc >> 24) & 255];
}

uint64_t Word(const char* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

}  // namespace

uint32_t Crc32c(std::string_view bytes, uint32_t before) {
  uint64_t crc = ~before;
  const char* p = bytes.data();
  size_t left = bytes.size();
  for (; left >= 3 * kBlock; left -= 3 * kBlock, p += 3 * kBlock) {
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < kBlock; i += sizeof(uint64_t)) {
      crc = _mm_crc32_u64(crc, Word(p + i));
      second = _mm_crc32_u64(second, Word(p + kBlock + i));
      third = _mm_crc32_u64(third, Word(p + 2 * kBlock + i));
    }
    crc = Shift(Shift(crc) ^ second) ^ third;
  }
  for (; left >= sizeof(uint64_t); left -= sizeof(uint64_t), p += sizeof(uint64_t)) {
    crc = _mm_crc32_u64(crc, Word(p));
  }
  uint32_t rest = static_cast<uint32_t>(crc);
  for (; left > 0; --left, ++p) {
    rest = _mm_crc32_u8(rest, static_cast<unsigned char>(*p));
  }
  return ~rest;
}

}  // namespace moe
