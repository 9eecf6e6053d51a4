#include "common/kernels/cpu/gating.h"

#include <algorithm>
#include <numeric>

#include "common/kernels/cpu/context.h"
#include "common/kernels/cpu/thread_pool.h"
#include "common/kernels/cpu/top_k.h"
#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using GatingTest = KernelTest;

double Softplus(double x) {
  return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
}

// Gating of T tokens by the formulas, in float64.
struct Reference {
  Reference(const std::vector<double>& clean, const std::vector<double>& raw,
            const std::vector<double>& noise, int64_t tokens, int64_t n, int64_t k,
            bool with_noise)
      : gates(tokens * n), probability(tokens * n), importance(n), load(n) {
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<double> h(n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = t * n + i;
        h[i] = clean[at] + (with_noise ? noise[at] * Softplus(raw[at]) : 0);
      }
      std::vector<int32_t> order(n);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return h[a] > h[b]; });
      threshold.push_back(order[k - 1]);
      threshold.push_back(k < n ? order[k] : -1);
      double sum = 0;
      for (int64_t j = 0; j < k; ++j) sum += std::exp(h[order[j]] - h[order[0]]);
      for (int64_t j = 0; j < k; ++j) {
        gates[t * n + order[j]] = std::exp(h[order[j]] - h[order[0]]) / sum;
      }
      std::vector<int32_t> chosen(order.begin(), order.begin() + k);
      std::sort(chosen.begin(), chosen.end());
      expert.insert(expert.end(), chosen.begin(), chosen.end());
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = t * n + i;
        importance[i] += gates[at];
        const bool in = std::find(chosen.begin(), chosen.end(), i) != chosen.end();
        if (!with_noise || k == n) {
          probability[at] = in;
        } else {
          std::vector<double> others(h);
          others.erase(others.begin() + i);
          std::nth_element(others.begin(), others.begin() + k - 1, others.end(),
                           std::greater<>());
          const double z = (clean[at] - others[k - 1]) / Softplus(raw[at]);
          probability[at] = 0.5 * std::erfc(-z / std::sqrt(2.0));
        }
        load[i] += probability[at];
      }
    }
  }

  std::vector<double> gates;        // [T, n]
  std::vector<double> probability;  // [T, n]
  std::vector<double> importance, load;
  std::vector<int32_t> expert, threshold;
};

// The arrays of a GateBatch.
struct Gate {
  Gate(Backend& backend, const HostMatrix& clean_values, const HostMatrix& raw_values,
       int32_t k, bool with_noise, int64_t gap)
      : tokens(clean_values.rows),
        n(clean_values.cols),
        clean(backend, clean_values, gap),
        raw(backend, raw_values, gap),
        noise(backend, tokens, n, gap),
        gate(backend, tokens * k),
        expert(backend, tokens * k),
        threshold(backend, tokens * 2),
        importance(backend, n),
        load(backend, n) {
    batch.clean = clean.view();
    if (with_noise) {
      batch.raw = raw.view();
      batch.noise = noise.view();
    }
    batch.k = k;
    batch.with_noise = with_noise;
    batch.key = {21, 22};
    batch.expert = expert.data();
    batch.gate = gate.data();
    batch.threshold = threshold.data();
    batch.importance = importance.data();
    batch.load = load.data();
  }

  int64_t tokens, n;
  DeviceMatrix clean, raw, noise;
  Array<float> gate;
  Array<int32_t> expert, threshold;
  Array<double> importance, load;
  GateBatch batch;
};

struct Case {
  int64_t tokens, n;
  int32_t k;
  bool with_noise;
  int64_t gap;
};
const Case kCases[] = {{1, 2, 1, true, 0},   {3, 1, 1, true, 0},    {5, 4, 4, true, 0},
                       {5, 4, 2, false, 3},  {7, 9, 3, true, 3},    {40, 33, 4, true, 1},
                       {6, 70, 17, true, 0}, {6, 70, 17, false, 0}, {70, 16, 2, true, 0}};

std::string Name(const Case& s) {
  return std::to_string(s.tokens) + " tokens, " + std::to_string(s.n) + " experts, k " +
         std::to_string(s.k) + ", noise " + std::to_string(s.with_noise);
}

