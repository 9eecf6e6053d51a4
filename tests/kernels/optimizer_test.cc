#include <tuple>

#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using OptimizerTest = KernelTest;

TEST_P(OptimizerTest, Sgd) {
  for (int64_t n : {0, 1, 7, 33, 1000}) {
    Random random;
    const HostMatrix g = random.Normal(1, n), w = random.Normal(1, n);
    const DeviceMatrix dg(backend(), g), dw(backend(), w);
    OptimizerStep step;
    step.adam.rate = 0.3f;
    step.gradient_scale = 2;
    backend().OptimizerUpdate(step, dg.view(), dw.data(), nullptr, nullptr);
    const HostMatrix got = dw.Get();
    for (int64_t i = 0; i < n; ++i)
      ASSERT_NEAR(got(0, i), w(0, i) - 0.6f * g(0, i), 1e-6);
  }
}

// Adam as the papers write it, with the second moment of each kind.
struct SlowAdam {
  SlowAdam(SecondMoment kind, const HostMatrix& w)
      : kind(kind),
        rows(w.rows),
        cols(w.cols),
        w(Doubles(w)),
        m(w.values.size()),
        full(w.values.size()),
        of_row(w.rows),
        of_col(w.cols) {}

  // g: times the scale.
  void Update(const AdamStep& adam, const std::vector<double>& g) {
    const double b1 = adam.beta1, b2 = adam.beta2;
    const double count = static_cast<double>(adam.count);
    std::vector<double> row(rows), col(cols);
    for (size_t i = 0; i < g.size(); ++i) {
      full[i] = b2 * full[i] + (1 - b2) * g[i] * g[i];
      row[i / cols] += g[i] * g[i] / static_cast<double>(cols);
      col[i % cols] += g[i] * g[i] / static_cast<double>(rows);
    }
    double mean = 0;
    for (int64_t r = 0; r < rows; ++r) {
      of_row[r] = b2 * of_row[r] + (1 - b2) * row[r];
      mean += of_row[r] / static_cast<double>(rows);
    }
    for (int64_t c = 0; c < cols; ++c) of_col[c] = b2 * of_col[c] + (1 - b2) * col[c];
    for (size_t i = 0; i < g.size(); ++i) {
      double second = full[i];
      if (kind == SecondMoment::kPerRow) second = of_row[i / cols];
      if (kind == SecondMoment::kFactored) {
        second = mean == 0 ? 0 : of_row[i / cols] * of_col[i % cols] / mean;
      }
      m[i] = b1 * m[i] + (1 - b1) * g[i];
      w[i] -= adam.rate * m[i] / (1 - std::pow(b1, count)) /
              (std::sqrt(second / (1 - std::pow(b2, count))) + adam.epsilon);
    }
  }

  SecondMoment kind;
  int64_t rows, cols;
  std::vector<double> w, m, full, of_row, of_col;
};

int64_t SizeOf(SecondMoment kind, int64_t rows, int64_t cols) {
  return kind == SecondMoment::kFull       ? rows * cols
         : kind == SecondMoment::kFactored ? rows + cols
                                           : rows;
}

class SecondMomentTest : public testing::TestWithParam<std::tuple<Device, SecondMoment>> {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = std::get<Device>(GetParam()).make(2, &error);
    if (backend_ == nullptr) GTEST_SKIP() << error;
  }
  SecondMoment kind() const { return std::get<SecondMoment>(GetParam()); }
  Backend& backend() { return *backend_; }

 private:
  std::unique_ptr<Backend> backend_;
};

TEST_P(SecondMomentTest, AdamOverSeveralSteps) {
  struct Shape {
    int64_t rows, cols;
  };
  for (float beta1 : {0.0f, 0.9f}) {
    for (const Shape& s :
         {Shape{1, 1}, Shape{1, 33}, Shape{7, 5}, Shape{5, 1}, Shape{33, 300},
          Shape{601, 260}, Shape{1, 100000}, Shape{2, 9000}}) {
      SCOPED_TRACE(std::to_string(s.rows) + " x " + std::to_string(s.cols));
      Random random;
      const HostMatrix w = random.Normal(s.rows, s.cols);
      const DeviceMatrix dw(backend(), w), m(backend(), s.rows, s.cols);
      const DeviceMatrix v(backend(), 1, SizeOf(kind(), s.rows, s.cols));
      SlowAdam slow(kind(), w);
      OptimizerStep step;
      step.kind = OptimizerStep::Kind::kAdam;
      step.second_moment = kind();
      step.adam.rate = 0.01f;
      step.adam.beta1 = beta1;
      step.adam.beta2 = 0.9f;
      step.gradient_scale = 0.5f;
      for (step.adam.count = 1; step.adam.count <= 4; ++step.adam.count) {
        // Rows and columns of different sizes, so that their averages matter.
        HostMatrix g = random.Normal(s.rows, s.cols);
        for (int64_t r = 0; r < s.rows; ++r) {
          for (int64_t c = 0; c < s.cols; ++c) {
            g(r, c) *= static_cast<float>((1 + r % 5) * (1 + c % 3));
          }
        }
        const DeviceMatrix dg(backend(), g);
        backend().OptimizerUpdate(step, dg.view(), dw.data(),
                                  beta1 > 0 ? m.data() : nullptr, v.data());
        std::vector<double> scaled = Doubles(g);
        for (double& value : scaled) value *= 0.5;
        slow.Update(step.adam, scaled);
      }
      const HostMatrix got = dw.Get();
      for (size_t i = 0; i < slow.w.size(); ++i) {
        ASSERT_NEAR(got.values[i], slow.w[i], 1e-5) << i;
      }
    }
  }
}

