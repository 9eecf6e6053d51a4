#include <algorithm>

#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using ExpertsTest = KernelTest;
using Row = std::vector<double>;

struct Sizes {
  std::vector<int64_t> rows;  // of each expert
  int64_t d;
  std::vector<int64_t> hidden;  // width of each hidden layer
  int64_t gap;
  int64_t output = 0;  // width; 0: d

  int64_t o() const { return output > 0 ? output : d; }
};

std::string Describe(const Sizes& s) {
  std::string text = std::to_string(s.rows.size()) + " experts, d " + std::to_string(s.d);
  for (int64_t width : s.hidden) text += ", h " + std::to_string(width);
  return text + ", o " + std::to_string(s.o());
}

// The experts' weights and the rows that they work on.
struct Batch {
  Batch(Backend& backend, const Sizes& s) : x(0, 0), dy(0, 0), gate(0, 0) {
    // The experts' rows lie in the batch in reverse order, so that order in memory plays no part.
    for (int64_t rows : s.rows) total += rows;
    Random random;
    x = random.Normal(total, s.d);
    dy = random.Normal(total, s.o());
    gate = random.Normal(1, total);
    std::vector<int64_t> widths = {s.d};
    widths.insert(widths.end(), s.hidden.begin(), s.hidden.end());
    widths.push_back(s.o());
    matrices = s.hidden.size() + 1;
    int64_t end = total;
    for (int64_t rows : s.rows) {
      std::vector<HostMatrix>& of_expert = w.emplace_back();
      for (size_t i = 0; i < matrices; ++i) {
        // So that values neither grow nor shrink from layer to layer.
        const float scale = std::sqrt(2.0f / static_cast<float>(widths[i]));
        of_expert.push_back(random.Normal(widths[i], widths[i + 1], scale));
        device_weights.emplace_back(backend, of_expert.back());
        pointers.push_back(device_weights.back().data());
      }
      end -= rows;
      begins.push_back(end);
    }
    for (size_t e = 0; e < s.rows.size(); ++e) {
      experts.push_back(
          {std::span(pointers).subspan(e * matrices, matrices), begins[e], s.rows[e]});
    }
    for (int64_t width : s.hidden) {
      hidden.emplace_back(backend, total, width, s.gap);
      dhidden.emplace_back(backend, total, width, s.gap);
    }
  }

  int64_t total = 0;
  size_t matrices = 0;
  HostMatrix x, dy, gate;
  std::vector<std::vector<HostMatrix>> w;  // [experts][matrices]
  std::vector<int64_t> begins;
  std::vector<DeviceMatrix> device_weights;  // expert by expert
  std::vector<float*> pointers;
  std::vector<ExpertRows> experts;
  std::vector<DeviceMatrix> hidden, dhidden;
};

const Sizes kSizes[] = {{{1}, 1, {1}, 0},
                        {{7}, 5, {33}, 0},
                        {{3, 0, 1, 9}, 33, {20}, 3},
                        {{2, 5, 8}, 64, {96}, 1},
                        {{0, 0}, 8, {8}, 0},
                        {{1200, 3}, 9, {17}, 0},
                        {{5, 40}, 270, {300}, 2},
                        {{1}, 1, {1, 1}, 0},
                        {{3, 0, 1, 9}, 33, {20, 41}, 3},
                        {{5, 40}, 30, {300, 270}, 2},
                        {{1200, 3, 0, 12}, 9, {17, 5, 40, 8}, 1},
                        {{3, 0, 1, 9}, 33, {20}, 3, 70},
                        {{5, 40}, 30, {300, 270}, 2, 11},
                        {{1}, 1, {}, 0},
                        {{3, 0, 1, 9}, 33, {}, 3, 132},
                        {{5, 40}, 270, {}, 2, 9},
                        {{1200, 3}, 9, {}, 1, 36}};

// x W
Row Product(const Row& x, const HostMatrix& w) {
  Row y(w.cols);
  for (int64_t i = 0; i < w.rows; ++i) {
    for (int64_t j = 0; j < w.cols; ++j) y[j] += x[i] * w(i, j);
  }
  return y;
}

// x W^T
Row ProductTransposed(const Row& x, const HostMatrix& w) {
  Row y(w.rows);
  for (int64_t i = 0; i < w.rows; ++i) {
    for (int64_t j = 0; j < w.cols; ++j) y[i] += x[j] * w(i, j);
  }
  return y;
}

