// One group's gate against the equations in double, and its gradients against finite
// differences.
#include "server/secondary_gate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/job/job_file.h"
#include "common/random/random.h"
#include "glog/logging.h"

namespace moe {
namespace {

constexpr int64_t kWidth = 5;
constexpr int64_t kPerGroup = 4;
constexpr int32_t kGroup = 1;
constexpr uint32_t kReplicas = 3;
constexpr uint32_t kWaves = 2;
constexpr uint64_t kStep = 6;
constexpr double kWeightImportance = 0.2;
constexpr double kWeightLoad = 0.3;
constexpr double kRate = 0.25;
constexpr double kScale = 0.5;

v1::Job MadeJob(int k, int groups) {
  const absl::StatusOr<v1::Job> job = ParseJob(
      "name: \"made\" seed: 5 model { d_model: 5 vocabulary: 9 "
      "layers { lstm { hidden: 5 } } "
      "layers { moe { k_primary: 1 experts: " +
          std::to_string(kPerGroup * groups) + " groups: " + std::to_string(groups) +
          " k: " + std::to_string(k) +
          " hidden: 3 gating: GATING_NOISY_TOP_K w_importance: 0.2 w_load: 0.3 } } } "
          "optimizer { sgd {} schedule { base_rate: 0.1 } } "
          "training { replicas: 3 waves: 2 lanes: 4 unroll: 3 steps: 4 }",
      "made job");
  CHECK(job.ok()) << job.status();
  return *job;
}

std::vector<float> Values(uint32_t what, uint32_t wave, uint32_t replica, int64_t size) {
  std::vector<float> values(size);
  FillUniform(MakeKey(3, Purpose::kProbe,
                      {.layer = what, .step = kStep, .wave = wave, .replica = replica}),
              0, values);
  for (float& value : values) value = 2 * value - 1;
  return values;
}

// What one replica has in one wave: rows of the group among others in its frame.
struct Part {
  std::vector<int32_t> token;   // of the frame's rows
  std::vector<double> x;        // [frame's rows, d]
  std::vector<int32_t> row;     // [q] the group's rows in the frame
  std::vector<double> primary;  // [q] G_primary
  double load_primary = 0;
  std::vector<double> value;  // [q, b] <dL/dy, E_j(x)>
};

// The step's input to the group, and the gate's parameters.
struct Made {
  std::vector<std::vector<Part>> parts;  // [wave][replica]
  std::vector<double> wg, wnoise;        // [d, b]
};

// every: which rows of a frame are the group's; 0: none.
Made MakeInput(int every) {
  Made made;
  for (uint32_t w = 0; w < kWaves; ++w) {
    std::vector<Part>& of_wave = made.parts.emplace_back();
    for (uint32_t r = 0; r < kReplicas; ++r) {
      Part& part = of_wave.emplace_back();
      part.load_primary = 2.5 + r + w;
      // A replica without rows in a wave.
      const int frame_rows = r == 1 && w == 1 ? 0 : 7 + 2 * static_cast<int>(r);
      for (int i = 0; i < frame_rows; ++i) {
        part.token.push_back(3 * i + static_cast<int>(r));
        if (every > 0 && (i + w) % every == 0) part.row.push_back(i);
      }
      const int64_t q = static_cast<int64_t>(part.row.size());
      const auto doubles = [&](uint32_t what, int64_t size) {
        const std::vector<float> values = Values(what, w, r, size);
        return std::vector<double>(values.begin(), values.end());
      };
      part.x = doubles(1, frame_rows * kWidth);
      for (double value : doubles(2, q)) {
        part.primary.push_back(static_cast<float>(0.5 + 0.4 * value));
      }
      part.value = doubles(3, q * kPerGroup);
      for (double& value : part.value) value = static_cast<float>(0.1 * value);
    }
  }
  const std::vector<float> wg = Values(4, 0, 0, kWidth * kPerGroup);
  const std::vector<float> wnoise = Values(5, 0, 0, kWidth * kPerGroup);
  made.wg.assign(wg.begin(), wg.end());
  made.wnoise.assign(wnoise.begin(), wnoise.end());
  return made;
}

double Softplus(double z) { return std::log1p(std::exp(z)); }

// The equations.
struct Slow {
  // [wave][replica][q k], by row, then expert.
  std::vector<std::vector<std::vector<int32_t>>> expert;
  std::vector<std::vector<std::vector<double>>> product;
  std::vector<double> importance = std::vector<double>(kPerGroup);  // Importance_H
  std::vector<double> load_h = std::vector<double>(kPerGroup);
  double value = 0;  // sum of the product gates times Part::value

