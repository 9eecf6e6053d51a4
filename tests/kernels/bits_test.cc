// Equal bits whatever the number of threads, the strides and the alignment.
#include <algorithm>
#include <cstring>

#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

// The outputs of one operation after another, large enough to be shared among threads.
class Outputs {
 public:
  Outputs(Backend& backend, int64_t gap) : backend_(backend), gap_(gap) {
    Products();
    Sums();
    Rows();
    Elementwise();
    Softmax();
    Gating();
    StrictGating();
    Experts({300});
    Experts({300, 70});
  }

  // Names of the outputs that differ.
  std::string Differences(const Outputs& other) const {
    std::string names;
    for (size_t i = 0; i < all_.size(); ++i) {
      const auto& [name, a] = all_[i];
      const auto& b = other.all_[i].second;
      if (a.size() != b.size() || std::memcmp(a.data(), b.data(), a.size()) != 0) {
        names += name + " ";
      }
    }
    return names;
  }

 private:
  DeviceMatrix Make(int64_t rows, int64_t cols, float scale = 1) {
    return DeviceMatrix(backend_, random_.Normal(rows, cols, scale), gap_);
  }
  template <typename T>
  void Keep(const std::string& name, const std::vector<T>& values) {
    std::vector<char> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    all_.emplace_back(name, std::move(bytes));
  }
  void Keep(const std::string& name, const DeviceMatrix& x) {
    Keep(name, x.Get().values);
  }

