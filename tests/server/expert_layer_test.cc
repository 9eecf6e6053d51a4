// The experts of a step against plain loops in double.
#include "server/expert_layer.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/kernels/cpu/cpu_backend.h"
#include "tests/server/made_step.h"

namespace moe {
namespace {

using testing::Floats;
using testing::kExperts;
using testing::kGroups;
using testing::kIdleExpert;
using testing::kPerGroup;
using testing::kReplicas;
using testing::kWaves;
using testing::kWidth;
using testing::MadeFrame;

// Counts what arrays take. One thread.
class CountingBackend : public cpu::CpuBackend {
 public:
  CountingBackend() : CpuBackend(1) {}
  void* Allocate(size_t bytes) override {
    void* const memory = CpuBackend::Allocate(bytes);
    sizes_[memory] = static_cast<int64_t>(bytes);
    bytes_ += static_cast<int64_t>(bytes);
    most_ = std::max(most_, bytes_);
    return memory;
  }
  void Free(void* memory) override {
    bytes_ -= sizes_.at(memory);
    sizes_.erase(memory);
    CpuBackend::Free(memory);
  }

  int64_t bytes() const { return bytes_; }
  int64_t most() const { return most_; }
  void ForgetMost() { most_ = bytes_; }

 private:
  std::map<void*, int64_t> sizes_;
  int64_t bytes_ = 0;
  int64_t most_ = 0;
};

constexpr double kTolerance = 2e-5;
constexpr double kRate = 0.1;
constexpr double kScale = 0.5;

// One expert's weights and gradients, as the paper writes them: W_1 [5, h_1], W_2
// [h_1, h_2], ..
struct SlowExpert {
  std::vector<std::vector<double>> w;
  std::vector<std::vector<double>> dw;

  // [0] x, then each hidden layer, then the output.
  std::vector<std::vector<double>> Activations(const float* x) const {
    std::vector<std::vector<double>> all = {std::vector<double>(x, x + kWidth)};
    for (size_t l = 0; l < w.size(); ++l) {
      const std::vector<double>& in = all.back();
      std::vector<double> out(w[l].size() / in.size());
      for (size_t j = 0; j < out.size(); ++j) {
        for (size_t i = 0; i < in.size(); ++i) out[j] += in[i] * w[l][i * out.size() + j];
        if (l + 1 < w.size()) out[j] = std::max(0.0, out[j]);
      }
      all.push_back(out);
    }
    return all;
  }

  void AddForward(const float* x, double gate, double* y) const {
    const std::vector<double> out = Activations(x).back();
    for (int i = 0; i < kWidth; ++i) y[i] += gate * out[i];
  }

  // Returns dL/dgate.
  double AddBackward(const float* x, const float* dy, double gate, double* dx) {
    const std::vector<std::vector<double>> activations = Activations(x);
    double dgate = 0;
    std::vector<double> dout;
    for (int i = 0; i < kWidth; ++i) {
      dgate += dy[i] * activations.back()[i];
      dout.push_back(gate * dy[i]);
    }
    for (size_t l = w.size(); l-- > 0;) {
      const std::vector<double>& in = activations[l];
      std::vector<double> din(in.size());
      for (size_t i = 0; i < in.size(); ++i) {
        for (size_t j = 0; j < dout.size(); ++j) {
          dw[l][i * dout.size() + j] += in[i] * dout[j];
          if (l == 0 || in[i] > 0) din[i] += dout[j] * w[l][i * dout.size() + j];
        }
      }
      dout = din;
    }
    for (int i = 0; i < kWidth; ++i) dx[i] += dout[i];
    return dgate;
  }