  Slow(const Made& made, int k, bool training, uint32_t waves = kWaves) {
    std::vector<double> load(kPerGroup);
    double load_primary = 0;
    int64_t rows = 0;
    expert.resize(waves);
    product.resize(waves);
    for (uint32_t w = 0; w < waves; ++w) {
      for (uint32_t r = 0; r < kReplicas; ++r) {
        const Part& part = made.parts[w][r];
        load_primary += part.load_primary;
        auto& experts = expert[w].emplace_back();
        auto& products = product[w].emplace_back();
        for (size_t i = 0; i < part.row.size(); ++i) {
          ++rows;
          const int64_t row = part.row[i];
          std::vector<float> noise(kPerGroup);
          FillNormal(
              MakeKey(
                  5, Purpose::kSecondaryGateNoise,
                  {.layer = 2, .step = kStep, .wave = w, .replica = r, .group = kGroup}),
              part.token[row], noise);
          std::vector<double> clean(kPerGroup), scale(kPerGroup), h(kPerGroup);
          for (int64_t j = 0; j < kPerGroup; ++j) {
            double raw = 0;
            for (int64_t c = 0; c < kWidth; ++c) {
              clean[j] += part.x[row * kWidth + c] * made.wg[c * kPerGroup + j];
              raw += part.x[row * kWidth + c] * made.wnoise[c * kPerGroup + j];
            }
            scale[j] = Softplus(raw);
            h[j] = clean[j] + (training ? noise[j] * scale[j] : 0);
          }
          std::vector<double> sorted = h;
          std::sort(sorted.rbegin(), sorted.rend());
          double sum = 0;
          for (int j = 0; j < k; ++j) sum += std::exp(sorted[j]);
          for (int64_t j = 0; j < kPerGroup; ++j) {
            const bool in = h[j] >= sorted[k - 1];
            if (k < kPerGroup) {
              const double z = (clean[j] - (in ? sorted[k] : sorted[k - 1])) / scale[j];
              load[j] += 0.5 * std::erfc(-z / std::sqrt(2.0));
            } else {
              load[j] += 1;
            }
            if (!in) continue;
            const double gate = part.primary[i] * std::exp(h[j]) / sum;
            experts.push_back(static_cast<int32_t>(j));
            products.push_back(gate);
            importance[j] += gate;
            value += gate * part.value[i * kPerGroup + j];
          }
        }
      }
    }
    for (int64_t j = 0; j < kPerGroup && rows > 0; ++j) {
      load_h[j] = load_primary * load[j] / static_cast<double>(rows);
    }
  }
};

// The layer's other group, which the gate knows by the moments alone.
const std::vector<double> kOtherImportance = {1.5, 0.25, 2, 1};
const std::vector<double> kOtherLoad = {3, 1.5, 2.25, 4};

std::vector<double> WithOthers(const std::vector<double>& others,
                               const std::vector<double>& mine) {
  std::vector<double> all = others;
  all.insert(all.end(), mine.begin(), mine.end());
  return all;
}

double Loss(const Made& made, int k) {
  const Slow slow(made, k, /*training=*/true);
  const auto cv_squared = [](const std::vector<double>& v) {
    return CvSquared(SpreadOf(v).moments());
  };
  return slow.value +
         kWeightImportance * cv_squared(WithOthers(kOtherImportance, slow.importance)) +
         kWeightLoad * cv_squared(WithOthers(kOtherLoad, slow.load_h));
}

class SecondaryGateTest : public ::testing::Test {
 protected:
  // The gate is that of the last group.
  void Load(int k, const Made& made, int groups = kGroup + 1) {
    made_ = made;
    k_ = k;
    const v1::Job job = MadeJob(k, groups);
    const ModelPlan plan = MakeModelPlan(job);
    for (const ShardSpec& shard : plan.shards) {
      if (shard.kind == ShardKind::kExpert) spec_ = shard;
    }
    std::string error;
    waves_.clear();
    pairs_.clear();
    gate_.reset();
    parameters_.reset();
    backend_ = MakeCpuBackend(2, &error);
    ASSERT_NE(backend_, nullptr) << error;
    parameters_ = std::make_unique<ParameterBlock>(*backend_, plan, spec_, job);
    parameters_->Initialize();
    for (int i = 0; i < 2; ++i) {
      const std::vector<double>& from = i == 0 ? made.wg : made.wnoise;
      const std::vector<float> values(from.begin(), from.end());
      backend_->Upload(values.data(), parameters_->w(i), values.size() * sizeof(float));
    }
    gate_ = std::make_unique<SecondaryGate>(*backend_, job, spec_, *parameters_);
  }