  void Products() {
    for (Transpose ta : {Transpose::kNo, Transpose::kYes}) {
      for (Transpose tb : {Transpose::kNo, Transpose::kYes}) {
        const DeviceMatrix a = ta == Transpose::kNo ? Make(300, 130) : Make(130, 300);
        const DeviceMatrix b = tb == Transpose::kNo ? Make(130, 1100) : Make(1100, 130);
        const DeviceMatrix c = Make(300, 1100);
        backend_.Gemm(ta, tb, 1, a.view(), b.view(), 0.5f, c.view());
        Keep("Gemm", c);
      }
    }
  }
  void Sums() {
    const DeviceMatrix x = Make(333, 1001);
    const HostMatrix flat = random_.Normal(1, 300001);
    const DeviceMatrix sums(backend_, 1, 1001), vector(backend_, flat, gap_);
    backend_.AddColumnSums(x.view(), sums.data());
    Keep("AddColumnSums", sums);
    Keep("SquareSum", std::vector<double>{backend_.SquareSum(flat.cols, vector.data())});
  }
  void Rows() {
    const DeviceMatrix x = Make(500, 200), out = Make(40, 200), combined = Make(250, 200);
    backend_.ScatterAddRows(x.view(), random_.Below(40, 500), out.view());
    Keep("ScatterAddRows", out);
    std::vector<int32_t> offset;
    for (int32_t r = 0; r <= 250; ++r) offset.push_back(2 * r);
    const DeviceMatrix weight(backend_, random_.Normal(1, 500));
    backend_.CombineRows(x.view(), offset, random_.Below(500, 500), weight.data(),
                         combined.view());
    Keep("CombineRows", combined);
  }
  void Elementwise() {
    const DeviceMatrix x = Make(257, 301), y = Make(257, 301);
    backend_.SigmoidForward(x.view(), y.view());
    Keep("Sigmoid", y);
    backend_.DropoutForward({5, 6}, 0.3f, x.view(), y.view(), x.view());
    Keep("Dropout", x);
    const DeviceMatrix gates = Make(65, 4 * 203), c_prev = Make(65, 203),
                       c = Make(65, 203);
    const DeviceMatrix tanh_c = Make(65, 203), h = Make(65, 203);
    backend_.LstmCellForward(gates.view(), c_prev.view(), c.view(), tanh_c.view(),
                             h.view());
    Keep("LstmCellForward", h);
    backend_.LstmCellBackward(gates.view(), c_prev.view(), tanh_c.view(), h.view(),
                              c.view(), gates.view());
    Keep("LstmCellBackward", gates);
    const DeviceMatrix g(backend_, random_.Normal(1, 200003), gap_);
    const DeviceMatrix w(backend_, random_.Normal(1, 200003), gap_);
    const DeviceMatrix m(backend_, 1, 200003, gap_), v(backend_, 1, 200003, gap_);
    OptimizerStep step;
    step.kind = OptimizerStep::Kind::kAdam;
    step.adam.rate = 0.1f;
    backend_.OptimizerUpdate(step, g.view(), w.data(), m.data(), v.data());
    Keep("OptimizerUpdate", w);
    const HostMatrix gradient = random_.Normal(700, 530);
    const DeviceMatrix matrix(backend_, gradient);
    for (SecondMoment kind : {SecondMoment::kFactored, SecondMoment::kPerRow}) {
      const DeviceMatrix parameters(backend_, gradient), second(backend_, 1, 700 + 530);
      step.second_moment = kind;
      step.adam.beta1 = 0;
      backend_.OptimizerUpdate(step, matrix.view(), parameters.data(), nullptr,
                               second.data());
      Keep("OptimizerUpdate by means", parameters);
      Keep("means", second);
    }
  }
  void Softmax() {
    const DeviceMatrix logits = Make(100, 3001, 3);
    const std::vector<int32_t> target = random_.Below(3001, 100);
    Keep("loss",
         std::vector<double>{backend_.SoftmaxCrossEntropy(logits.view(), target, 0.1f)});
    Keep("SoftmaxCrossEntropy", logits);
  }
  void Gating() {
    const int64_t tokens = 300, n = 77;
    const int32_t k = 4;
    const DeviceMatrix clean = Make(tokens, n), raw = Make(tokens, n),
                       noise = Make(tokens, n);
    const Array<int32_t> expert(backend_, tokens * k), threshold(backend_, tokens * 2);
    const Array<float> gate(backend_, tokens * k);
    const Array<double> importance(backend_, n), load(backend_, n);
    GateBatch batch;
    batch.clean = clean.view();
    batch.raw = raw.view();
    batch.noise = noise.view();
    batch.k = k;
    batch.with_noise = true;
    batch.expert = expert.data();
    batch.gate = gate.data();
    batch.threshold = threshold.data();
    batch.importance = importance.data();
    batch.load = load.data();
    backend_.NoisyTopKForward(batch);
    Keep("experts", Download(expert));
    Keep("gates", Download(gate));
    Keep("importance", Download(importance));
    Keep("load", Download(load));
    const DeviceMatrix dgate(backend_, random_.Normal(tokens, k));
    const DeviceMatrix dload(backend_, random_.Normal(1, n));
    const DeviceMatrix dclean = Make(tokens, n), draw = Make(tokens, n);
    backend_.NoisyTopKBackward(batch, dgate.data(), dload.data(), dclean.view(),
                               draw.view());
    Keep("dclean", dclean);
    Keep("draw", draw);
  }
  void StrictGating() {
    const int64_t tokens = 600, n = 300;
    const DeviceMatrix x = Make(tokens, n), dx = Make(tokens, n);
    const DeviceMatrix threshold(backend_, random_.Normal(1, n));
    backend_.LogSoftmax(x.view());
    Keep("LogSoftmax", x);
    const Array<uint8_t> chosen(backend_, tokens * 38);
    const Array<int32_t> offset(backend_, tokens + 1), count(backend_, n);
    backend_.ChooseLargest(x.view(), 100, {7, 8}, chosen.data());
    Keep("ChooseLargest", Download(chosen));
    backend_.CountAbove(x.view(), threshold.data(), count.data());
    Keep("CountAbove", Download(count));
    const int64_t pairs = backend_.CountChosen(tokens, n, chosen.data(), offset.data());
    const Array<int32_t> expert(backend_, pairs);
    const Array<float> gate(backend_, pairs);
    const DeviceMatrix dgate(backend_, random_.Normal(1, pairs));
    backend_.ChosenSoftmaxForward(x.view(), chosen.data(), offset.data(), expert.data(),
                                  gate.data());
    Keep("ChosenSoftmaxForward", Download(gate));
    backend_.ChosenSoftmaxBackward(offset.data(), expert.data(), gate.data(),
                                   dgate.data(), dx.view());
    Keep("ChosenSoftmaxBackward", dx);
    backend_.ChooseAbove(x.view(), threshold.data(), random_.Below(9, tokens),
                         chosen.data());
    Keep("ChooseAbove", Download(chosen));
  }
  void Experts(const std::vector<int64_t>& hidden_widths) {
    const int64_t d = 130;
    std::vector<int64_t> widths = {d};
    widths.insert(widths.end(), hidden_widths.begin(), hidden_widths.end());
    widths.push_back(d);
    const size_t matrices = widths.size() - 1;
    const std::vector<int64_t> expert_rows = {1, 4, 0, 9, 33, 100, 257, 700};
    std::vector<DeviceMatrix> weights;
    std::vector<float*> pointers;
    for (size_t e = 0; e < expert_rows.size(); ++e) {
      for (size_t i = 0; i < matrices; ++i) {
        weights.emplace_back(backend_, random_.Normal(widths[i], widths[i + 1], 0.1f));
        pointers.push_back(weights.back().data());
      }
    }
    std::vector<ExpertRows> experts;
    std::vector<ExpertUpdate> updates;
    std::vector<OptimizerStep> steps(matrices);
    for (OptimizerStep& step : steps) step.adam.rate = 0.01f;
    int64_t total = 0;
    for (size_t e = 0; e < expert_rows.size(); ++e) {
      experts.push_back(
          {std::span(pointers).subspan(e * matrices, matrices), total, expert_rows[e]});
      updates.emplace_back().expert = experts.back();
      updates.back().steps = steps;
      total += expert_rows[e];
    }
    const DeviceMatrix x = Make(total, d), y = Make(total, d), dx = Make(total, d);
    std::vector<DeviceMatrix> hidden, dhidden;
    for (int64_t width : hidden_widths) {
      hidden.push_back(Make(total, width));
      dhidden.push_back(Make(total, width));
    }
    const DeviceMatrix gate(backend_, random_.Normal(1, total)),
        dgate(backend_, 1, total);
    backend_.ExpertForward(experts, x.view(), Views<Matrix>(hidden), y.view());
    Keep("ExpertForward", y);
    backend_.ExpertBackward(experts, ConstMatrix(), y.view(), gate.data(),
                            Views<ConstMatrix>(hidden), dgate.data(),
                            Views<Matrix>(dhidden), dx.view());
    Keep("dgate", dgate);
    for (const DeviceMatrix& gradient : dhidden) Keep("dhidden", gradient);
    Keep("ExpertBackward", dx);
    std::vector<double> sums(matrices * experts.size());
    backend_.ExpertSquareSums(experts, x.view(), Views<ConstMatrix>(hidden),
                              Views<ConstMatrix>(dhidden), y.view(), sums);
    Keep("ExpertSquareSums", sums);
    backend_.ExpertUpdates(updates, x.view(), Views<ConstMatrix>(hidden),
                           Views<ConstMatrix>(dhidden), y.view());
    for (const DeviceMatrix& w : weights) Keep("ExpertUpdates", w);

    std::vector<DeviceMatrix> moments;
    std::vector<float*> second;
    for (const DeviceMatrix& w : weights) {
      moments.emplace_back(backend_, 1, w.view().rows + w.view().cols);
      second.push_back(moments.back().data());
    }
    for (OptimizerStep& step : steps) {
      step.kind = OptimizerStep::Kind::kAdam;
      step.adam.beta1 = 0;
      step.second_moment = SecondMoment::kFactored;
    }
    for (size_t e = 0; e < updates.size(); ++e) {
      updates[e].v = std::span(second).subspan(e * matrices, matrices);
    }
    backend_.ExpertUpdates(updates, x.view(), Views<ConstMatrix>(hidden),
                           Views<ConstMatrix>(dhidden), y.view());
    for (const DeviceMatrix& w : weights) Keep("ExpertUpdates by means", w);
    for (const DeviceMatrix& v : moments) Keep("their means", v);
  }

