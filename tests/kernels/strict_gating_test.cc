#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using StrictGatingTest = KernelTest;
using ChosenSoftmaxTest = KernelTest;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr RandomKey kKey{31, 32};

// [T, n] of 0 and 1 from rows of bits; the bits beyond n must be 0.
std::vector<int> Unpack(const Array<uint8_t>& chosen, int64_t tokens, int64_t n) {
  const std::vector<uint8_t> bytes = Download(chosen);
  const int64_t row = ChosenBytes(n);
  std::vector<int> unpacked;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < 8 * row; ++i) {
      const int bit = bytes[t * row + i / 8] >> (i % 8) & 1;
      if (i < n) {
        unpacked.push_back(bit);
      } else {
        EXPECT_EQ(bit, 0) << "beyond n";
      }
    }
  }
  return unpacked;
}

// An array whose bits are all set: what an operation leaves alone shows.
Array<uint8_t> Bytes(Backend& backend, int64_t tokens, int64_t n) {
  Array<uint8_t> bytes(backend, tokens * ChosenBytes(n));
  bytes.Upload(std::vector<uint8_t>(bytes.size(), 0xFF));
  return bytes;
}

// Every column sorted: NaN first, then by number, then by the random bits.
std::vector<int> SlowChoice(const HostMatrix& x, int64_t m) {
  std::vector<int> chosen(x.rows * x.cols);
  for (int64_t i = 0; i < x.cols; ++i) {
    std::vector<int64_t> order(x.rows);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const float u = x(a, i), v = x(b, i);
      if (std::isnan(u) != std::isnan(v)) return std::isnan(u);
      if (!std::isnan(u) && u != v) return u > v;
      return Bits(kKey, a, i) < Bits(kKey, b, i);
    });
    for (int64_t j = 0; j < m; ++j) chosen[order[j] * x.cols + i] = 1;
  }
  return chosen;
}

TEST_P(StrictGatingTest, EachExpertTakesItsBestTokens) {
  Random random;
  for (int64_t n : {1, 5, 8, 9, 32, 70}) {
    for (int64_t tokens : {1, 6, 64, 300}) {
      for (float grain : {0.0f, 4.0f, 0.5f}) {  // of rounding: more and more ties
        HostMatrix x = random.Normal(tokens, n, 3);
        for (float& v : x.values) {
          if (grain > 0) v = std::round(v * grain);
        }
        for (int64_t m : {int64_t{0}, int64_t{1}, tokens / 3, tokens}) {
          for (int64_t gap : {0, 3}) {
            const DeviceMatrix d(backend(), x, gap);
            const Array<uint8_t> chosen = Bytes(backend(), tokens, n);
            backend().ChooseLargest(d.view(), m, kKey, chosen.data());
            ASSERT_EQ(Unpack(chosen, tokens, n), SlowChoice(x, m))
                << tokens << " tokens, " << n << " experts, m " << m << ", grain "
                << grain;
          }
        }
      }
    }
  }
}

TEST_P(StrictGatingTest, UnusualNumbers) {
  const float values[] = {kNan,    -kNan, kInfinity, -kInfinity, 0.0f, -0.0f,
                          -1e-30f, 1e30f, -1e30f,    kNan,       1.0f, -kInfinity};
  HostMatrix x(12, 3);
  for (int64_t t = 0; t < 12; ++t) {
    for (int64_t i = 0; i < 3; ++i) x(t, i) = values[(t + 5 * i) % 12];
  }
  const DeviceMatrix d(backend(), x);
  for (int64_t m = 0; m <= 12; ++m) {
    const Array<uint8_t> chosen = Bytes(backend(), 12, 3);
    backend().ChooseLargest(d.view(), m, kKey, chosen.data());
    EXPECT_EQ(Unpack(chosen, 12, 3), SlowChoice(x, m)) << m;
  }
}