  WaveRows RowsOf(uint32_t wave) const {
    WaveRows rows;
    std::vector<float> x;
    rows.begin.push_back(0);
    for (const Part& part : made_.parts[wave]) {
      x.insert(x.end(), part.x.begin(), part.x.end());
      rows.token.insert(rows.token.end(), part.token.begin(), part.token.end());
      rows.begin.push_back(static_cast<int64_t>(rows.token.size()));
    }
    rows.x = Tensor(*backend_, rows.begin.back(), kWidth);
    if (!x.empty()) rows.x.Upload(x);
    return rows;
  }

  std::vector<GroupPairs> Forward(v1::Mode mode, uint32_t wave) {
    std::vector<GroupRows> chosen;
    for (const Part& part : made_.parts[wave]) {
      GroupRows& rows = chosen.emplace_back();
      rows.row = part.row;
      rows.gate.assign(part.primary.begin(), part.primary.end());
      rows.load = mode == v1::MODE_TRAIN ? part.load_primary : 0;
    }
    std::vector<const GroupRows*> pointers;
    for (const GroupRows& rows : chosen) pointers.push_back(&rows);
    WaveRows rows = RowsOf(wave);
    std::vector<GroupPairs> pairs = gate_->Forward(mode, kStep, wave, rows, pointers);
    if (mode == v1::MODE_TRAIN) waves_.push_back(std::move(rows));
    return pairs;
  }

  void ForwardAll() {
    pairs_.clear();
    for (uint32_t w = 0; w < kWaves; ++w) pairs_.push_back(Forward(v1::MODE_TRAIN, w));
  }

  BalanceMoments MomentsOfLayer() const {
    return {Join(SpreadOf(kOtherImportance), gate_->ImportanceSpread()).moments(),
            Join(SpreadOf(kOtherLoad), gate_->LoadSpread()).moments()};
  }

  // After ForwardAll; dx of a row begins as zero. Returns dL/dG_primary.
  std::vector<float> Backward(uint32_t wave, std::vector<float>* dx) {
    std::vector<float> dgate;
    int64_t rows = 0;
    for (uint32_t r = 0; r < kReplicas; ++r) {
      const Part& part = made_.parts[wave][r];
      for (size_t c = 0; c < pairs_[wave][r].expert.size(); ++c) {
        const int64_t at = static_cast<int64_t>(c) / k_ * kPerGroup;
        dgate.push_back(static_cast<float>(part.value[at + pairs_[wave][r].expert[c]]));
      }
      rows += static_cast<int64_t>(part.row.size());
    }
    Tensor gradient(*backend_, rows, kWidth);
    gradient.Zero();
    const std::vector<float> dprimary =
        gate_->Backward(wave, MomentsOfLayer(), dgate, gradient.view());
    dx->resize(gradient.size());
    if (rows > 0) gradient.Download(*dx);
    return dprimary;
  }