Row RowOf(const HostMatrix& x, int64_t r) {
  return Row(x.values.begin() + r * x.cols, x.values.begin() + (r + 1) * x.cols);
}

void ExpectRow(const Row& expected, const HostMatrix& actual, int64_t r,
               double tolerance) {
  for (size_t j = 0; j < expected.size(); ++j) {
    ASSERT_NEAR(actual(r, j), expected[j], tolerance * (1 + std::abs(expected[j])));
  }
}

std::vector<HostMatrix> GetAll(const std::vector<DeviceMatrix>& matrices) {
  std::vector<HostMatrix> all;
  for (const DeviceMatrix& matrix : matrices) all.push_back(matrix.Get());
  return all;
}

TEST_P(ExpertsTest, ForwardAndBackward) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(Describe(s));
    Batch b(backend(), s);
    const DeviceMatrix x(backend(), b.x, s.gap), dy(backend(), b.dy, s.gap);
    const DeviceMatrix gate(backend(), b.gate), dgate(backend(), 1, b.total);
    const DeviceMatrix y(backend(), b.total, s.o(), s.gap),
        dx(backend(), b.total, s.d, s.gap);
    backend().ExpertForward(b.experts, x.view(), Views<Matrix>(b.hidden), y.view());
    backend().ExpertBackward(b.experts, s.hidden.empty() ? x.view() : ConstMatrix(),
                             dy.view(), gate.data(), Views<ConstMatrix>(b.hidden),
                             dgate.data(), Views<Matrix>(b.dhidden), dx.view());
    const HostMatrix got_y = y.Get(), got_dgate = dgate.Get(), got_dx = dx.Get();
    const std::vector<HostMatrix> hidden = GetAll(b.hidden), dhidden = GetAll(b.dhidden);
    const size_t depth = s.hidden.size();
    for (size_t e = 0; e < s.rows.size(); ++e) {
      for (int64_t r = b.begins[e]; r < b.begins[e] + s.rows[e]; ++r) {
        // The sign of a sum near zero may differ from the device's.
        const auto relu = [&](size_t layer, Row* values) {
          for (size_t j = 0; j < values->size(); ++j) {
            if (hidden[layer](r, j) <= 0) (*values)[j] = 0;
          }
        };
        Row in = RowOf(b.x, r);
        for (size_t i = 0; i < depth; ++i) {
          in = Product(in, b.w[e][i]);
          for (size_t j = 0; j < in.size(); ++j) {
            ASSERT_NEAR(hidden[i](r, j), std::max(in[j], 0.0), 2e-5);
          }
          relu(i, &in);
        }
        ExpectRow(Product(in, b.w[e][depth]), got_y, r, 2e-5);

        Row gradient = ProductTransposed(RowOf(b.dy, r), b.w[e][depth]);
        double dot = 0;
        for (size_t j = 0; j < in.size(); ++j) {
          dot += in[j] * gradient[j];
          gradient[j] *= b.gate(0, r);
        }
        ASSERT_NEAR(got_dgate(0, r), dot, 5e-5 * (1 + std::abs(dot)));
        for (size_t i = depth; i-- > 0;) {
          relu(i, &gradient);
          ExpectRow(gradient, dhidden[i], r, 2e-5);
          gradient = ProductTransposed(gradient, b.w[e][i]);
        }
        ExpectRow(gradient, got_dx, r, 2e-5);
      }
    }
  }
}