  Backend& backend_;
  const int64_t gap_;
  Random random_;
  std::vector<std::pair<std::string, std::vector<char>>> all_;
};

class BitsTest : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    std::string error;
    if (GetParam().make(1, &error) == nullptr) GTEST_SKIP() << error;
  }
  static std::unique_ptr<Backend> Make(int threads) {
    std::string error;
    return GetParam().make(threads, &error);
  }
};

TEST_P(BitsTest, ThreadsAndStridesDontMatter) {
  const Outputs expected(*Make(1), 0);
  // Elsewhere threads of the host have no part in it, and each run is long.
  const bool all = GetParam().name == "Cpu";
  for (int threads : {1, 2, 3}) {
    for (int64_t gap : {0, 1, 7}) {
      if (!all && threads != 1 + gap % 3) continue;
      EXPECT_EQ(Outputs(*Make(threads), gap).Differences(expected), "")
          << threads << " threads, gap " << gap;
    }
  }
}

TEST_P(BitsTest, AFingerprintIsThatOfTheMachineAlone) {
  const std::string fingerprint = NumericsFingerprint(*Make(1));
  EXPECT_EQ(fingerprint.size(), 16u);
  for (int threads : {1, 2, 3})
    EXPECT_EQ(NumericsFingerprint(*Make(threads)), fingerprint);
}

INSTANTIATE_TEST_SUITE_P(Devices, BitsTest, testing::ValuesIn(Devices()), DeviceName);

}  // namespace
}  // namespace moe