  std::vector<float> Parameter(int i) const {
    std::vector<float> values(kWidth * kPerGroup);
    backend_->Download(parameters_->w(i), values.data(), values.size() * sizeof(float));
    return values;
  }

  Made made_;
  int k_ = 0;
  ShardSpec spec_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<ParameterBlock> parameters_;
  std::unique_ptr<SecondaryGate> gate_;
  std::vector<WaveRows> waves_;
  std::vector<std::vector<GroupPairs>> pairs_;  // [wave][replica]
};

TEST_F(SecondaryGateTest, ChoosesByTheEquations) {
  for (int k : {1, 2, 4}) {
    for (v1::Mode mode : {v1::MODE_TRAIN, v1::MODE_EVALUATE}) {
      SCOPED_TRACE("k " + std::to_string(k) + ", mode " + std::to_string(mode));
      Load(k, MakeInput(2));
      const Slow slow(made_, k, mode == v1::MODE_TRAIN);
      for (uint32_t w = 0; w < kWaves; ++w) {
        const std::vector<GroupPairs> pairs = Forward(mode, w);
        ASSERT_EQ(pairs.size(), kReplicas);
        for (uint32_t r = 0; r < kReplicas; ++r) {
          EXPECT_EQ(pairs[r].expert, slow.expert[w][r]);
          ASSERT_EQ(pairs[r].gate.size(), slow.product[w][r].size());
          ASSERT_EQ(pairs[r].row.size(), pairs[r].gate.size());
          for (size_t c = 0; c < pairs[r].gate.size(); ++c) {
            EXPECT_EQ(pairs[r].row[c], made_.parts[w][r].row[c / k]);
            EXPECT_NEAR(pairs[r].gate[c], slow.product[w][r][c], 2e-7);
          }
        }
      }
    }
  }
}

TEST_F(SecondaryGateTest, SpreadsAreOfTheWavesSoFar) {
  Load(2, MakeInput(2));
  for (uint32_t w = 0; w < kWaves; ++w) {
    Forward(v1::MODE_TRAIN, w);
    const Slow slow(made_, 2, /*training=*/true, w + 1);
    const Spread importance = SpreadOf(slow.importance);
    const Spread load = SpreadOf(slow.load_h);
    EXPECT_EQ(gate_->ImportanceSpread().count, kPerGroup);
    EXPECT_NEAR(gate_->ImportanceSpread().mean, importance.mean, 1e-6);
    EXPECT_NEAR(gate_->ImportanceSpread().m2, importance.m2, 1e-6);
    EXPECT_NEAR(gate_->LoadSpread().mean, load.mean, 1e-6);
    EXPECT_NEAR(gate_->LoadSpread().m2, load.m2, 2e-6);
  }
}

// Numeric derivative of Loss by one number of made_.
class Difference {
 public:
  Difference(Made* made, int k) : made_(made), k_(k) {}
  double By(double* number) const {
    const double at = *number;
    *number = at + kStepSize;
    const double above = Loss(*made_, k_);
    *number = at - kStepSize;
    const double below = Loss(*made_, k_);
    *number = at;
    return (above - below) / (2 * kStepSize);
  }