// All tie: who wins is spread over the tokens, and differs from expert to expert.
TEST_P(StrictGatingTest, TiesDontGoByTokenOrder) {
  const int64_t tokens = 200, n = 40, m = 50;
  const DeviceMatrix d(backend(), HostMatrix(tokens, n));
  const Array<uint8_t> chosen = Bytes(backend(), tokens, n);
  backend().ChooseLargest(d.view(), m, kKey, chosen.data());
  const std::vector<int> unpacked = Unpack(chosen, tokens, n);
  int64_t first_half = 0, most = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t of_token =
        std::accumulate(&unpacked[t * n], &unpacked[t * n] + n, int64_t{0});
    if (t < tokens / 2) first_half += of_token;
    most = std::max(most, of_token);
  }
  // 2,000 pairs, half of them +- 22; a token has 10 +- 2.7 experts.
  EXPECT_NEAR(first_half, 1000, 110);
  EXPECT_LT(most, 24);
}

TEST_P(StrictGatingTest, Thresholds) {
  Random random;
  for (int64_t n : {1, 8, 9, 300}) {
    for (int64_t gap : {0, 3}) {
      const int64_t tokens = 37;
      HostMatrix x = random.Normal(tokens, n);
      HostMatrix threshold = random.Normal(1, n);
      x(3, 0) = threshold(0, 0);  // not above
      x(4, n - 1) = kNan;
      threshold(0, n / 2) = kInfinity;
      std::vector<int32_t> target(tokens, 7);
      target[0] = target[9] = -1;
      const DeviceMatrix d(backend(), x, gap), dthreshold(backend(), threshold);
      const Array<uint8_t> chosen = Bytes(backend(), tokens, n);
      const Array<int32_t> count(backend(), n);
      backend().ChooseAbove(d.view(), dthreshold.data(), target, chosen.data());
      backend().CountAbove(d.view(), dthreshold.data(), count.data());
      std::vector<int> expected(tokens * n);
      std::vector<int32_t> counts(n);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t i = 0; i < n; ++i) {
          const bool above = std::isnan(x(t, i)) || x(t, i) > threshold(0, i);
          counts[i] += above;
          expected[t * n + i] = above && target[t] >= 0;
        }
      }
      EXPECT_EQ(Unpack(chosen, tokens, n), expected) << n;
      EXPECT_EQ(Download(count), counts) << n;
    }
  }
}

TEST_P(StrictGatingTest, NoTokens) {
  const DeviceMatrix d(backend(), 0, 6), threshold(backend(), 1, 6);
  const Array<int32_t> count(backend(), 6), offset(backend(), 1);
  backend().ChooseLargest(d.view(), 0, kKey, nullptr);
  backend().ChooseAbove(d.view(), threshold.data(), {}, nullptr);
  backend().CountAbove(d.view(), threshold.data(), count.data());
  EXPECT_EQ(Download(count), std::vector<int32_t>(6));
  EXPECT_EQ(backend().CountChosen(0, 6, nullptr, offset.data()), 0);
  EXPECT_EQ(Download(offset), std::vector<int32_t>{0});
}

// Random choices, among them tokens with none and with all experts.
struct Chosen {
  Chosen(Backend& backend, Random& random, int64_t tokens, int64_t n)
      : bytes(backend, tokens * ChosenBytes(n)), offset(backend, tokens + 1) {
    const std::vector<int32_t> dice = random.Below(10, tokens * n);
    std::vector<uint8_t> bits(bytes.size());
    offsets.push_back(0);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < n; ++i) {
        const bool in = t % 5 == 1 || (t % 5 != 2 && dice[t * n + i] < 3);
        if (!in) continue;
        bits[t * ChosenBytes(n) + i / 8] |= static_cast<uint8_t>(1 << i % 8);
        experts.push_back(static_cast<int32_t>(i));
      }
      offsets.push_back(static_cast<int32_t>(experts.size()));
    }
    bytes.Upload(bits);
  }

  std::vector<int32_t> offsets, experts;
  Array<uint8_t> bytes;
  Array<int32_t> offset;
};

