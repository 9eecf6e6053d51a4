// Experts whose matrices are bf16: the arithmetic is that of floats, and an update rounds at random.
#include <bit>
#include <cstring>

#include "common/tensor/bfloat16.h"
#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using Bfloat16ExpertsTest = KernelTest;

TEST(Bfloat16Test, RoundsToTheNearestAndKeepsNaN) {
  const float ulp = 0x1p-7f;  // of 1 <= x < 2
  EXPECT_EQ(ToFloat(ToBfloat16(1 + 0.4f * ulp)), 1);
  EXPECT_EQ(ToFloat(ToBfloat16(1 + 0.6f * ulp)), 1 + ulp);
  EXPECT_EQ(ToFloat(ToBfloat16(1 + 0.5f * ulp)), 1);
  EXPECT_EQ(ToFloat(ToBfloat16(1 + 1.5f * ulp)), 1 + 2 * ulp);
  EXPECT_EQ(ToFloat(ToBfloat16(-3)), -3);
  EXPECT_EQ(ToFloat(ToBfloat16(INFINITY)), INFINITY);
  EXPECT_TRUE(std::isnan(ToFloat(ToBfloat16(std::bit_cast<float>(0x7F800001)))));
  EXPECT_TRUE(std::isnan(ToFloat(ToBfloat16(NAN))));
}

// The same weights as floats and as bf16, with moments for both.
struct Experts {
  Experts(Backend& backend, const std::vector<int64_t>& rows,
          const std::vector<int64_t>& widths)
      : matrices(widths.size() - 1) {
    Random random(3);
    for (size_t e = 0; e < rows.size(); ++e) {
      for (size_t i = 0; i < matrices; ++i) {
        HostMatrix w = random.Normal(widths[i], widths[i + 1], 0.1f);
        std::vector<Bfloat16> bits;
        for (float& value : w.values) {
          bits.push_back(ToBfloat16(value));
          value = ToFloat(bits.back());
        }
        w32.push_back(floats.emplace_back(backend, w).data());
        halves.emplace_back(backend, w.rows * w.cols).Upload(bits);
        w16.push_back(halves.back().data());
        for (std::vector<float*>* pointers : {&m, &v}) {
          for (int copy = 0; copy < 2; ++copy) {
            pointers->push_back(moments.emplace_back(backend, w.rows, w.cols + 1).data());
          }
        }
      }
    }
    for (size_t e = 0; e < rows.size(); ++e) {
      const size_t at = e * matrices;
      experts32.push_back({std::span(w32).subspan(at, matrices), total, rows[e]});
      experts16.push_back({{}, total, rows[e], std::span(w16).subspan(at, matrices)});
      total += rows[e];
    }
  }

  size_t matrices;
  int64_t total = 0;
  std::vector<DeviceMatrix> floats;
  std::vector<Array<Bfloat16>> halves;
  std::vector<float*> w32;
  std::vector<Bfloat16*> w16;
  // Of each matrix twice: for the floats and for the bf16.
  std::vector<DeviceMatrix> moments;
  std::vector<float*> m, v;
  std::vector<ExpertRows> experts32, experts16;
};

const std::vector<int64_t> kRows = {1, 0, 8, 12, 40, 100, 257, 700};

void ExpectSame(const DeviceMatrix& a, const DeviceMatrix& b) {
  const HostMatrix x = a.Get(), y = b.Get();
  EXPECT_EQ(std::memcmp(x.values.data(), y.values.data(), 4 * x.values.size()), 0);
}

TEST_P(Bfloat16ExpertsTest, ProductsAreThoseOfTheSameNumbersAsFloats) {
  for (const std::vector<int64_t>& widths :
       std::vector<std::vector<int64_t>>{{33, 20, 33}, {40, 300, 28, 40}}) {
    const Experts e(backend(), kRows, widths);
    Random random;
    const DeviceMatrix x(backend(), random.Normal(e.total, widths[0]));
    const DeviceMatrix dy(backend(), random.Normal(e.total, widths[0]));
    const DeviceMatrix gate(backend(), random.Normal(1, e.total));
    struct Result {
      std::vector<DeviceMatrix> all;
    };
    std::vector<Result> results;
    for (const std::vector<ExpertRows>* experts : {&e.experts32, &e.experts16}) {
      std::vector<DeviceMatrix> hidden, dhidden;
      for (size_t i = 1; i + 1 < widths.size(); ++i) {
        hidden.emplace_back(backend(), e.total, widths[i]);
        dhidden.emplace_back(backend(), e.total, widths[i]);
      }
      DeviceMatrix y(backend(), e.total, widths[0]), dx(backend(), e.total, widths[0]);
      DeviceMatrix dgate(backend(), 1, e.total);
      backend().ExpertForward(*experts, x.view(), Views<Matrix>(hidden), y.view());
      backend().ExpertBackward(*experts, ConstMatrix(), dy.view(), gate.data(),
                               Views<ConstMatrix>(hidden), dgate.data(),
                               Views<Matrix>(dhidden), dx.view());
      Result& result = results.emplace_back();
      for (DeviceMatrix* one : {&y, &dx, &dgate}) result.all.push_back(std::move(*one));
      for (DeviceMatrix& one : hidden) result.all.push_back(std::move(one));
      for (DeviceMatrix& one : dhidden) result.all.push_back(std::move(one));
    }
    for (size_t i = 0; i < results[0].all.size(); ++i) {
      ExpectSame(results[0].all[i], results[1].all[i]);
    }
  }
}