TEST_P(GatingTest, ForwardAgreesWithTheFormulas) {
  for (const Case& s : kCases) {
    SCOPED_TRACE(Name(s));
    Random random;
    const HostMatrix clean = random.Normal(s.tokens, s.n),
                     raw = random.Normal(s.tokens, s.n);
    Gate gate(backend(), clean, raw, s.k, s.with_noise, s.gap);
    backend().NoisyTopKForward(gate.batch);
    const HostMatrix noise = gate.noise.Get();
    if (s.with_noise) {
      for (int64_t t = 0; t < s.tokens; ++t) {
        std::vector<float> row(s.n);
        FillNormal(gate.batch.key, t, row);
        for (int64_t i = 0; i < s.n; ++i) ASSERT_NEAR(noise(t, i), row[i], 1e-5);
      }
    }
    const Reference reference(Doubles(clean), Doubles(raw), Doubles(noise), s.tokens, s.n,
                              s.k, s.with_noise);
    const std::vector<int32_t> expert = Download(gate.expert);
    EXPECT_EQ(expert, reference.expert);
    EXPECT_EQ(Download(gate.threshold), reference.threshold);
    const std::vector<float> gates = Download(gate.gate);
    for (size_t i = 0; i < gates.size(); ++i) {
      ASSERT_NEAR(gates[i], reference.gates[i / s.k * s.n + expert[i]], 1e-6);
    }
    const std::vector<double> importance = Download(gate.importance),
                              load = Download(gate.load);
    for (int64_t i = 0; i < s.n; ++i) {
      ExpectNear(reference.importance[i], importance[i], 1e-6);
      ExpectNear(reference.load[i], load[i], 3e-6);
    }
  }
}

TEST_P(GatingTest, BackwardAgreesWithFiniteDifferences) {
  for (Case s : kCases) {
    s.tokens = std::min<int64_t>(s.tokens, 3);
    for (bool use_load : {false, true}) {
      SCOPED_TRACE(Name(s) + (use_load ? ", load" : ""));
      Random random;
      const HostMatrix clean = random.Normal(s.tokens, s.n),
                       raw = random.Normal(s.tokens, s.n);
      const HostMatrix value = random.Normal(s.tokens, s.n);  // dL/dG of every expert
      const HostMatrix dload = random.Normal(1, s.n);
      Gate gate(backend(), clean, raw, s.k, s.with_noise, s.gap);
      backend().NoisyTopKForward(gate.batch);
      const std::vector<int32_t> expert = Download(gate.expert);
      HostMatrix dgate(s.tokens, s.k);
      for (size_t i = 0; i < expert.size(); ++i) {
        dgate.values[i] = value(static_cast<int64_t>(i) / s.k, expert[i]);
      }
      const DeviceMatrix ddgate(backend(), dgate), ddload(backend(), dload);
      const DeviceMatrix dclean(backend(), s.tokens, s.n, s.gap);
      const DeviceMatrix draw(backend(), s.tokens, s.n, s.gap);
      backend().NoisyTopKBackward(gate.batch, ddgate.data(),
                                  use_load ? ddload.data() : nullptr, dclean.view(),
                                  s.with_noise ? draw.view() : Matrix());
      const std::vector<double> noise = Doubles(gate.noise.Get());
      const auto loss = [&](const std::vector<double>& clean_values,
                            const std::vector<double>& raw_values) {
        const Reference forward(clean_values, raw_values, noise, s.tokens, s.n, s.k,
                                s.with_noise);
        double sum = 0;
        for (size_t i = 0; i < forward.gates.size(); ++i) {
          sum += forward.gates[i] * value.values[i];
        }
        if (use_load) {
          for (int64_t i = 0; i < s.n; ++i) sum += forward.load[i] * dload(0, i);
        }
        return sum;
      };
      ExpectGradient([&](const std::vector<double>& x) { return loss(x, Doubles(raw)); },
                     clean, dclean.Get(), 1e-4, "clean");
      if (!s.with_noise) continue;
      ExpectGradient(
          [&](const std::vector<double>& x) { return loss(Doubles(clean), x); }, raw,
          draw.Get(), 1e-4, "raw");
    }
  }
}

TEST_P(GatingTest, TiesGoToTheLowerExpert) {
  const HostMatrix clean(3, 50);
  Gate gate(backend(), clean, clean, 4, false, 0);
  backend().NoisyTopKForward(gate.batch);
  EXPECT_EQ(Download(gate.expert),
            (std::vector<int32_t>{0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3}));
  EXPECT_EQ(Download(gate.threshold), (std::vector<int32_t>{3, 4, 3, 4, 3, 4}));
  for (float g : Download(gate.gate)) EXPECT_EQ(g, 0.25f);
}

TEST_P(GatingTest, VanishingNoiseStaysFinite) {
  Random random;
  const HostMatrix clean = random.Normal(4, 20);
  HostMatrix raw(4, 20);
  std::fill(raw.values.begin(), raw.values.end(), -300.0f);
  Gate gate(backend(), clean, raw, 2, true, 0);
  backend().NoisyTopKForward(gate.batch);
  const DeviceMatrix dgate(backend(), random.Normal(4, 2)),
      dload(backend(), random.Normal(1, 20));
  const DeviceMatrix dclean(backend(), 4, 20), draw(backend(), 4, 20);
  backend().NoisyTopKBackward(gate.batch, dgate.data(), dload.data(), dclean.view(),
                              draw.view());
  EXPECT_TRUE(backend().AllFinite(dclean.view()));
  EXPECT_TRUE(backend().AllFinite(draw.view()));
  double total = 0;
  for (double x : Download(gate.load)) total += x;
  EXPECT_NEAR(total, 8, 1e-6);
}