  // Adam without a first moment and with a factored second one (appendix D), as the paper
  // writes it; the gradients are used up.
  void UpdateFactored(double rate) {
    ++updates;
    averages.resize(w.size());
    for (size_t l = 0; l < w.size(); ++l) {
      const size_t rows = l == 0 ? kWidth : w[l - 1].size() / averages[l - 1].row.size();
      const size_t cols = w[l].size() / rows;
      std::vector<double>& row = averages[l].row;
      std::vector<double>& col = averages[l].col;
      row.resize(rows);
      col.resize(cols);
      for (double& value : row) value *= kBeta2;
      for (double& value : col) value *= kBeta2;
      for (size_t i = 0; i < w[l].size(); ++i) {
        const double square = (1 - kBeta2) * dw[l][i] * dw[l][i];
        row[i / cols] += square / static_cast<double>(cols);
        col[i % cols] += square / static_cast<double>(rows);
      }
      double mean = 0;
      for (double value : row) mean += value / static_cast<double>(rows);
      const double correction = 1 - std::pow(kBeta2, updates);
      for (size_t i = 0; i < w[l].size() && mean > 0; ++i) {
        const double second = row[i / cols] * col[i % cols] / mean / correction;
        w[l][i] -= rate * dw[l][i] / (std::sqrt(second) + kEpsilon);
      }
      std::fill(dw[l].begin(), dw[l].end(), 0);
    }
  }
  static constexpr double kBeta2 = 0.75;
  static constexpr double kEpsilon = 1e-3;
  int updates = 0;
  struct Averages {
    std::vector<double> row, col;
  };
  std::vector<Averages> averages;

  // w -= step(dw) for every element.
  template <typename Step>
  void Update(const Step& step) {
    for (size_t l = 0; l < w.size(); ++l) {
      for (size_t i = 0; i < w[l].size(); ++i) w[l][i] -= step(dw[l][i]);
    }
  }
};

// The parameter: the experts' hidden layers.
class ExpertLayerTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { Load("adam {}", 1); }

  void Load(const std::string& optimizer, int threads,
            v1::Parameters parameters = v1::PARAMETERS_FLOAT32,
            ExpertShard::Host host = {}) {
    layer_.reset();
    std::string error;
    backend_ = MakeCpuBackend(threads, &error);
    ASSERT_NE(backend_, nullptr) << error;
    LoadShards(optimizer, parameters, host);
  }

  void LoadShards(const std::string& optimizer, v1::Parameters parameters,
                  ExpertShard::Host host) {
    v1::Job job = testing::MadeJob(optimizer, GetParam());
    job.mutable_model()
        ->mutable_layers(testing::kLayer)
        ->mutable_moe()
        ->set_parameters(parameters);
    plan_ = MakeModelPlan(job);
    std::vector<std::unique_ptr<ExpertShard>> shards;
    for (const ShardSpec& spec : plan_.shards) {
      if (spec.kind != ShardKind::kExpert) continue;
      shards.push_back(std::make_unique<ExpertShard>(*backend_, plan_, spec, job, host));
      shards.back()->Initialize();
    }
    layer_ =
        std::make_unique<ExpertLayer>(*backend_, MixturesOf(job)[0], std::move(shards));
    slow_.assign(kExperts, {});
    for (const TensorSpec& tensor : plan_.tensors) {
      for (int e = 0; e < kExperts; ++e) {
        const std::string prefix = "layer1.moe.expert" + std::to_string(e) + ".";
        if (!tensor.name.starts_with(prefix)) continue;
        std::vector<float> values(tensor.size());
        FillInitialValues(job.seed(), tensor, values.data());
        slow_[e].w.emplace_back(values.begin(), values.end());
        slow_[e].dw.emplace_back(values.size());
      }
    }
  }

  std::vector<v1::ForwardReply> Forward(v1::Mode mode, uint64_t step, uint32_t wave) {
    std::vector<std::shared_ptr<const ForwardInput>> inputs;
    for (uint32_t r = 0; r < kReplicas; ++r) {
      const v1::ForwardFrame frame =
          testing::ForwardFrameOf(testing::MakeFrame(step, r, wave), r, mode);
      absl::StatusOr<ForwardInput> input =
          DecodeForward(*backend_, layer_->shape(), mode, frame, Pieces(frame.x()));
      EXPECT_TRUE(input.ok()) << input.status();
      inputs.push_back(std::make_shared<const ForwardInput>(*std::move(input)));
    }
    auto replies = layer_->Forward(mode, step, wave, inputs);
    if (!replies.ok()) {
      ADD_FAILURE() << replies.status();
      return std::vector<v1::ForwardReply>(kReplicas);
    }
    return *std::move(replies);
  }