// Rows and columns without gradient, or a matrix, move nothing and make no NaN.
TEST_P(SecondMomentTest, NoGradientNoStep) {
  Random random;
  const HostMatrix w = random.Normal(9, 11);
  for (bool all : {false, true}) {
    HostMatrix g = random.Normal(9, 11);
    for (int64_t r = 0; r < 9; ++r) {
      for (int64_t c = 0; c < 11; ++c) {
        if (all || r == 4 || c == 7) g(r, c) = 0;
      }
    }
    const DeviceMatrix dw(backend(), w), dg(backend(), g);
    const DeviceMatrix v(backend(), 1, SizeOf(kind(), 9, 11));
    OptimizerStep step;
    step.kind = OptimizerStep::Kind::kAdam;
    step.second_moment = kind();
    step.adam.rate = 0.01f;
    step.adam.beta1 = 0;
    backend().OptimizerUpdate(step, dg.view(), dw.data(), nullptr, v.data());
    const HostMatrix got = dw.Get();
    for (int64_t r = 0; r < 9; ++r) {
      for (int64_t c = 0; c < 11; ++c) {
        const bool still = all || r == 4 || c == 7;
        ASSERT_EQ(got(r, c) == w(r, c), still) << r << " " << c << ": " << got(r, c);
        ASSERT_TRUE(std::isfinite(got(r, c)));
      }
    }
  }
}

// The first update of a gradient of one size everywhere is the rate, whatever is averaged.
TEST_P(SecondMomentTest, TheFirstUpdateIsTheRate) {
  HostMatrix g(20, 30);
  for (size_t i = 0; i < g.values.size(); ++i) g.values[i] = i % 2 == 0 ? 3e-4f : -3e-4f;
  const DeviceMatrix dg(backend(), g), dw(backend(), 20, 30);
  const DeviceMatrix v(backend(), 1, SizeOf(kind(), 20, 30));
  OptimizerStep step;
  step.kind = OptimizerStep::Kind::kAdam;
  step.second_moment = kind();
  step.adam.rate = 0.25f;
  step.adam.beta1 = 0;
  backend().OptimizerUpdate(step, dg.view(), dw.data(), nullptr, v.data());
  const HostMatrix got = dw.Get();
  for (size_t i = 0; i < g.values.size(); ++i) {
    ASSERT_NEAR(got.values[i], i % 2 == 0 ? -0.25 : 0.25, 1e-4);
  }
}

std::string SecondMomentName(SecondMoment kind) {
  return kind == SecondMoment::kFull       ? "Full"
         : kind == SecondMoment::kFactored ? "Factored"
                                           : "PerRow";
}

// Each row as if it were a tensor of its own; the others stay as they are.
TEST_P(OptimizerTest, RowsWithCountsOfTheirOwn) {
  struct Case {
    OptimizerStep::Kind optimizer;
    SecondMoment second_moment;
    float beta1;
  };
  for (const Case& with : {Case{OptimizerStep::Kind::kSgd, SecondMoment::kFull, 0},
                           Case{OptimizerStep::Kind::kAdam, SecondMoment::kFull, 0.9f},
                           Case{OptimizerStep::Kind::kAdam, SecondMoment::kPerRow, 0.9f},
                           Case{OptimizerStep::Kind::kAdam, SecondMoment::kPerRow, 0}}) {
    for (int64_t cols : {1, 7, 600}) {
      Random random;
      const int64_t rows = 300;
      std::vector<int32_t> index;
      std::vector<int64_t> count;
      for (int32_t r = 2; r < rows; r += 1 + r % 3) {
        index.push_back(r);
        count.push_back(1 + r % 4);
      }
      const bool by_row = with.second_moment == SecondMoment::kPerRow;
      const HostMatrix g = random.Normal(static_cast<int64_t>(index.size()), cols);
      const HostMatrix w = random.Normal(rows, cols);
      const HostMatrix m = random.Normal(rows, cols);
      HostMatrix v = random.Normal(rows, by_row ? 1 : cols);
      for (float& square : v.values) square *= square;
      OptimizerStep step;
      step.kind = with.optimizer;
      step.second_moment = with.second_moment;
      step.adam.beta1 = with.beta1;
      step.adam.rate = 0.01f;
      step.gradient_scale = 0.5f;
      const DeviceMatrix dw(backend(), w, 3), dm(backend(), m, 3), dv(backend(), v, 3);
      backend().UpdateRows(step, index, count, DeviceMatrix(backend(), g, 3).view(),
                           dw.view(), dm.view(), dv.view());

      const DeviceMatrix want_w(backend(), w), want_m(backend(), m), want_v(backend(), v);
      const DeviceMatrix gradient(backend(), g);
      for (size_t i = 0; i < index.size(); ++i) {
        step.adam.count = count[i];
        const auto row = static_cast<int64_t>(i);
        backend().OptimizerUpdate(
            step, gradient.view().Rows(row, 1), want_w.view().row(index[i]),
            want_m.view().row(index[i]), want_v.view().row(index[i]));
      }
      EXPECT_EQ(dw.Get().values, want_w.Get().values);
      EXPECT_EQ(dm.Get().values, want_m.Get().values);
      EXPECT_EQ(dv.Get().values, want_v.Get().values);
      EXPECT_NE(dw.Get().values, w.values);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, OptimizerTest, testing::ValuesIn(Devices()),
                         DeviceName);
INSTANTIATE_TEST_SUITE_P(Devices, SecondMomentTest,
                         testing::Combine(testing::ValuesIn(Devices()),
                                          testing::Values(SecondMoment::kFull,
                                                          SecondMoment::kFactored,
                                                          SecondMoment::kPerRow)),
                         [](const auto& info) {
                           return std::get<Device>(info.param).name +
                                  SecondMomentName(std::get<SecondMoment>(info.param));
                         });

}  // namespace
}  // namespace moe