// x with 16 random bits added below the upper half.
Bfloat16 Rounded(float x, uint32_t random) {
  return {static_cast<uint16_t>((std::bit_cast<uint32_t>(x) + random) >> 16)};
}

TEST_P(Bfloat16ExpertsTest, AnUpdateIsThatOfFloatsRoundedByItsRandomBits) {
  struct Variant {
    OptimizerStep::Kind kind;
    SecondMoment second_moment;
    float beta1;
  };
  constexpr auto kAdam = OptimizerStep::Kind::kAdam;
  for (const Variant& variant :
       {Variant{OptimizerStep::Kind::kSgd, SecondMoment::kFull, 0.9f},
        Variant{kAdam, SecondMoment::kFull, 0.9f},
        Variant{kAdam, SecondMoment::kFactored, 0},
        Variant{kAdam, SecondMoment::kFactored, 0.9f},
        Variant{kAdam, SecondMoment::kPerRow, 0}}) {
    const std::vector<int64_t> widths = {33, 20, 301, 33};
    const Experts e(backend(), kRows, widths);
    Random random;
    const DeviceMatrix x(backend(), random.Normal(e.total, 33));
    const DeviceMatrix dy(backend(), random.Normal(e.total, 33));
    std::vector<DeviceMatrix> hidden, dhidden;
    for (int64_t width : {20, 301}) {
      hidden.emplace_back(backend(), random.Normal(e.total, width));
      dhidden.emplace_back(backend(), random.Normal(e.total, width));
    }
    std::vector<OptimizerStep> steps(e.matrices);
    for (size_t i = 0; i < steps.size(); ++i) {
      steps[i].kind = variant.kind;
      steps[i].second_moment = variant.second_moment;
      steps[i].adam.rate = 0.01f;
      steps[i].adam.beta1 = variant.beta1;
      steps[i].rounding = {7, static_cast<uint32_t>(i)};
    }
    // Twice, so that the second begins with what the first made of the moments.
    for (int64_t count : {1, 2}) {
      for (OptimizerStep& step : steps) step.adam.count = count;
      std::vector<ExpertUpdate> updates32, updates16;
      std::vector<float*> m[2], v[2];
      for (size_t i = 0; i < e.w32.size(); ++i) {
        for (int copy = 0; copy < 2; ++copy) {
          m[copy].push_back(e.m[2 * i + copy]);
          v[copy].push_back(e.v[2 * i + copy]);
        }
      }
      for (size_t i = 0; i < kRows.size(); ++i) {
        const size_t at = i * e.matrices;
        updates32.push_back({e.experts32[i], std::span(m[0]).subspan(at, e.matrices),
                             std::span(v[0]).subspan(at, e.matrices), steps});
        updates16.push_back({e.experts16[i], std::span(m[1]).subspan(at, e.matrices),
                             std::span(v[1]).subspan(at, e.matrices), steps});
      }
      for (const auto* updates : {&updates32, &updates16}) {
        backend().ExpertUpdates(*updates, x.view(), Views<ConstMatrix>(hidden),
                                Views<ConstMatrix>(dhidden), dy.view());
      }
      for (size_t i = 0; i < e.floats.size(); ++i) {
        HostMatrix exact = e.floats[i].Get();
        const std::vector<Bfloat16> got = Download(e.halves[i]);
        const bool idle = kRows[i / e.matrices] == 0;
        for (int64_t r = 0; r < exact.rows; ++r) {
          for (int64_t c = 0; c < exact.cols; ++c) {
            const uint32_t word = Bits(steps[i % e.matrices].rounding, r, c / 2);
            const uint32_t half = c % 2 == 0 ? word & 0xFFFF : word >> 16;
            const Bfloat16 expected = Rounded(exact(r, c), idle ? 0 : half);
            ASSERT_EQ(got[r * exact.cols + c], expected) << i << " " << r << " " << c;
            // Both go on from the same parameters.
            exact(r, c) = ToFloat(expected);
          }
        }
        backend().Upload(exact.values.data(), e.w32[i], 4 * exact.values.size());
      }
      for (size_t i = 0; i < e.moments.size(); i += 2) {
        ExpectSame(e.moments[i], e.moments[i + 1]);
      }
    }
  }
}