// The gate times the output, and its gradient by x, the gate and every matrix, for one expert.
TEST_P(ExpertsTest, GradientsAgreeWithFiniteDifferences) {
  const int64_t p = 4, d = 5;
  for (const Sizes& s : std::vector<Sizes>{{{p}, d, {7}, 0},
                                           {{p}, d, {7, 6}, 0},
                                           {{p}, d, {6, 4, 8, 7}, 0},
                                           {{p}, d, {6}, 0, 9},
                                           {{p}, d, {}, 0, 12}}) {
    const std::vector<int64_t>& widths = s.hidden;
    const int64_t o = s.o();
    SCOPED_TRACE(Describe(s));
    Batch b(backend(), s);
    HostMatrix gated_dy = b.dy;
    for (int64_t r = 0; r < p; ++r) {
      for (int64_t i = 0; i < o; ++i) gated_dy(r, i) *= b.gate(0, r);
    }
    struct Point {
      Row x, gate;
      std::vector<Row> w;
    };
    const auto loss = [&](const Point& at) {
      double sum = 0;
      for (int64_t r = 0; r < p; ++r) {
        Row in(at.x.begin() + r * d, at.x.begin() + (r + 1) * d);
        for (size_t i = 0; i < b.matrices; ++i) {
          Row out(b.w[0][i].cols);
          for (size_t j = 0; j < in.size() * out.size(); ++j) {
            out[j % out.size()] += in[j / out.size()] * at.w[i][j];
          }
          if (i < widths.size()) {
            for (double& value : out) value = std::max(value, 0.0);
          }
          in = out;
        }
        for (int64_t i = 0; i < o; ++i) sum += at.gate[r] * in[i] * b.dy(r, i);
      }
      return sum;
    };
    Point point{Doubles(b.x), Doubles(b.gate), {}};
    for (const HostMatrix& w : b.w[0]) point.w.push_back(Doubles(w));

    const DeviceMatrix x(backend(), b.x), dy(backend(), b.dy), gate(backend(), b.gate);
    const DeviceMatrix device_gated_dy(backend(), gated_dy);
    const DeviceMatrix y(backend(), p, o), dgate(backend(), 1, p), dx(backend(), p, d);
    const std::vector<ConstMatrix> hidden = Views<ConstMatrix>(b.hidden);
    backend().ExpertForward(b.experts, x.view(), Views<Matrix>(b.hidden), y.view());
    backend().ExpertBackward(b.experts, x.view(), dy.view(), gate.data(), hidden,
                             dgate.data(), Views<Matrix>(b.dhidden), dx.view());
    // At a rate of 1 the gradient is what a matrix loses.
    OptimizerStep step;
    step.adam.rate = 1;
    const std::vector<OptimizerStep> steps(b.matrices, step);
    ExpertUpdate update;
    update.expert = b.experts[0];
    update.steps = steps;
    backend().ExpertUpdates({&update, 1}, x.view(), hidden, Views<ConstMatrix>(b.dhidden),
                            device_gated_dy.view());

    const auto check = [&](Row& part, const HostMatrix& gradient,
                           const std::string& what) {
      const Row original = part;
      const auto at = [&](const Row& moved) {
        part = moved;
        return loss(point);
      };
      HostMatrix values(gradient.rows, gradient.cols);
      std::copy(original.begin(), original.end(), values.values.begin());
      ExpectGradient(at, values, gradient, 1e-5, what);
      part = original;
    };
    check(point.x, dx.Get(), "x");
    check(point.gate, dgate.Get(), "gate");
    for (size_t i = 0; i < b.matrices; ++i) {
      HostMatrix gradient = b.w[0][i];
      const HostMatrix after = b.device_weights[i].Get();
      for (size_t j = 0; j < gradient.values.size(); ++j) {
        gradient.values[j] -= after.values[j];
      }
      check(point.w[i], gradient, "w" + std::to_string(i + 1));
    }
  }
}

struct Variant {
  OptimizerStep::Kind kind;
  SecondMoment second_moment;
  float beta1;
};

constexpr OptimizerStep::Kind kAdam = OptimizerStep::Kind::kAdam;
const Variant kVariants[] = {{OptimizerStep::Kind::kSgd, SecondMoment::kFull, 0.9f},
                             {kAdam, SecondMoment::kFull, 0.9f},
                             {kAdam, SecondMoment::kFull, 0},
                             {kAdam, SecondMoment::kFactored, 0},
                             {kAdam, SecondMoment::kFactored, 0.9f},
                             {kAdam, SecondMoment::kPerRow, 0}};

// The steps of an update number 3 with the gradient g [rows, cols], when the first moment was 0 and
// the second 0.5, at a rate of 0.1.
Row Steps(const Variant& variant, const Row& g, int64_t rows, int64_t cols) {
  const double beta1 = variant.beta1, beta2 = 0.999;
  Row row(rows, beta2 * 0.5), col(cols, beta2 * 0.5), steps;
  for (size_t i = 0; i < g.size(); ++i) {
    const double square = (1 - beta2) * g[i] * g[i];
    row[i / cols] += square / static_cast<double>(cols);
    col[i % cols] += square / static_cast<double>(rows);
  }
  double mean = 0;
  for (double value : row) mean += value / static_cast<double>(rows);
  for (size_t i = 0; i < g.size(); ++i) {
    double second = beta2 * 0.5 + (1 - beta2) * g[i] * g[i];
    if (variant.second_moment == SecondMoment::kPerRow) second = row[i / cols];
    if (variant.second_moment == SecondMoment::kFactored) {
      second = row[i / cols] * col[i % cols] / mean;
    }
    const double first = (1 - beta1) * g[i] / (1 - std::pow(beta1, 3));
    const double root = std::sqrt(second / (1 - std::pow(beta2, 3))) + 1e-8;
    steps.push_back(0.1 * (variant.kind == kAdam ? first / root : g[i]));
  }
  return steps;
}

