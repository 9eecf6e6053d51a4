#include "common/random/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "common/random/element.h"
#include "common/random/philox.h"

namespace moe {
namespace {

using Counter = std::array<uint32_t, 4>;

// The known answers that the authors publish with Random123.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                       {0xffffffff, 0xffffffff}),
            (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                       {0xa4093822, 0x299f31d0}),
            (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, BitsAreWordsOfPhilox) {
  const RandomKey key{3, 4};
  const uint64_t row = 0x500000007;
  std::vector<uint32_t> bits(77);
  FillBits(key, row, bits);
  for (uint32_t c = 0; c < bits.size(); ++c) {
    EXPECT_EQ(bits[c], Philox4x32({c / 4, 0, 7, 5}, {3, 4})[c % 4]) << c;
    EXPECT_EQ(Bits(key, row, c), bits[c]) << c;
  }
}

TEST(Random, AnElementDoesNotDependOnTheLength) {
  const RandomKey key{5, 6};
  std::vector<float> normal(200), uniform(200);
  FillNormal(key, 9, normal);
  FillUniform(key, 9, uniform);
  for (size_t n : {0, 1, 2, 7, 8, 31, 32, 33, 63, 100}) {
    std::vector<float> x(n);
    FillNormal(key, 9, x);
    EXPECT_TRUE(std::equal(x.begin(), x.end(), normal.begin())) << n;
    FillUniform(key, 9, x);
    EXPECT_TRUE(std::equal(x.begin(), x.end(), uniform.begin())) << n;
  }
}

TEST(Random, NormalIsBoxMuller) {
  const RandomKey key{7, 8};
  std::vector<uint32_t> bits(4096);
  std::vector<float> normal(4096);
  for (uint64_t row = 0; row < 50; ++row) {
    FillBits(key, row, bits);
    FillNormal(key, row, normal);
    for (size_t c = 0; c < bits.size(); c += 2) {
      const double radius = std::sqrt(-2 * std::log(((bits[c] >> 8) + 1) * 0x1p-24));
      const double angle = 2 * M_PI * (bits[c + 1] >> 8) * 0x1p-24;
      ASSERT_NEAR(normal[c], radius * std::cos(angle), 1e-6);
      ASSERT_NEAR(normal[c + 1], radius * std::sin(angle), 1e-6);
    }
  }
}

TEST(Random, Moments) {
  const int64_t rows = 500;
  std::vector<float> x(4096);
  double sum[5] = {};
  double uniform_sum = 0, uniform_square = 0;
  for (int64_t row = 0; row < rows; ++row) {
    FillNormal({1, 2}, row, x);
    for (double v : x) {
      sum[1] += v;
      sum[2] += v * v;
      sum[3] += v * v * v;
      sum[4] += v * v * v * v;
    }
    FillUniform({1, 2}, row, x);
    for (double v : x) {
      ASSERT_GE(v, 0);
      ASSERT_LT(v, 1);
      uniform_sum += v;
      uniform_square += v * v;
    }
  }
  const double n = static_cast<double>(rows) * 4096;
  EXPECT_NEAR(sum[1] / n, 0, 0.004);
  EXPECT_NEAR(sum[2] / n, 1, 0.005);
  EXPECT_NEAR(sum[3] / n, 0, 0.015);
  EXPECT_NEAR(sum[4] / n, 3, 0.04);
  EXPECT_NEAR(uniform_sum / n, 0.5, 0.001);
  EXPECT_NEAR(uniform_square / n, 1.0 / 3, 0.001);
}

TEST(Random, EveryIdMakesAnotherKey) {
  std::set<std::pair<uint32_t, uint32_t>> keys;
  const auto add = [&](uint64_t seed, Purpose purpose, const RandomIds& ids) {
    const RandomKey key = MakeKey(seed, purpose, ids);
    EXPECT_EQ(key, MakeKey(seed, purpose, ids));
    EXPECT_TRUE(keys.emplace(key.k0, key.k1).second);
  };
  add(1, Purpose::kDropout, {});
  add(2, Purpose::kDropout, {});
  add(1ull << 32, Purpose::kDropout, {});
  add(1, Purpose::kGateNoise, {});
  add(1, Purpose::kDropout, {.layer = 1});
  add(1, Purpose::kDropout, {.step = 1});
  add(1, Purpose::kDropout, {.step = 1ull << 32});
  add(1, Purpose::kDropout, {.wave = 1});
  add(1, Purpose::kDropout, {.replica = 1});
  add(1, Purpose::kDropout, {.tensor = 1});
  add(1, Purpose::kDropout, {.group = 1});
}

// What a GPU's threads draw, to the bit.
TEST(Random, OneElementIsThatOfTheRow) {
  const RandomKey key{21, 22};
  for (uint64_t row : {uint64_t{0}, uint64_t{7}, uint64_t{1} << 40}) {
    constexpr size_t kColumns = 20003;
    std::vector<uint32_t> bits(kColumns);
    std::vector<float> uniform(kColumns), normal(kColumns);
    FillBits(key, row, bits);
    FillUniform(key, row, uniform);
    FillNormal(key, row, normal);
    for (size_t c = 0; c < kColumns; ++c) {
      const std::array<uint32_t, 4> block = BlockOfBits(key, row, c / 4);
      ASSERT_EQ(block[c % 4], bits[c]) << c;
      ASSERT_EQ(UniformOfBits(block[c % 4]), uniform[c]) << c;
      const size_t pair = c % 4 / 2 * 2;
      ASSERT_EQ(NormalOfBits(block[pair], block[pair + 1], c % 2 == 1), normal[c]) << c;
    }
  }
}

}  // namespace
}  // namespace moe