// One expert whose every element gets the same new value.
struct Constant {
  explicit Constant(Backend& backend)
      : backend(backend),
        x(backend, Filled(kWidth)),
        hidden(backend, Filled(kWidth)),
        w(backend, kWidth * kWidth),
        other(backend, kWidth * kWidth) {}

  static HostMatrix Filled(int64_t n) {
    HostMatrix row(1, n);
    std::fill(row.values.begin(), row.values.end(), 1.0f);
    return row;
  }

  // Of from - step, rounded.
  std::vector<Bfloat16> Update(float from, float step, RandomKey key) {
    w.Upload(std::vector<Bfloat16>(kWidth * kWidth, ToBfloat16(from)));
    other.Upload(std::vector<Bfloat16>(kWidth * kWidth, ToBfloat16(0)));
    std::vector<Bfloat16*> pointers = {w.data(), other.data()};
    std::vector<OptimizerStep> steps(2);
    steps[0].adam.rate = step;
    steps[0].rounding = key;
    steps[1].rounding = key;
    ExpertUpdate update;
    update.expert.rows = 1;
    update.expert.w16 = pointers;
    update.steps = steps;
    const std::vector<ConstMatrix> ones = {hidden.view()};
    backend.ExpertUpdates({&update, 1}, x.view(), ones, ones, x.view());
    return Download(w);
  }

  static constexpr int64_t kWidth = 320;
  Backend& backend;
  const DeviceMatrix x, hidden;
  Array<Bfloat16> w, other;
};

TEST_P(Bfloat16ExpertsTest, RoundingIsRightOnAverage) {
  Constant experts(backend());
  constexpr double kSize = Constant::kWidth * Constant::kWidth;
  for (float share : {0.01f, 0.3f, 0.5f, 0.9f}) {
    for (float sign : {1.0f, -1.0f}) {
      // Between the neighbours 1 and 1 - 2^-8.
      const double ulp = 0x1p-8;
      const std::vector<Bfloat16> got =
          experts.Update(sign, sign * share * static_cast<float>(ulp),
                         {1, static_cast<uint32_t>(100 * share)});
      double below = 0;
      double runs = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        const float value = sign * ToFloat(got[i]);
        ASSERT_TRUE(value == 1 || value == 1 - static_cast<float>(ulp)) << value;
        below += value < 1;
        runs += i > 0 && (got[i] == got[i - 1]);
      }
      // Within 4 standard deviations; neighbours are rounded independently of each other.
      const double p = share;
      EXPECT_NEAR(below / kSize, p, 4 * std::sqrt(p * (1 - p) / kSize));
      const double same = p * p + (1 - p) * (1 - p);
      EXPECT_NEAR(runs / kSize, same,
                  6 * std::sqrt(same * (1 - same) / kSize) + 1 / kSize);
    }
  }
}

TEST_P(Bfloat16ExpertsTest, RoundingKeepsWhatFitsAndNaN) {
  Constant experts(backend());
  for (const Bfloat16& x : experts.Update(1, 0.5f, {1, 2})) ASSERT_EQ(ToFloat(x), 0.5f);
  for (const Bfloat16& x : experts.Update(-3, 0, {1, 2})) ASSERT_EQ(ToFloat(x), -3);
  for (const Bfloat16& x : experts.Update(1, NAN, {1, 2})) {
    ASSERT_TRUE(std::isnan(ToFloat(x)));
  }
  const std::vector<Bfloat16> a = experts.Update(1, 0x1p-9f, {1, 2});
  EXPECT_EQ(experts.Update(1, 0x1p-9f, {1, 2}), a);
  EXPECT_NE(experts.Update(1, 0x1p-9f, {1, 3}), a);
}

INSTANTIATE_TEST_SUITE_P(Devices, Bfloat16ExpertsTest, testing::ValuesIn(Devices()),
                         DeviceName);

}  // namespace
}  // namespace moe