  std::vector<v1::BackwardReply> Backward(uint64_t step, uint32_t wave) {
    std::vector<std::shared_ptr<const BackwardInput>> inputs;
    for (uint32_t r = 0; r < kReplicas; ++r) {
      const MadeFrame made = testing::MakeFrame(step, r, wave);
      const v1::BackwardFrame frame = testing::BackwardFrameOf(made, r);
      absl::StatusOr<BackwardInput> input = DecodeBackward(
          *backend_, layer_->shape(), made.rows(), frame, Pieces(frame.dy()));
      EXPECT_TRUE(input.ok()) << input.status();
      inputs.push_back(std::make_shared<const BackwardInput>(*std::move(input)));
    }
    return layer_->Backward(wave, inputs);
  }

  void RunStep(uint64_t step) {
    for (uint32_t w = 0; w < kWaves; ++w) Forward(v1::MODE_TRAIN, step, w);
    for (uint32_t w = 0; w < kWaves; ++w) Backward(step, w);
  }

  // Distinct rows of a frame in a group.
  static std::vector<uint32_t> RowsOf(const MadeFrame& frame, int32_t group) {
    std::vector<uint32_t> rows;
    for (const MadeFrame::Pair& pair : frame.PairsOf(group)) {
      if (rows.empty() || rows.back() != pair.row) rows.push_back(pair.row);
    }
    return rows;
  }

  void ExpectRows(const std::map<uint32_t, std::vector<double>>& expected,
                  const std::string& bytes) {
    const std::vector<float> values = Floats(bytes);
    ASSERT_EQ(values.size(), expected.size() * kWidth);
    size_t at = 0;
    for (const auto& [row, wanted] : expected) {
      for (double value : wanted) EXPECT_NEAR(values[at++], value, kTolerance);
    }
  }

  void ExpectForward(const v1::ForwardReply& reply, const MadeFrame& frame) {
    ASSERT_EQ(reply.groups_size(), kGroups);
    for (int32_t g = 0; g < kGroups; ++g) {
      std::map<uint32_t, std::vector<double>> expected;
      for (const MadeFrame::Pair& pair : frame.PairsOf(g)) {
        std::vector<double>& y = expected[pair.row];
        y.resize(kWidth);
        slow_[g * kPerGroup + pair.expert].AddForward(&frame.x[pair.row * kWidth],
                                                      pair.gate, y.data());
      }
      ExpectRows(expected, reply.groups(g).y());
    }
  }

  void ExpectBackward(const v1::BackwardReply& reply, const MadeFrame& frame) {
    ASSERT_EQ(reply.groups_size(), kGroups);
    for (int32_t g = 0; g < kGroups; ++g) {
      std::map<uint32_t, std::vector<double>> expected;
      std::vector<double> dgate;
      for (const MadeFrame::Pair& pair : frame.PairsOf(g)) {
        std::vector<double>& dx = expected[pair.row];
        dx.resize(kWidth);
        dgate.push_back(slow_[g * kPerGroup + pair.expert].AddBackward(
            &frame.x[pair.row * kWidth], &frame.dy[pair.row * kWidth], pair.gate,
            dx.data()));
      }
      ExpectRows(expected, reply.groups(g).dx());
      const std::vector<float> values = Floats(reply.groups(g).dgate());
      ASSERT_EQ(values.size(), dgate.size());
      for (size_t i = 0; i < values.size(); ++i) {
        EXPECT_NEAR(values[i], dgate[i], kTolerance);
      }
    }
  }

  std::map<std::string, std::string> Digests() const {
    std::map<std::string, std::string> digests;
    for (const auto& shard : layer_->shards()) {
      for (const v1::TensorDigest& digest : shard->Digests()) {
        digests[digest.name()] = digest.sha256();
      }
    }
    return digests;
  }

  v1::ExpertStatus StatusOf(int32_t expert) const {
    v1::ShardStatus status;
    layer_->shards()[expert / kPerGroup]->FillStatus(&status);
    return status.experts(expert % kPerGroup);
  }

