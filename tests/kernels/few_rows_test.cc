#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "common/kernels/cpu/few_rows_kernels.h"
#include "common/random/random.h"
#include "common/tensor/bfloat16.h"

namespace moe::cpu {
namespace {

struct Shape {
  int64_t m, n, k;
};

// Tiles with and without remainders of rows, of vectors and of lanes, several blocks of weights.
const Shape kShapes[] = {{1, 1, 1},     {1, 16, 5},    {2, 48, 16},   {3, 33, 129},
                         {4, 1024, 70}, {5, 100, 64},  {7, 7, 300},   {8, 65, 17},
                         {9, 47, 200},  {13, 95, 31},  {16, 513, 90}, {17, 24, 8},
                         {32, 31, 257}, {33, 40, 512}, {130, 50, 20}, {9, 100, 1100}};

std::vector<float> Normal(int64_t size, uint64_t row) {
  std::vector<float> x(size);
  FillNormal({1, 2}, row, x);
  return x;
}

// A matrix whose rows lie `gap` numbers apart; between them NaN, of which nothing may come.
template <typename T>
struct Gapped {
  Gapped(const std::vector<T>& values, int64_t rows, int64_t cols, int64_t gap, T between)
      : stride(cols + gap), data(rows * stride, between) {
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(values.begin() + r * cols, cols, data.begin() + r * stride);
    }
  }
  int64_t stride;
  std::vector<T> data;
};

enum Form { kProduct, kTransposed, kOuter };

template <typename Weight>
using Kernel = void (*)(const FewRowsProductArguments<Weight>&);

template <typename Weight>
std::vector<float> Multiply(Kernel<Weight> kernel, Form form, const Shape& s,
                            const std::vector<float>& a, const std::vector<Weight>& b,
                            Weight between, int64_t gap) {
  const bool a_turned = form == kOuter;
  const bool b_turned = form == kTransposed;
  const Gapped<float> left(a, a_turned ? s.k : s.m, a_turned ? s.m : s.k, gap, NAN);
  const Gapped<Weight> right(b, b_turned ? s.n : s.k, b_turned ? s.k : s.n, gap, between);
  std::vector<float> c(s.m * (s.n + gap), -7);
  kernel({s.m, s.n, s.k, left.data.data(), left.stride, right.data.data(), right.stride,
          c.data(), s.n + gap, false});
  std::vector<float> dense;
  for (int64_t r = 0; r < s.m; ++r) {
    const float* row = c.data() + r * (s.n + gap);
    dense.insert(dense.end(), row, row + s.n);
    for (int64_t i = 0; i < gap; ++i) EXPECT_EQ(row[s.n + i], -7);
  }
  return dense;
}

void CheckClose(Form form, const Shape& s, const std::vector<float>& a,
                const std::vector<float>& b, const std::vector<float>& c) {
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = 0, scale = 1;
      for (int64_t l = 0; l < s.k; ++l) {
        const double x = form == kOuter ? a[l * s.m + i] : a[i * s.k + l];
        const double y = form == kTransposed ? b[j * s.k + l] : b[l * s.n + j];
        sum += x * y;
        scale += std::abs(x * y);
      }
      ASSERT_NEAR(c[i * s.n + j], sum, 1e-6 * scale) << i << ", " << j;
    }
  }
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// The float kernels of a processor, by form.
struct Forms {
  Kernel<float> kernel[3];
};

Forms Avx2() {
  return {{FewRowsAvx2().product, FewRowsAvx2().transposed,
           [](const FewRowsProductArguments<float>& p) {
             // Fetching past the end of memory does no harm.
             FewRowsAvx2().outer(p, {{p.a, p.b, nullptr}, 1 << 20});
           }}};
}

Forms Avx512() {
  return {
      {FewRowsAvx512().product, FewRowsAvx512().transposed,
       [](const FewRowsProductArguments<float>& p) { FewRowsAvx512().outer(p, {}); }}};
}

TEST(FewRowsTest, ProductsAreRightAndOfTheSameBitsOnBothProcessors) {
  for (const Shape& s : kShapes) {
    for (Form form : {kProduct, kTransposed, kOuter}) {
      SCOPED_TRACE(testing::Message()
                   << s.m << " x " << s.n << " x " << s.k << ", form " << form);
      const std::vector<float> a = Normal(s.m * s.k, 1);
      const std::vector<float> b = Normal(s.k * s.n, 2);
      const std::vector<float> c =
          Multiply<float>(Avx2().kernel[form], form, s, a, b, NAN, 0);
      CheckClose(form, s, a, b, c);
      EXPECT_TRUE(
          SameBits(Multiply<float>(Avx2().kernel[form], form, s, a, b, NAN, 5), c))
          << "with gaps";
      if (!HasAvx512()) continue;
      for (int64_t gap : {0, 5}) {
        EXPECT_TRUE(
            SameBits(Multiply<float>(Avx512().kernel[form], form, s, a, b, NAN, gap), c))
            << "AVX-512, gap " << gap;
      }
    }
  }
}

TEST(FewRowsTest, Bfloat16WeightsGiveTheBitsOfTheSameFloats) {
  const Bfloat16 nan = ToBfloat16(NAN);
  std::vector<FewRowsKernels> processors = {FewRowsAvx2()};
  if (HasAvx512()) processors.push_back(FewRowsAvx512());
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(testing::Message() << s.m << " x " << s.n << " x " << s.k);
    const std::vector<float> a = Normal(s.m * s.k, 1);
    std::vector<float> b = Normal(s.k * s.n, 2);
    std::vector<Bfloat16> b16;
    for (float& x : b) x = ToFloat(b16.emplace_back(ToBfloat16(x)));
    for (const FewRowsKernels& kernels : processors) {
      EXPECT_TRUE(
          SameBits(Multiply<Bfloat16>(kernels.product16, kProduct, s, a, b16, nan, 3),
                   Multiply<float>(processors[0].product, kProduct, s, a, b, NAN, 0)));
      EXPECT_TRUE(SameBits(
          Multiply<Bfloat16>(kernels.transposed16, kTransposed, s, a, b16, nan, 3),
          Multiply<float>(processors[0].transposed, kTransposed, s, a, b, NAN, 0)));
    }
  }
}

// A row's numbers don't depend on which rows are beside it.
TEST(FewRowsTest, ARowIsTheSameInEveryBatch) {
  const int64_t n = 70, k = 45;
  const std::vector<float> a = Normal(33 * k, 1);
  const std::vector<float> b = Normal(n * k, 2);
  const FewRowsKernels& kernels = BestFewRows();
  for (auto [form, kernel] : {std::pair{kProduct, kernels.product},
                              std::pair{kTransposed, kernels.transposed}}) {
    const std::vector<float> all =
        Multiply<float>(kernel, form, {33, n, k}, a, b, NAN, 0);
    for (int64_t m : {1, 2, 5, 8, 12, 31}) {
      EXPECT_TRUE(SameBits(Multiply<float>(kernel, form, {m, n, k}, a, b, NAN, 0),
                           {all.begin(), all.begin() + m * n}))
          << m << " rows";
    }
  }
}

}  // namespace
}  // namespace moe::cpu
