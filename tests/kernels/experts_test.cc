#include <algorithm>

#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using ExpertsTest = KernelTest;

struct Sizes {
  std::vector<int64_t> rows;  // of each expert
  int64_t d, h, gap;
};

// The experts' weights and the rows that they work on.
struct Batch {
  Batch(Backend& backend, const Sizes& s) : x(0, 0), dy(0, 0), gate(0, 0) {
    // The experts' rows lie in the batch in reverse order, so that order in memory plays no part.
    for (int64_t rows : s.rows) total += rows;
    Random random;
    x = random.Normal(total, s.d);
    dy = random.Normal(total, s.d);
    gate = random.Normal(1, total);
    int64_t end = total;
    for (int64_t rows : s.rows) {
      w1.push_back(random.Normal(s.d, s.h, 0.3f));
      w2.push_back(random.Normal(s.h, s.d, 0.3f));
      device_weights.emplace_back(backend, w1.back());
      device_weights.emplace_back(backend, w2.back());
      end -= rows;
      begins.push_back(end);
    }
    for (size_t e = 0; e < s.rows.size(); ++e) {
      experts.push_back({device_weights[2 * e].data(), device_weights[2 * e + 1].data(),
                         begins[e], s.rows[e]});
    }
  }

  int64_t total = 0;
  HostMatrix x, dy, gate;
  std::vector<HostMatrix> w1, w2;
  std::vector<int64_t> begins;
  std::vector<DeviceMatrix> device_weights;
  std::vector<ExpertRows> experts;
};

const Sizes kSizes[] = {
    {{1}, 1, 1, 0},         {{7}, 5, 33, 0},   {{3, 0, 1, 9}, 33, 20, 3},
    {{2, 5, 8}, 64, 96, 1}, {{0, 0}, 8, 8, 0}, {{1200, 3}, 9, 17, 0},
    {{5, 40}, 270, 300, 2}};

TEST_P(ExpertsTest, ForwardAndBackward) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(testing::Message()
                 << s.rows.size() << " experts, d " << s.d << ", h " << s.h);
    Batch b(backend(), s);
    const DeviceMatrix x(backend(), b.x, s.gap), dy(backend(), b.dy, s.gap);
    const DeviceMatrix gate(backend(), b.gate);
    const DeviceMatrix hidden(backend(), b.total, s.h, s.gap),
        y(backend(), b.total, s.d, s.gap);
    const DeviceMatrix dgate(backend(), 1, b.total),
        dhidden(backend(), b.total, s.h, s.gap);
    const DeviceMatrix dx(backend(), b.total, s.d, s.gap);
    backend().ExpertForward(b.experts, x.view(), hidden.view(), y.view());
    backend().ExpertBackward(b.experts, dy.view(), gate.data(), hidden.view(),
                             dgate.data(), dhidden.view(), dx.view());
    const HostMatrix got_hidden = hidden.Get(), got_y = y.Get(), got_dgate = dgate.Get();
    const HostMatrix got_dhidden = dhidden.Get(), got_dx = dx.Get();
    for (size_t e = 0; e < s.rows.size(); ++e) {
      for (int64_t r = b.begins[e]; r < b.begins[e] + s.rows[e]; ++r) {
        std::vector<double> a(s.h), u(s.h), out(s.d), back(s.d);
        double dot = 0;
        for (int64_t j = 0; j < s.h; ++j) {
          for (int64_t i = 0; i < s.d; ++i) {
            a[j] += static_cast<double>(b.x(r, i)) * b.w1[e](i, j);
            u[j] += static_cast<double>(b.dy(r, i)) * b.w2[e](j, i);
          }
          // The sign of a sum near zero may differ from the device's.
          const bool active = got_hidden(r, j) > 0;
          ASSERT_NEAR(got_hidden(r, j), std::max(a[j], 0.0), 2e-5);
          if (!active) a[j] = 0;
          dot += a[j] * u[j];
          u[j] = active ? b.gate(0, r) * u[j] : 0;
          ASSERT_NEAR(got_dhidden(r, j), u[j], 2e-5 * (1 + std::abs(u[j])));
          for (int64_t i = 0; i < s.d; ++i) {
            out[i] += a[j] * b.w2[e](j, i);
            back[i] += u[j] * b.w1[e](i, j);
          }
        }
        ASSERT_NEAR(got_dgate(0, r), dot, 2e-4 * (1 + std::abs(dot)));
        for (int64_t i = 0; i < s.d; ++i) {
          ASSERT_NEAR(got_y(r, i), out[i], 1e-4 * (1 + std::abs(out[i])));
          ASSERT_NEAR(got_dx(r, i), back[i], 1e-4 * (1 + std::abs(back[i])));
        }
      }
    }
  }
}