 private:
  static constexpr double kStepSize = 1e-6;
  Made* made_;
  int k_;
};

TEST_F(SecondaryGateTest, GradientsAgreeWithFiniteDifferences) {
  constexpr double kTolerance = 1e-6;
  for (int k : {1, 2, 4}) {
    SCOPED_TRACE("k " + std::to_string(k));
    Load(k, MakeInput(2));
    ForwardAll();
    const double dload_primary = gate_->LoadPrimaryGradient(MomentsOfLayer());
    Made moved = made_;
    const Difference difference(&moved, k);
    for (uint32_t w : {1u, 0u}) {
      std::vector<float> dx;
      const std::vector<float> dprimary = Backward(w, &dx);
      size_t i = 0;
      for (Part& part : moved.parts[w]) {
        EXPECT_NEAR(dload_primary, difference.By(&part.load_primary), kTolerance);
        for (size_t q = 0; q < part.row.size(); ++q, ++i) {
          EXPECT_NEAR(dprimary[i], difference.By(&part.primary[q]), kTolerance);
          for (int64_t c = 0; c < kWidth; ++c) {
            EXPECT_NEAR(dx[i * kWidth + c],
                        difference.By(&part.x[part.row[q] * kWidth + c]), kTolerance);
          }
        }
      }
      ASSERT_EQ(i, dprimary.size());
    }
    EXPECT_NE(dload_primary, 0);

    std::vector<double> dw[2];
    for (double& weight : moved.wg) dw[0].push_back(difference.By(&weight));
    for (double& weight : moved.wnoise) dw[1].push_back(difference.By(&weight));
    std::vector<v1::TensorSquareSum> sums;
    gate_->AppendSquareSums(waves_, &sums);
    ASSERT_EQ(sums.size(), 2u);
    const std::vector<float> before[2] = {Parameter(0), Parameter(1)};
    gate_->Apply(waves_, kRate, kScale);
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(sums[i].tensor(), static_cast<uint64_t>(spec_.tensors[i]));
      double square_sum = 0;
      for (double g : dw[i]) square_sum += g * g;
      EXPECT_NEAR(sums[i].sum(), square_sum, kTolerance * (1 + square_sum));
      const std::vector<float> after = Parameter(i);
      for (size_t j = 0; j < after.size(); ++j) {
        EXPECT_NEAR((before[i][j] - after[j]) / (kRate * kScale), dw[i][j], 2e-6);
      }
      EXPECT_EQ(parameters_->count(i), 1);
    }
  }
}

// One group that the primary gate always chooses is a flat layer: the same losses and
// gradients, with the same noise.
TEST_F(SecondaryGateTest, OneGroupIsAFlatGate) {
  constexpr int kChosen = 2;
  Made made = MakeInput(1);
  for (auto& of_wave : made.parts) {
    for (Part& part : of_wave) {
      part.primary.assign(part.row.size(), 1);
      // All groups are chosen, so the load is a count.
      part.load_primary = static_cast<double>(part.row.size());
    }
  }
  Load(kChosen, made, /*groups=*/1);
  ForwardAll();

  // The flat gate, a micro-batch after the other, as workers do.
  struct MicroBatch {
    Tensor x, clean, raw, noise;
    Array<int32_t> expert, threshold;
    Array<float> gate;
    Array<double> importance, load;
    GateBatch batch;
  };
  const Matrix wg(parameters_->w(0), kWidth, kPerGroup);
  const Matrix wnoise(parameters_->w(1), kWidth, kPerGroup);
  std::vector<std::vector<MicroBatch>> flat(kWaves);
  std::vector<double> importance(kPerGroup), load(kPerGroup);
  for (uint32_t w = 0; w < kWaves; ++w) {
    for (uint32_t r = 0; r < kReplicas; ++r) {
      const Part& part = made_.parts[w][r];
      const int64_t rows = static_cast<int64_t>(part.row.size());
      MicroBatch& m = flat[w].emplace_back();
      if (rows == 0) continue;
      m.x = Tensor(*backend_, rows, kWidth);
      m.x.Upload(std::vector<float>(part.x.begin(), part.x.end()));
      for (Tensor* tensor : {&m.clean, &m.raw, &m.noise}) {
        *tensor = Tensor(*backend_, rows, kPerGroup);
      }
      m.expert = Array<int32_t>(*backend_, rows * kChosen);
      m.threshold = Array<int32_t>(*backend_, rows * 2);
      m.gate = Array<float>(*backend_, rows * kChosen);
      m.importance = Array<double>(*backend_, kPerGroup);
      m.load = Array<double>(*backend_, kPerGroup);
      backend_->Gemm(Transpose::kNo, Transpose::kNo, 1, m.x.view(), wg, 0,
                     m.clean.view());
      backend_->Gemm(Transpose::kNo, Transpose::kNo, 1, m.x.view(), wnoise, 0,
                     m.raw.view());
      m.batch.clean = m.clean.view();
      m.batch.raw = m.raw.view();
      m.batch.noise = m.noise.view();
      m.batch.k = kChosen;
      m.batch.with_noise = true;
      m.batch.key = MakeKey(5, Purpose::kSecondaryGateNoise,
                            {.layer = 2, .step = kStep, .wave = w, .replica = r});
      m.batch.draw_row = part.token;
      m.batch.expert = m.expert.data();
      m.batch.threshold = m.threshold.data();
      m.batch.gate = m.gate.data();
      m.batch.importance = m.importance.data();
      m.batch.load = m.load.data();
      backend_->NoisyTopKForward(m.batch);
      std::vector<double> sums(kPerGroup);
      m.importance.Download(sums);
      for (int64_t j = 0; j < kPerGroup; ++j) importance[j] += sums[j];
      m.load.Download(sums);
      for (int64_t j = 0; j < kPerGroup; ++j) load[j] += sums[j];
    }
  }
  EXPECT_NEAR(gate_->ImportanceSpread().m2, SpreadOf(importance).m2, 1e-12);
  EXPECT_NEAR(gate_->LoadSpread().m2, SpreadOf(load).m2, 1e-12);
  const BalanceMoments moments = {gate_->ImportanceSpread().moments(),
                                  gate_->LoadSpread().moments()};

  for (uint32_t w = 0; w < kWaves; ++w) {
    std::vector<float> dgate, flat_dx;
    for (uint32_t r = 0; r < kReplicas; ++r) {
      const Part& part = made_.parts[w][r];
      MicroBatch& m = flat[w][r];
      const int64_t rows = static_cast<int64_t>(part.row.size());
      if (rows == 0) continue;
      std::vector<int32_t> expert(rows * kChosen);
      m.expert.Download(expert);
      EXPECT_EQ(pairs_[w][r].expert, expert);
      std::vector<float> with_importance;
      for (int64_t c = 0; c < rows * kChosen; ++c) {
        const double value = part.value[c / kChosen * kPerGroup + expert[c]];
        dgate.push_back(static_cast<float>(value));
        with_importance.push_back(static_cast<float>(
            value + CvSquaredGradient(moments.importance, kPerGroup, kWeightImportance,
                                      importance[expert[c]])));
      }
      std::vector<float> dload_host;
      for (double of_expert : load) {
        dload_host.push_back(static_cast<float>(
            CvSquaredGradient(moments.load, kPerGroup, kWeightLoad, of_expert)));
      }
      Array<float> device_dgate(*backend_, rows * kChosen), dload(*backend_, kPerGroup);
      device_dgate.Upload(with_importance);
      dload.Upload(dload_host);
      Tensor dclean(*backend_, rows, kPerGroup), draw(*backend_, rows, kPerGroup);
      Tensor dx(*backend_, rows, kWidth);
      backend_->NoisyTopKBackward(m.batch, device_dgate.data(), dload.data(),
                                  dclean.view(), draw.view());
      backend_->Gemm(Transpose::kNo, Transpose::kYes, 1, dclean.view(), wg, 0, dx.view());
      backend_->Gemm(Transpose::kNo, Transpose::kYes, 1, draw.view(), wnoise, 1,
                     dx.view());
      std::vector<float> values(dx.size());
      dx.Download(values);
      flat_dx.insert(flat_dx.end(), values.begin(), values.end());
    }
    Tensor dx(*backend_, static_cast<int64_t>(flat_dx.size()) / kWidth, kWidth);
    dx.Zero();
    gate_->Backward(w, moments, dgate, dx.view());
    std::vector<float> values(dx.size());
    dx.Download(values);
    double largest = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_NEAR(values[i], flat_dx[i], 1e-7);
      largest = std::max<double>(largest, std::abs(values[i]));
    }
    EXPECT_GT(largest, 0.01);
  }
}

