#include <limits>
#include <vector>

#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using SampledSoftmaxTest = KernelTest;

TEST_P(SampledSoftmaxTest, TargetLogits) {
  for (int64_t d : {1, 9, 64, 200}) {
    for (int64_t gap : {0, 3}) {
      Random random;
      const int64_t tokens = 150;
      const int64_t candidates = 6;
      const HostMatrix x = random.Normal(tokens, d);
      const HostMatrix w = random.Normal(11, d);
      const HostMatrix b = random.Normal(1, 11);
      const HostMatrix logits = random.Normal(tokens, candidates + 1);
      std::vector<int32_t> index = random.Below(11, tokens);
      std::vector<int32_t> hit = random.Below(candidates + 1, tokens);
      for (int32_t& h : hit) h -= 1;
      index[3] = -1;
      hit[3] = -1;
      const DeviceMatrix dx(backend(), x, gap);
      const DeviceMatrix dw(backend(), w, gap);
      const DeviceMatrix db(backend(), b);
      const DeviceMatrix dlogits(backend(), logits, gap);
      backend().TargetLogits(dx.view(), dw.view(), db.data(), index, hit, dlogits.view());
      const HostMatrix got = dlogits.Get();
      for (int64_t t = 0; t < tokens; ++t) {
        double target = 0;
        if (index[t] >= 0) {
          target = b(0, index[t]);
          for (int64_t i = 0; i < d; ++i) target += double{x(t, i)} * w(index[t], i);
        }
        ExpectNear(target, got(t, candidates), 1e-5);
        for (int64_t c = 0; c < candidates; ++c) {
          const float want =
              c == hit[t] ? -std::numeric_limits<float>::infinity() : logits(t, c);
          ASSERT_EQ(got(t, c), want) << t << ", " << c;
        }
      }
    }
  }
}

TEST_P(SampledSoftmaxTest, TargetLogitsBackward) {
  for (int64_t d : {1, 9, 64, 200}) {
    for (int64_t gap : {0, 3}) {
      Random random;
      const int64_t tokens = 150;
      const HostMatrix x = random.Normal(tokens, d);
      const HostMatrix w = random.Normal(11, d);
      const HostMatrix gradient = random.Normal(tokens, 4);
      const HostMatrix before_w = random.Normal(11, d);
      const HostMatrix before_b = random.Normal(1, 11);
      const HostMatrix before_x = random.Normal(tokens, d);
      std::vector<int32_t> index = random.Below(11, tokens);
      index[3] = -1;
      const DeviceMatrix of_w(backend(), before_w, gap);
      const DeviceMatrix of_b(backend(), before_b);
      const DeviceMatrix of_x(backend(), before_x, gap);
      backend().TargetLogitsBackward(DeviceMatrix(backend(), gradient, gap).view(),
                                     DeviceMatrix(backend(), x, gap).view(),
                                     DeviceMatrix(backend(), w, gap).view(), index,
                                     of_w.view(), of_b.data(), of_x.view());
      std::vector<double> want_w = Doubles(before_w);
      std::vector<double> want_b = Doubles(before_b);
      std::vector<double> want_x = Doubles(before_x);
      for (int64_t t = 0; t < tokens; ++t) {
        if (index[t] < 0) continue;
        const double g = gradient(t, 3);
        want_b[index[t]] += g;
        for (int64_t i = 0; i < d; ++i) {
          want_w[index[t] * d + i] += g * x(t, i);
          want_x[t * d + i] += g * w(index[t], i);
        }
      }
      const HostMatrix got_w = of_w.Get();
      const HostMatrix got_b = of_b.Get();
      const HostMatrix got_x = of_x.Get();
      for (size_t i = 0; i < want_w.size(); ++i)
        ExpectNear(want_w[i], got_w.values[i], 1e-5);
      for (size_t i = 0; i < want_b.size(); ++i)
        ExpectNear(want_b[i], got_b.values[i], 1e-5);
      for (size_t i = 0; i < want_x.size(); ++i)
        ExpectNear(want_x[i], got_x.values[i], 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, SampledSoftmaxTest, testing::ValuesIn(Devices()),
                         DeviceName);

}  // namespace
}  // namespace moe