// The gate times the output, and its gradient by x and the gate, for one expert.
TEST_P(ExpertsTest, BackwardAgreesWithFiniteDifferences) {
  const int64_t p = 4, d = 5, h = 7;
  Batch b(backend(), {{p}, d, h, 0});
  const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gate) {
    double sum = 0;
    for (int64_t r = 0; r < p; ++r) {
      for (int64_t j = 0; j < h; ++j) {
        double a = 0;
        for (int64_t i = 0; i < d; ++i) a += x[r * d + i] * b.w1[0](i, j);
        if (a <= 0) continue;
        for (int64_t i = 0; i < d; ++i) sum += gate[r] * a * b.w2[0](j, i) * b.dy(r, i);
      }
    }
    return sum;
  };
  const DeviceMatrix x(backend(), b.x), dy(backend(), b.dy), gate(backend(), b.gate);
  const DeviceMatrix hidden(backend(), p, h), y(backend(), p, d), dgate(backend(), 1, p);
  const DeviceMatrix dhidden(backend(), p, h), dx(backend(), p, d);
  backend().ExpertForward(b.experts, x.view(), hidden.view(), y.view());
  backend().ExpertBackward(b.experts, dy.view(), gate.data(), hidden.view(), dgate.data(),
                           dhidden.view(), dx.view());
  ExpectGradient([&](const auto& v) { return loss(v, Doubles(b.gate)); }, b.x, dx.Get(),
                 1e-5, "x");
  ExpectGradient([&](const auto& v) { return loss(Doubles(b.x), v); }, b.gate,
                 dgate.Get(), 1e-5, "gate");
}

TEST_P(ExpertsTest, UpdatesAndSquareSums) {
  for (const Sizes& s : kSizes) {
    for (OptimizerStep::Kind kind :
         {OptimizerStep::Kind::kSgd, OptimizerStep::Kind::kAdam}) {
      SCOPED_TRACE(testing::Message()
                   << s.rows.size() << " experts, d " << s.d << ", h " << s.h);
      Batch b(backend(), s);
      Random random(2);
      const HostMatrix hidden = random.Normal(b.total, s.h),
                       dhidden = random.Normal(b.total, s.h);
      const DeviceMatrix dx(backend(), b.x, s.gap), ddy(backend(), b.dy, s.gap);
      const DeviceMatrix dh(backend(), hidden, s.gap), ddh(backend(), dhidden, s.gap);
      std::vector<DeviceMatrix> m, v;
      std::vector<ExpertUpdate> updates;
      for (size_t e = 0; e < s.rows.size(); ++e) {
        for (int which : {0, 1}) {
          HostMatrix moment(which == 0 ? s.d : s.h, which == 0 ? s.h : s.d);
          m.emplace_back(backend(), moment);
          std::fill(moment.values.begin(), moment.values.end(), 0.5f);
          v.emplace_back(backend(), moment);
        }
        ExpertUpdate update;
        update.expert = b.experts[e];
        update.m1 = m[2 * e].data();
        update.v1 = v[2 * e].data();
        update.m2 = m[2 * e + 1].data();
        update.v2 = v[2 * e + 1].data();
        update.step.kind = kind;
        update.step.adam.rate = 0.1f;
        update.step.adam.count = 3;
        update.step.gradient_scale = 0.5f;
        updates.push_back(update);
      }
      std::vector<double> sums(2 * s.rows.size(), NAN);
      backend().ExpertSquareSums(b.experts, dx.view(), dh.view(), ddh.view(), ddy.view(),
                                 sums);
      backend().ExpertUpdates(updates, dx.view(), dh.view(), ddh.view(), ddy.view());
      for (size_t e = 0; e < s.rows.size(); ++e) {
        for (int which : {0, 1}) {
          const HostMatrix& left = which == 0 ? b.x : hidden;
          const HostMatrix& right = which == 0 ? dhidden : b.dy;
          const HostMatrix& before = which == 0 ? b.w1[e] : b.w2[e];
          const HostMatrix after = b.device_weights[2 * e + which].Get();
          double square = 0;
          for (int64_t i = 0; i < before.rows; ++i) {
            for (int64_t j = 0; j < before.cols; ++j) {
              double g = 0;
              for (int64_t r = b.begins[e]; r < b.begins[e] + s.rows[e]; ++r) {
                g += static_cast<double>(left(r, i)) * right(r, j);
              }
              square += g * g;
              g *= 0.5;
              double step = 0.1 * g;
              if (kind == OptimizerStep::Kind::kAdam) {
                const double mean = 0.1 * g / (1 - std::pow(0.9, 3));
                const double v2 =
                    (0.999 * 0.5 + 0.001 * g * g) / (1 - std::pow(0.999, 3));
                step = 0.1 * mean / (std::sqrt(v2) + 1e-8);
              }
              if (s.rows[e] == 0) step = 0;
              ASSERT_NEAR(after(i, j), before(i, j) - step, 3e-5 * (1 + std::abs(step)));
            }
          }
          ExpectNear(square, sums[2 * e + which], 1e-5);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, ExpertsTest, testing::ValuesIn(Devices()), DeviceName);

}  // namespace
}  // namespace moe