// Rows of other groups in the frame, and so on which server they are, change no bit.
TEST_F(SecondaryGateTest, OtherRowsOfTheFrameChangeNoBit) {
  Load(2, MakeInput(3));
  ForwardAll();
  const std::vector<std::vector<GroupPairs>> among_others = pairs_;
  std::vector<float> dx;
  const std::vector<float> dprimary = Backward(0, &dx);

  Made alone = made_;
  for (auto& of_wave : alone.parts) {
    for (Part& part : of_wave) {
      std::vector<int32_t> token, row;
      std::vector<double> x;
      for (int32_t i : part.row) {
        row.push_back(static_cast<int32_t>(token.size()));
        token.push_back(part.token[i]);
        x.insert(x.end(), part.x.begin() + i * kWidth, part.x.begin() + (i + 1) * kWidth);
      }
      part.token = token;
      part.row = row;
      part.x = x;
    }
  }
  Load(2, alone);
  ForwardAll();
  for (uint32_t w = 0; w < kWaves; ++w) {
    for (uint32_t r = 0; r < kReplicas; ++r) {
      EXPECT_EQ(pairs_[w][r].expert, among_others[w][r].expert);
      EXPECT_EQ(pairs_[w][r].gate, among_others[w][r].gate);
    }
  }
  std::vector<float> dx_alone;
  EXPECT_EQ(Backward(0, &dx_alone), dprimary);
  EXPECT_EQ(dx_alone, dx);
}

