#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using RowsTest = KernelTest;

struct Case {
  int64_t rows, cols, gap;
};
const Case kCases[] = {{0, 5, 0},  {1, 1, 0},  {7, 33, 0},
                       {7, 33, 3}, {40, 8, 1}, {300, 257, 2}};

TEST_P(RowsTest, BroadcastRow) {
  for (const Case& s : kCases) {
    Random random;
    const HostMatrix row = random.Normal(1, s.cols);
    const DeviceMatrix from(backend(), row), out(backend(), s.rows, s.cols, s.gap);
    backend().BroadcastRow(from.data(), out.view());
    const HostMatrix got = out.Get();
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t c = 0; c < s.cols; ++c) ASSERT_EQ(got(r, c), row(0, c));
    }
  }
}

TEST_P(RowsTest, AddColumnSumsInRowOrder) {
  for (const Case& s : kCases) {
    Random random;
    const HostMatrix x = random.Normal(s.rows, s.cols);
    const HostMatrix before = random.Normal(1, s.cols);
    const DeviceMatrix dx(backend(), x, s.gap), sums(backend(), before);
    backend().AddColumnSums(dx.view(), sums.data());
    const HostMatrix got = sums.Get();
    for (int64_t c = 0; c < s.cols; ++c) {
      double sum = before(0, c);
      for (int64_t r = 0; r < s.rows; ++r) sum += x(r, c);
      ExpectNear(sum, got(0, c), 1e-5);
    }
  }
}

TEST_P(RowsTest, AddAndSquareSum) {
  for (int64_t n : {0, 1, 7, 33, 5000, 100000}) {
    Random random;
    const HostMatrix x = random.Normal(1, n), y = random.Normal(1, n);
    const DeviceMatrix dx(backend(), x), dy(backend(), y);
    double squares = 0;
    for (float v : x.values) squares += static_cast<double>(v) * v;
    ExpectNear(squares, backend().SquareSum(n, dx.data()), 1e-12);
    backend().Add(n, dx.data(), dy.data());
    const HostMatrix sum = dy.Get();
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(sum(0, i), x(0, i) + y(0, i));
  }
}

TEST_P(RowsTest, AllFinite) {
  for (const Case& s : kCases) {
    Random random;
    HostMatrix x = random.Normal(s.rows, s.cols);
    EXPECT_TRUE(backend().AllFinite(DeviceMatrix(backend(), x, s.gap).view()));
    if (x.values.empty()) continue;
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      for (size_t at : {size_t{0}, x.values.size() / 2, x.values.size() - 1}) {
        HostMatrix y = x;
        y.values[at] = bad;
        EXPECT_FALSE(backend().AllFinite(DeviceMatrix(backend(), y, s.gap).view()));
      }
    }
  }
}

TEST_P(RowsTest, Gather) {
  for (const Case& s : kCases) {
    Random random;
    const HostMatrix x = random.Normal(17, s.cols), scale = random.Normal(1, s.rows);
    const std::vector<int32_t> index = random.Below(17, s.rows);
    const DeviceMatrix dx(backend(), x, s.gap), dscale(backend(), scale);
    for (bool scaled : {false, true}) {
      const DeviceMatrix out(backend(), s.rows, s.cols, s.gap);
      backend().GatherRows(dx.view(), index, scaled ? dscale.data() : nullptr,
                           out.view());
      const HostMatrix got = out.Get();
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t c = 0; c < s.cols; ++c) {
          ASSERT_EQ(got(r, c), x(index[r], c) * (scaled ? scale(0, r) : 1));
        }
      }
    }
  }
}

TEST_P(RowsTest, ScatterAddInRowOrder) {
  for (const Case& s : kCases) {
    Random random;
    const HostMatrix x = random.Normal(s.rows, s.cols);
    HostMatrix expected = random.Normal(13, s.cols);
    const std::vector<int32_t> index = random.Below(13, s.rows);
    const DeviceMatrix dx(backend(), x, s.gap), out(backend(), expected, s.gap);
    backend().ScatterAddRows(dx.view(), index, out.view());
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t c = 0; c < s.cols; ++c) expected(index[r], c) += x(r, c);
    }
    EXPECT_EQ(out.Get().values, expected.values);
  }
}

TEST_P(RowsTest, Combine) {
  for (const Case& s : kCases) {
    Random random;
    const HostMatrix x = random.Normal(50, s.cols);
    const std::vector<int32_t> counts = random.Below(5, s.rows);
    std::vector<int32_t> offset(1, 0);
    for (int32_t count : counts) offset.push_back(offset.back() + count);
    const std::vector<int32_t> position = random.Below(50, offset.back());
    const HostMatrix weight = random.Normal(1, offset.back());
    const DeviceMatrix dx(backend(), x, s.gap), dweight(backend(), weight);
    for (bool weighted : {false, true}) {
      const DeviceMatrix out(backend(), s.rows, s.cols, s.gap);
      backend().CombineRows(dx.view(), offset, position,
                            weighted ? dweight.data() : nullptr, out.view());
      const HostMatrix got = out.Get();
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t c = 0; c < s.cols; ++c) {
          double sum = 0;
          for (int32_t j = offset[r]; j < offset[r + 1]; ++j) {
            sum += static_cast<double>(weighted ? weight(0, j) : 1) * x(position[j], c);
          }
          ASSERT_NEAR(got(r, c), sum, 2e-6);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, RowsTest, testing::ValuesIn(Devices()), DeviceName);

}  // namespace
}  // namespace moe
