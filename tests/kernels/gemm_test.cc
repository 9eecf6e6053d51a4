#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using GemmTest = KernelTest;

void CheckProduct(Backend& backend, Transpose ta, Transpose tb, int64_t m, int64_t n,
                  int64_t k, float alpha, float beta, int64_t gap) {
  SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k << ", transposed "
                                  << (ta == Transpose::kYes) << (tb == Transpose::kYes)
                                  << ", beta " << beta << ", gap " << gap);
  Random random;
  const bool a_turned = ta == Transpose::kYes;
  const bool b_turned = tb == Transpose::kYes;
  const HostMatrix a = random.Normal(a_turned ? k : m, a_turned ? m : k);
  const HostMatrix b = random.Normal(b_turned ? n : k, b_turned ? k : n);
  HostMatrix before = random.Normal(m, n);
  if (beta == 0) std::fill(before.values.begin(), before.values.end(), NAN);
  const DeviceMatrix da(backend, a, gap), db(backend, b, gap), dc(backend, before, gap);
  backend.Gemm(ta, tb, alpha, da.view(), db.view(), beta, dc.view());
  const HostMatrix c = dc.Get();
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, scale = 1;
      for (int64_t l = 0; l < k; ++l) {
        const double term = static_cast<double>(a_turned ? a(l, i) : a(i, l)) *
                            (b_turned ? b(j, l) : b(l, j));
        sum += term;
        scale += std::abs(term);
      }
      const double expected = alpha * sum + (beta == 0 ? 0 : beta * before(i, j));
      ASSERT_NEAR(c(i, j), expected, 1e-6 * scale) << i << ", " << j;
    }
  }
}

TEST_P(GemmTest, AwkwardSizes) {
  for (Transpose ta : {Transpose::kNo, Transpose::kYes}) {
    for (Transpose tb : {Transpose::kNo, Transpose::kYes}) {
      for (int64_t m : {1, 7, 33}) {
        for (int64_t n : {1, 5, 40}) {
          for (int64_t k : {1, 9, 100}) {
            CheckProduct(backend(), ta, tb, m, n, k, 1, 0, 0);
            CheckProduct(backend(), ta, tb, m, n, k, -0.5f, 2, 3);
          }
        }
      }
    }
  }
}

TEST_P(GemmTest, ManyTiles) {
  for (Transpose ta : {Transpose::kNo, Transpose::kYes}) {
    for (Transpose tb : {Transpose::kNo, Transpose::kYes}) {
      CheckProduct(backend(), ta, tb, 301, 1100, 70, 1, 0, 5);
      CheckProduct(backend(), ta, tb, 130, 67, 600, 1, 1, 0);
    }
  }
}

TEST_P(GemmTest, EmptySizes) {
  CheckProduct(backend(), Transpose::kNo, Transpose::kNo, 0, 5, 3, 1, 0, 0);
  CheckProduct(backend(), Transpose::kNo, Transpose::kYes, 5, 0, 3, 1, 0, 0);
  CheckProduct(backend(), Transpose::kNo, Transpose::kNo, 4, 5, 0, 1, 0, 0);
  CheckProduct(backend(), Transpose::kYes, Transpose::kNo, 4, 5, 0, 1, 0.5f, 2);
}

INSTANTIATE_TEST_SUITE_P(Devices, GemmTest, testing::ValuesIn(Devices()), DeviceName);

}  // namespace
}  // namespace moe