TEST_P(ChosenSoftmaxTest, ForwardAndBackward) {
  Random random;
  for (int64_t n : {1, 5, 8, 9, 32, 70}) {
    for (int64_t gap : {0, 3}) {
      const int64_t tokens = 23;
      HostMatrix x = random.Normal(tokens, n, 2);
      for (int64_t i = 0; i < n; ++i) x(6, i) -= 200;  // G_sigma itself would underflow
      Chosen chosen(backend(), random, tokens, n);
      const DeviceMatrix d(backend(), x, gap), dx(backend(), tokens, n, gap);
      const int64_t pairs =
          backend().CountChosen(tokens, n, chosen.bytes.data(), chosen.offset.data());
      ASSERT_EQ(pairs, static_cast<int64_t>(chosen.experts.size()));
      EXPECT_EQ(Download(chosen.offset), chosen.offsets);
      const Array<int32_t> expert(backend(), pairs);
      const Array<float> gate(backend(), pairs);
      backend().ChosenSoftmaxForward(d.view(), chosen.bytes.data(), chosen.offset.data(),
                                     expert.data(), gate.data());
      EXPECT_EQ(Download(expert), chosen.experts);
      const HostMatrix dgate = random.Normal(1, pairs);
      const DeviceMatrix ddgate(backend(), dgate);
      backend().ChosenSoftmaxBackward(chosen.offset.data(), expert.data(), gate.data(),
                                      ddgate.data(), dx.view());
      const std::vector<float> got = Download(gate);
      const auto softmax = [&](int64_t t, const std::vector<double>& values) {
        std::vector<double> gates;
        double sum = 0;
        for (int32_t j = chosen.offsets[t]; j < chosen.offsets[t + 1]; ++j) {
          gates.push_back(std::exp(values[t * n + chosen.experts[j]] - x(t, 0)));
          sum += gates.back();
        }
        for (double& g : gates) g /= sum;
        return gates;
      };
      for (int64_t t = 0; t < tokens; ++t) {
        const std::vector<double> expected = softmax(t, Doubles(x));
        for (size_t j = 0; j < expected.size(); ++j) {
          ASSERT_NEAR(got[chosen.offsets[t] + j], expected[j], 1e-6) << t;
        }
      }
      const auto loss = [&](const std::vector<double>& values) {
        double sum = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          const std::vector<double> gates = softmax(t, values);
          for (size_t j = 0; j < gates.size(); ++j) {
            sum += gates[j] * dgate.values[chosen.offsets[t] + j];
          }
        }
        return sum;
      };
      ExpectGradient(loss, x, dx.Get(), 1e-5, "x");
    }
  }
}

TEST_P(ChosenSoftmaxTest, NanStays) {
  HostMatrix x(2, 3);
  x(1, 2) = kNan;
  const DeviceMatrix d(backend(), x);
  Array<uint8_t> chosen(backend(), 2);
  chosen.Upload(std::vector<uint8_t>{7, 7});
  const Array<int32_t> offset(backend(), 3), expert(backend(), 6);
  const Array<float> gate(backend(), 6);
  ASSERT_EQ(backend().CountChosen(2, 3, chosen.data(), offset.data()), 6);
  backend().ChosenSoftmaxForward(d.view(), chosen.data(), offset.data(), expert.data(),
                                 gate.data());
  const std::vector<float> got = Download(gate);
  for (int j = 0; j < 6; ++j) EXPECT_EQ(std::isnan(got[j]), j >= 3);
}

INSTANTIATE_TEST_SUITE_P(Devices, StrictGatingTest, testing::ValuesIn(Devices()),
                         DeviceName);
INSTANTIATE_TEST_SUITE_P(Devices, ChosenSoftmaxTest, testing::ValuesIn(Devices()),
                         DeviceName);

}  // namespace
}  // namespace moe