  std::unique_ptr<Backend> backend_;
  ModelPlan plan_;
  std::unique_ptr<ExpertLayer> layer_;
  std::vector<SlowExpert> slow_;
};

TEST_P(ExpertLayerTest, ForwardIsTheGatedSumOfEachGroup) {
  for (uint32_t w = 0; w < kWaves; ++w) {
    const std::vector<v1::ForwardReply> replies = Forward(v1::MODE_TRAIN, 0, w);
    ASSERT_EQ(replies.size(), kReplicas);
    for (uint32_t r = 0; r < kReplicas; ++r) {
      EXPECT_EQ(replies[r].replica(), r);
      ExpectForward(replies[r], testing::MakeFrame(0, r, w));
    }
  }
}

TEST_P(ExpertLayerTest, TotalsGrowFromWaveToWave) {
  std::vector<double> importance(kExperts);
  std::vector<double> load(kExperts);
  uint64_t tokens = 0;
  for (uint32_t w = 0; w < kWaves; ++w) {
    const std::vector<v1::ForwardReply> replies = Forward(v1::MODE_TRAIN, 0, w);
    for (uint32_t r = 0; r < kReplicas; ++r) {
      const MadeFrame frame = testing::MakeFrame(0, r, w);
      tokens += frame.tokens;
      for (int e = 0; e < kExperts; ++e) {
        importance[e] += frame.importance[e];
        load[e] += frame.load[e];
      }
    }
    for (const v1::ForwardReply& reply : replies) {
      for (int e = 0; e < kExperts; ++e) {
        const v1::GroupOutput& group = reply.groups(e / kPerGroup);
        EXPECT_DOUBLE_EQ(group.importance(e % kPerGroup), importance[e]);
        EXPECT_DOUBLE_EQ(group.load(e % kPerGroup), load[e]);
        EXPECT_EQ(group.tokens(), tokens);
      }
    }
  }
}

TEST_P(ExpertLayerTest, EvaluationKeepsNothingAndHasNoTotals) {
  Forward(v1::MODE_TRAIN, 0, 0);
  const std::vector<v1::ForwardReply> replies = Forward(v1::MODE_EVALUATE, 5, 1);
  for (uint32_t r = 0; r < kReplicas; ++r) {
    ExpectForward(replies[r], testing::MakeFrame(5, r, 1));
    EXPECT_EQ(replies[r].groups(0).importance_size(), 0);
  }
  // The training step goes on as if nothing had been.
  Forward(v1::MODE_TRAIN, 0, 1);
  for (uint32_t w = 0; w < kWaves; ++w) Backward(0, w);
  layer_->Apply(kRate, 1);
  const auto disturbed = Digests();
  Load("adam {}", 1);
  RunStep(0);
  layer_->Apply(kRate, 1);
  EXPECT_EQ(Digests(), disturbed);
}

TEST_P(ExpertLayerTest, BackwardAndSgdUpdateAreExact) {
  Load("sgd {}", 2);
  for (uint32_t w = 0; w < kWaves; ++w) Forward(v1::MODE_TRAIN, 0, w);
  // Layers and waves come back in any order.
  std::map<uint32_t, std::vector<v1::BackwardReply>> replies;
  for (uint32_t w : {1u, 0u}) replies[w] = Backward(0, w);
  for (uint32_t w = 0; w < kWaves; ++w) {
    for (uint32_t r = 0; r < kReplicas; ++r) {
      ExpectBackward(replies[w][r], testing::MakeFrame(0, r, w));
    }
  }

  std::vector<v1::TensorSquareSum> sums;
  layer_->AppendSquareSums(&sums);
  std::map<uint64_t, double> by_tensor;
  for (const v1::TensorSquareSum& sum : sums) by_tensor[sum.tensor()] = sum.sum();
  layer_->Apply(kRate, kScale);

  for (int e = 0; e < kExperts; ++e) {
    const ShardSpec& spec = layer_->shards()[e / kPerGroup]->spec();
    const size_t matrices = slow_[e].w.size();
    for (size_t l = 0; l < matrices; ++l) {
      const int64_t tensor = spec.tensors[matrices * (e % kPerGroup) + l];
      EXPECT_EQ(by_tensor.contains(tensor), e != kIdleExpert) << tensor;
      double expected = 0;
      for (double g : slow_[e].dw[l]) expected += g * g;
      EXPECT_NEAR(by_tensor[tensor], expected, kTolerance);
    }
    slow_[e].Update([](double g) { return kRate * kScale * g; });
  }
  // The next step computes with the new weights.
  const std::vector<v1::ForwardReply> next = Forward(v1::MODE_TRAIN, 1, 0);
  for (uint32_t r = 0; r < kReplicas; ++r) {
    ExpectForward(next[r], testing::MakeFrame(1, r, 0));
  }
}

TEST_P(ExpertLayerTest, AdamCountsTheUpdatesOfEachExpert) {
  RunStep(0);
  layer_->Apply(kRate, 1);
  const auto after = Digests();
  for (int e = 0; e < kExperts; ++e) {
    const std::string name = "layer1.moe.expert" + std::to_string(e) + ".w1";
    EXPECT_EQ(after.contains(name), e != kIdleExpert) << e;
    EXPECT_EQ(StatusOf(e).updates(), e == kIdleExpert ? 0u : 1u) << e;
    EXPECT_EQ(StatusOf(e).last_rows() == 0, e == kIdleExpert) << e;
  }
  // Adam's first update moves every weight that has a gradient by the rate.
  for (uint32_t w = 0; w < kWaves; ++w) {
    for (uint32_t r = 0; r < kReplicas; ++r) {
      const MadeFrame frame = testing::MakeFrame(0, r, w);
      for (const MadeFrame::Pair& pair : frame.pairs) {
        std::vector<double> dx(kWidth);
        slow_[pair.expert].AddBackward(&frame.x[pair.row * kWidth],
                                       &frame.dy[pair.row * kWidth], pair.gate,
                                       dx.data());
      }
    }
  }
  for (SlowExpert& expert : slow_) {
    expert.Update([](double g) { return kRate * g / (std::abs(g) + 1e-8); });
  }
  const std::vector<v1::ForwardReply> next = Forward(v1::MODE_TRAIN, 1, 0);
  for (uint32_t r = 0; r < kReplicas; ++r) {
    ExpectForward(next[r], testing::MakeFrame(1, r, 0));
  }
}

constexpr char kFactored[] =
    "adam {} experts { beta1: 0 beta2: 0.75 epsilon: 1e-3 "
    "second_moment: SECOND_MOMENT_FACTORED }";

TEST_P(ExpertLayerTest, FactoredUpdatesOverSteps) {
  Load(kFactored, 2);
  for (uint64_t step = 0; step < 4; ++step) {
    for (uint32_t w = 0; w < kWaves; ++w) {
      const std::vector<v1::ForwardReply> replies = Forward(v1::MODE_TRAIN, step, w);
      for (uint32_t r = 0; r < kReplicas; ++r) {
        ExpectForward(replies[r], testing::MakeFrame(step, r, w));
      }
    }
    std::vector<bool> has_rows(kExperts);
    for (uint32_t w = 0; w < kWaves; ++w) {
      const std::vector<v1::BackwardReply> replies = Backward(step, w);
      for (uint32_t r = 0; r < kReplicas; ++r) {
        const MadeFrame frame = testing::MakeFrame(step, r, w);
        ExpectBackward(replies[r], frame);
        for (const MadeFrame::Pair& pair : frame.pairs) has_rows[pair.expert] = true;
      }
    }
    layer_->Apply(0.01, 1);
    for (int e = 0; e < kExperts; ++e) {
      if (has_rows[e]) slow_[e].UpdateFactored(0.01);
      EXPECT_EQ(StatusOf(e).updates(), static_cast<uint64_t>(slow_[e].updates));
    }
  }
}

// Parameters of 8 bits stay near those of 24.
TEST_P(ExpertLayerTest, Bfloat16FollowsFloat) {
  std::vector<std::vector<float>> outputs;
  for (v1::Parameters parameters : {v1::PARAMETERS_FLOAT32, v1::PARAMETERS_BFLOAT16}) {
    Load(kFactored, 2, parameters);
    for (uint64_t step = 0; step < 4; ++step) {
      RunStep(step);
      layer_->Apply(0.01, 1);
    }
    outputs.push_back(Floats(Forward(v1::MODE_EVALUATE, 4, 0)[0].groups(0).y()));
  }
  ASSERT_FALSE(outputs[0].empty());
  double square = 0, difference = 0;
  for (size_t i = 0; i < outputs[0].size(); ++i) {
    square += outputs[0][i] * outputs[0][i];
    difference += std::pow(outputs[0][i] - outputs[1][i], 2);
  }
  EXPECT_GT(difference, 0);
  EXPECT_LT(std::sqrt(difference / square), 0.05);
}

TEST_P(ExpertLayerTest, ThreadsChangeNoBit) {
  for (const char* optimizer : {"adam {}", kFactored}) {
    for (v1::Parameters parameters : {v1::PARAMETERS_FLOAT32, v1::PARAMETERS_BFLOAT16}) {
      std::vector<std::map<std::string, std::string>> digests;
      for (int threads : {1, 2, 3}) {
        Load(optimizer, threads, parameters);
        for (uint64_t step = 0; step < 3; ++step) {
          RunStep(step);
          layer_->Apply(kRate, 1);
        }
        digests.push_back(Digests());
      }
      EXPECT_EQ(digests[0], digests[1]);
      EXPECT_EQ(digests[0], digests[2]);
    }
  }
}

// ---- where there is less memory

// Of an evaluation after some steps, and of the parameters.
TEST_P(ExpertLayerTest, LessMemoryChangesNoBit) {
  struct Result {
    std::map<std::string, std::string> digests;
    std::string y;
    bool operator==(const Result&) const = default;
  };
  const auto run = [&](const char* optimizer, v1::Parameters parameters,
                       ExpertShard::Host host) {
    Load(optimizer, 2, parameters, host);
    // Before and after experts have memory.
    Forward(v1::MODE_EVALUATE, 0, 0);
    for (uint64_t step = 0; step < 3; ++step) {
      RunStep(step);
      std::vector<v1::TensorSquareSum> sums;
      if (step == 1) layer_->AppendSquareSums(&sums);
      layer_->Apply(kRate, 1);
    }
    return Result{Digests(), Forward(v1::MODE_EVALUATE, 3, 0)[0].groups(0).y()};
  };
  for (const char* optimizer : {"adam {}", kFactored}) {
    for (v1::Parameters parameters : {v1::PARAMETERS_FLOAT32, v1::PARAMETERS_BFLOAT16}) {
      const Result all = run(optimizer, parameters, {});
      const auto tier =
          CapacityTier::Create({.folder = ::testing::TempDir(), .disk_bytes = 1 << 20},
                               1 << 20)
              .value();
      EXPECT_EQ(run(optimizer, parameters, {.tier = tier.get()}), all);
      // A byte: nothing is kept. 300: some waves' of some shards are.
      for (int64_t budget : {1, 300}) {
        ActivationBudget activations(budget);
        EXPECT_EQ(run(optimizer, parameters, {.activations = &activations}), all);
        layer_.reset();
        EXPECT_TRUE(activations.Take(budget));
      }
    }
  }
}

TEST_P(ExpertLayerTest, ATierTakesDiskForWhatIsTrained) {
  const auto tier = CapacityTier::Create(
                        {.folder = ::testing::TempDir(), .disk_bytes = 1 << 20}, 1 << 20)
                        .value();
  Load("adam {}", 1, v1::PARAMETERS_FLOAT32, {.tier = tier.get()});
  const std::vector<v1::ForwardReply> replies = Forward(v1::MODE_EVALUATE, 0, 0);
  for (uint32_t r = 0; r < kReplicas; ++r) {
    ExpectForward(replies[r], testing::MakeFrame(0, r, 0));
  }
  EXPECT_EQ(tier->allocated(), 0);
  RunStep(0);
  layer_->Apply(kRate, 1);
  const auto matrices = static_cast<int64_t>(slow_[0].w.size());
  EXPECT_EQ(tier->allocated(), (kExperts - 1) * matrices * 4096);
  for (const auto& shard : layer_->shards()) {
    v1::ShardStatus status;
    shard->FillStatus(&status);
    const bool idle = shard->spec().group == kIdleExpert / kPerGroup;
    EXPECT_EQ(status.untouched_bytes() > 0, idle);
    EXPECT_EQ(shard->Untouched().size(), idle ? 1u : 0u);
  }
}

TEST_P(ExpertLayerTest, AnEvaluationMakesOneUntouchedExpertAtATime) {
  for (v1::Parameters parameters : {v1::PARAMETERS_FLOAT32, v1::PARAMETERS_BFLOAT16}) {
    const auto tier =
        CapacityTier::Create({.folder = ::testing::TempDir(), .disk_bytes = 1 << 20},
                             1 << 20)
            .value();
    const auto most = [&](ExpertShard::Host host) {
      layer_.reset();
      auto counting = std::make_unique<CountingBackend>();
      CountingBackend& memory = *counting;
      backend_ = std::move(counting);
      LoadShards("adam {}", parameters, host);
      memory.ForgetMost();
      const int64_t before = memory.bytes();
      Forward(v1::MODE_EVALUATE, 0, 0);
      EXPECT_EQ(memory.bytes(), before);
      return memory.most() - before;
    };
    int64_t expert = 0;
    for (const std::vector<double>& w : slow_[0].w) {
      expert += static_cast<int64_t>(w.size()) *
                (parameters == v1::PARAMETERS_BFLOAT16 ? 2 : 4);
    }
    const int64_t in_memory = most({});
    EXPECT_EQ(most({.tier = tier.get()}), in_memory + expert);
    layer_.reset();
  }
}

TEST_P(ExpertLayerTest, EveryPassReadsItsExpertsAhead) {
  int soon = 0;
  CapacityTier::System system = CapacityTier::RealSystem();
  system.madvise = [&soon, real = system.madvise](void* begin, size_t bytes, int advice) {
    soon += advice == MADV_WILLNEED ? 1 : 0;
    return real(begin, bytes, advice);
  };
  const auto tier =
      CapacityTier::Create(
          {.folder = ::testing::TempDir(), .disk_bytes = 1 << 20, .system = system},
          1 << 20)
          .value();
  Load("adam {}", 1, v1::PARAMETERS_FLOAT32, {.tier = tier.get()});
  RunStep(0);
  layer_->Apply(kRate, 1);
  const auto calls = [&](const auto& pass) {
    soon = 0;
    pass();
    return soon;
  };
  const auto matrices = static_cast<int>(slow_[0].w.size());
  EXPECT_GE(calls([&] { Forward(v1::MODE_EVALUATE, 1, 0); }), matrices);
  for (uint32_t w = 0; w < kWaves; ++w) {
    EXPECT_GE(calls([&] { Forward(v1::MODE_TRAIN, 1, w); }), matrices);
  }
  for (uint32_t w = 0; w < kWaves; ++w) {
    EXPECT_GE(calls([&] { Backward(1, w); }), matrices);
  }
  std::vector<v1::TensorSquareSum> sums;
  EXPECT_GE(calls([&] { layer_->AppendSquareSums(&sums); }), matrices);
  EXPECT_GE(calls([&] { layer_->Apply(kRate, 1); }), matrices);
  layer_.reset();
}

TEST_P(ExpertLayerTest, AFullTierLeavesTheShardsAsTheyWere) {
  const auto tier = CapacityTier::Create(
                        {.folder = ::testing::TempDir(), .disk_bytes = 3 * 4096}, 1 << 20)
                        .value();
  Load("adam {}", 1, v1::PARAMETERS_FLOAT32, {.tier = tier.get()});
  std::vector<std::shared_ptr<const ForwardInput>> inputs;
  for (uint32_t r = 0; r < kReplicas; ++r) {
    const v1::ForwardFrame frame =
        testing::ForwardFrameOf(testing::MakeFrame(0, r, 0), r, v1::MODE_TRAIN);
    inputs.push_back(std::make_shared<const ForwardInput>(
        DecodeForward(*backend_, layer_->shape(), v1::MODE_TRAIN, frame,
                      Pieces(frame.x()))
            .value()));
  }
  const auto replies = layer_->Forward(v1::MODE_TRAIN, 0, 0, inputs);
  EXPECT_TRUE(absl::IsResourceExhausted(replies.status())) << replies.status();
  EXPECT_LE(tier->allocated(), 3 * 4096);
  EXPECT_TRUE(Digests().empty());
}

INSTANTIATE_TEST_SUITE_P(HiddenLayers, ExpertLayerTest, ::testing::Values("7", "7, 4, 8"),
                         [](const auto& info) {
                           return info.index == 0 ? "One" : "Three";
                         });

}  // namespace
}  // namespace moe