int64_t SecondMomentSize(SecondMoment kind, int64_t rows, int64_t cols) {
  return kind == SecondMoment::kFull       ? rows * cols
         : kind == SecondMoment::kFactored ? rows + cols
                                           : rows;
}

TEST_P(ExpertsTest, UpdatesAndSquareSums) {
  for (const Sizes& s : kSizes) {
    for (const Variant& variant : kVariants) {
      SCOPED_TRACE(Describe(s));
      Batch b(backend(), s);
      Random random(2);
      std::vector<HostMatrix> left = {b.x}, right;
      b.hidden.clear();
      b.dhidden.clear();
      for (int64_t width : s.hidden) {
        left.push_back(random.Normal(b.total, width));
        right.push_back(random.Normal(b.total, width));
        b.hidden.emplace_back(backend(), left.back(), s.gap);
        b.dhidden.emplace_back(backend(), right.back(), s.gap);
      }
      right.push_back(b.dy);
      const DeviceMatrix dx(backend(), b.x, s.gap), ddy(backend(), b.dy, s.gap);
      const bool has_first = variant.kind == kAdam && variant.beta1 > 0;
      std::vector<DeviceMatrix> m, v;
      std::vector<float*> first, second;
      for (const std::vector<HostMatrix>& of_expert : b.w) {
        for (const HostMatrix& w : of_expert) {
          m.emplace_back(backend(), w.rows, w.cols);
          first.push_back(m.back().data());
          HostMatrix moment(1, SecondMomentSize(variant.second_moment, w.rows, w.cols));
          std::fill(moment.values.begin(), moment.values.end(), 0.5f);
          second.push_back(v.emplace_back(backend(), moment).data());
        }
      }
      OptimizerStep step;
      step.kind = variant.kind;
      step.second_moment = variant.second_moment;
      step.adam.rate = 0.1f;
      step.adam.beta1 = variant.beta1;
      step.adam.count = 3;
      step.gradient_scale = 0.5f;
      const std::vector<OptimizerStep> steps(b.matrices, step);
      std::vector<ExpertUpdate> updates;
      for (size_t e = 0; e < s.rows.size(); ++e) {
        ExpertUpdate update;
        update.expert = b.experts[e];
        if (has_first) update.m = std::span(first).subspan(e * b.matrices, b.matrices);
        update.v = std::span(second).subspan(e * b.matrices, b.matrices);
        update.steps = steps;
        updates.push_back(update);
      }
      const std::vector<ConstMatrix> hidden = Views<ConstMatrix>(b.hidden);
      const std::vector<ConstMatrix> dhidden = Views<ConstMatrix>(b.dhidden);
      std::vector<double> sums(b.matrices * s.rows.size(), NAN);
      backend().ExpertSquareSums(b.experts, dx.view(), hidden, dhidden, ddy.view(), sums);
      backend().ExpertUpdates(updates, dx.view(), hidden, dhidden, ddy.view());
      for (size_t e = 0; e < s.rows.size(); ++e) {
        for (size_t i = 0; i < b.matrices; ++i) {
          const HostMatrix& before = b.w[e][i];
          const HostMatrix after = b.device_weights[e * b.matrices + i].Get();
          double square = 0;
          Row gradient;
          for (int64_t row = 0; row < before.rows; ++row) {
            for (int64_t col = 0; col < before.cols; ++col) {
              double g = 0;
              for (int64_t r = b.begins[e]; r < b.begins[e] + s.rows[e]; ++r) {
                g += static_cast<double>(left[i](r, row)) * right[i](r, col);
              }
              square += g * g;
              gradient.push_back(0.5 * g);
            }
          }
          const Row moved = Steps(variant, gradient, before.rows, before.cols);
          for (size_t j = 0; j < moved.size(); ++j) {
            const double by = s.rows[e] == 0 ? 0 : moved[j];
            ASSERT_NEAR(after.values[j], before.values[j] - by,
                        3e-5 * (1 + std::abs(by)));
          }
          ExpectNear(square, sums[e * b.matrices + i], 1e-5);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, ExpertsTest, testing::ValuesIn(Devices()), DeviceName);

}  // namespace
}  // namespace moe