// The rows of a server's batch come from anywhere in the micro-batches of the replicas.
TEST_P(GatingTest, DrawsOfNamedRows) {
  Random random;
  const int64_t n = 9;
  const HostMatrix clean = random.Normal(40, n), raw = random.Normal(40, n);
  Gate whole(backend(), clean, raw, 3, true, 0);
  backend().NoisyTopKForward(whole.batch);

  const std::vector<int32_t> row = {2, 3, 17, 39};
  HostMatrix some_clean(4, n), some_raw(4, n);
  for (int64_t t = 0; t < 4; ++t) {
    for (int64_t i = 0; i < n; ++i) {
      some_clean(t, i) = clean(row[t], i);
      some_raw(t, i) = raw(row[t], i);
    }
  }
  Gate some(backend(), some_clean, some_raw, 3, true, 2);
  some.batch.draw_row = row;
  backend().NoisyTopKForward(some.batch);
  const HostMatrix all = whole.noise.Get(), drawn = some.noise.Get();
  const std::vector<int32_t> expert = Download(whole.expert),
                             some_expert = Download(some.expert);
  const std::vector<float> gate = Download(whole.gate), some_gate = Download(some.gate);
  for (int64_t t = 0; t < 4; ++t) {
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(drawn(t, i), all(row[t], i));
    for (int64_t j = 0; j < 3; ++j) {
      EXPECT_EQ(some_expert[t * 3 + j], expert[row[t] * 3 + j]);
      EXPECT_EQ(some_gate[t * 3 + j], gate[row[t] * 3 + j]);
    }
  }
}

TEST_P(GatingTest, NoTokens) {
  const HostMatrix none(0, 6);
  Gate gate(backend(), none, none, 2, true, 0);
  backend().NoisyTopKForward(gate.batch);
  for (double x : Download(gate.load)) EXPECT_EQ(x, 0);
}

INSTANTIATE_TEST_SUITE_P(Devices, GatingTest, testing::ValuesIn(Devices()), DeviceName);

// Three examples computed by hand from eq. 3-10.
TEST(CpuGating, GoldenVector) {
  std::string error;
  const std::unique_ptr<Backend> backend = MakeCpuBackend(1, &error);
  ASSERT_NE(backend, nullptr) << error;
  HostMatrix clean(3, 4), raw(3, 4), noise(3, 4);
  clean.values = {1, .5f, -.5f, 0, .2f, -.3f, .8f, .1f, -1, .4f, .3f, .9f};
  raw.values = {0, .5f, -.5f, 1, 0, 0, 0, 0, -1, 1, .2f, -.2f};
  noise.values = {.1f, -.4f, 1.2f, .3f, -.5f, .7f, .2f, -1, .6f, -.2f, .9f, -.1f};
  Gate gate(*backend, clean, raw, 2, true, 0);
  const DeviceMatrix draws(*backend, noise);
  gate.batch.noise = draws.view();
  cpu::ThreadPool pool(1);
  cpu::ScratchPool scratch;
  cpu::TopKForwardWithNoise({pool, scratch}, gate.batch);
  EXPECT_EQ(Download(gate.expert), (std::vector<int32_t>{0, 3, 1, 2, 2, 3}));
  const double gates[] = {0.662697, 0.337303, 0.320075, 0.679925, 0.544417, 0.455583};
  const std::vector<float> got = Download(gate.gate);
  for (int i = 0; i < 6; ++i) EXPECT_NEAR(got[i], gates[i], 5e-6);
  const double importance[] = {0.662697, 0.320075, 1.224342, 0.792886};
  const double load[] = {1.408851, 1.324490, 1.524377, 1.816449};
  const std::vector<double> got_importance = Download(gate.importance);
  const std::vector<double> got_load = Download(gate.load);
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(got_importance[i], importance[i], 5e-6);
    EXPECT_NEAR(got_load[i], load[i], 5e-6);
  }
}

TEST(CpuGating, TopK) {
  Random random;
  for (int64_t n : {1, 8, 9, 100, 4096}) {
    for (int64_t k : {int64_t{1}, std::min<int64_t>(5, n), std::min<int64_t>(60, n)}) {
      HostMatrix x = random.Normal(1, n);
      for (float& v : x.values) v = std::round(v * 8);  // many ties
      std::vector<int32_t> order(n), best(k);
      std::vector<float> value(k);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return x(0, a) > x(0, b); });
      cpu::TopK(x.values.data(), n, k, best.data(), value.data());
      EXPECT_TRUE(std::equal(best.begin(), best.end(), order.begin())) << n << ", " << k;
    }
  }
}

}  // namespace
}  // namespace moe