TEST_F(SecondaryGateTest, AGroupWithoutRowsIsUntouched) {
  Load(2, MakeInput(0));
  ForwardAll();
  EXPECT_EQ(gate_->ImportanceSpread().count, kPerGroup);
  EXPECT_EQ(gate_->ImportanceSpread().mean, 0);
  EXPECT_EQ(gate_->LoadSpread().mean, 0);
  EXPECT_EQ(gate_->LoadPrimaryGradient(MomentsOfLayer()), 0);
  std::vector<float> dx;
  EXPECT_TRUE(Backward(0, &dx).empty());
  EXPECT_TRUE(Backward(1, &dx).empty());
  std::vector<v1::TensorSquareSum> sums;
  gate_->AppendSquareSums(waves_, &sums);
  EXPECT_TRUE(sums.empty());
  const std::vector<float> before = Parameter(0);
  gate_->Apply(waves_, kRate, kScale);
  EXPECT_EQ(Parameter(0), before);
  EXPECT_EQ(parameters_->count(0), 0);
}

// Neither what a step comes to nor its update, wherever the evaluation comes.
TEST_F(SecondaryGateTest, AnEvaluationInBetweenChangesNothing) {
  std::vector<double> seen[2];
  for (bool evaluate : {false, true}) {
    Load(2, MakeInput(2));
    std::vector<double>& all = seen[evaluate];
    const auto add = [&](const auto& values) {
      all.insert(all.end(), values.begin(), values.end());
    };
    const auto between = [&] {
      for (uint32_t w = 0; evaluate && w < kWaves; ++w) Forward(v1::MODE_EVALUATE, w);
    };
    for (uint32_t w = 0; w < kWaves; ++w) {
      between();
      pairs_.push_back(Forward(v1::MODE_TRAIN, w));
      for (const GroupPairs& pairs : pairs_.back()) {
        add(pairs.row);
        add(pairs.expert);
        add(pairs.gate);
      }
    }
    between();
    for (const Spread& spread : {gate_->ImportanceSpread(), gate_->LoadSpread()}) {
      add(std::vector<double>{spread.mean, spread.m2});
    }
    all.push_back(gate_->LoadPrimaryGradient(MomentsOfLayer()));
    for (uint32_t w : {1u, 0u}) {
      std::vector<float> dx;
      add(Backward(w, &dx));
      add(dx);
      between();
    }
    std::vector<v1::TensorSquareSum> sums;
    gate_->AppendSquareSums(waves_, &sums);
    between();
    for (const v1::TensorSquareSum& sum : sums) all.push_back(sum.sum());
    gate_->Apply(waves_, kRate, kScale);
    for (int i = 0; i < 2; ++i) add(Parameter(i));
  }
  EXPECT_EQ(seen[0], seen[1]);
}

}  // namespace
}  // namespace moe
