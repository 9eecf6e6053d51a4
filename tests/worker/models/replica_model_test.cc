#include "worker/models/replica_model.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/local_step.h"
#include "tests/worker/reference/reference_model.h"
#include "tests/worker/small_jobs.h"
#include "tests/worker/values.h"
#include "worker/layers/candidates.h"

namespace moe {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using testing::LocalBatch;
using testing::LocalModel;
using testing::NamedTensors;
using testing::RandomBatches;
using testing::RandomParameters;
using testing::SmallJob;
using testing::TestBackend;

using Batches = std::vector<std::vector<LocalBatch>>;

reference::NamedValues ToDouble(const NamedTensors& tensors) {
  reference::NamedValues values;
  for (const auto& [name, tensor] : tensors)
    values[name].assign(tensor.begin(), tensor.end());
  return values;
}

std::vector<std::vector<reference::MicroBatch>> ToReference(const Batches& batches) {
  std::vector<std::vector<reference::MicroBatch>> result;
  for (const auto& of_replica : batches) {
    auto& waves = result.emplace_back();
    for (const LocalBatch& batch : of_replica)
      waves.push_back({batch.input, batch.target});
  }
  return result;
}

// Every element to within `tolerance` of the tensor's largest.
void ExpectNear(const NamedTensors& actual, const reference::NamedValues& expected,
                double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, values] : expected) {
    ASSERT_TRUE(actual.contains(name)) << name;
    ASSERT_EQ(actual.at(name).size(), values.size()) << name;
    double largest = 0;
    for (double value : values) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_NEAR(actual.at(name)[i], values[i], tolerance * largest + 1e-9)
          << name << "[" << i << "]";
    }
  }
}

// Positive second moments, so that an update doesn't hang on the sign of a tiny gradient.
void RandomMoments(const v1::Job& job, NamedTensors* m, NamedTensors* v) {
  *m = RandomParameters(job, 101);
  *v = RandomParameters(job, 102);
  for (auto& [name, values] : *m) {
    for (float& value : values) value *= 0.02f;
  }
  for (auto& [name, values] : *v) {
    for (float& value : values) value = 0.001f * (value + 0.6f);
  }
}

// Puts back the rows of tables that a step with these batches doesn't name.
void RestoreUntouchedRows(const v1::Job& job, uint64_t step, const Batches& batches,
                          const reference::NamedValues& before,
                          reference::NamedValues* values) {
  std::map<Table, std::set<int32_t>> touched;
  for (const auto& of_replica : batches) {
    for (const LocalBatch& batch : of_replica) {
      touched[Table::kEmbedding].insert(batch.input.begin(), batch.input.end());
      touched[Table::kSoftmax].insert(batch.target.begin(), batch.target.end());
    }
  }
  const ModelPlan plan = MakeModelPlan(job);
  const Candidates drawn = DrawCandidates(job.seed(), step, job.model().vocabulary(),
                                          job.model().tables().candidates());
  touched[Table::kSoftmax].insert(drawn.words.begin(), drawn.words.end());
  for (const ShardSpec& shard : plan.shards) {
    if (shard.kind != ShardKind::kTable) continue;
    for (int64_t row = 0; row < shard.rows; ++row) {
      const auto word = static_cast<int32_t>(shard.first_row + row);
      if (touched[shard.table].contains(word)) continue;
      for (const int64_t t : shard.tensors) {
        const TensorSpec& tensor = plan.tensors[t];
        std::copy_n(before.at(tensor.name).begin() + row * tensor.cols, tensor.cols,
                    values->at(tensor.name).begin() + row * tensor.cols);
      }
    }
  }
  for (const auto& [table, words] : touched) {
    EXPECT_LT(words.size(), static_cast<size_t>(job.model().vocabulary()));
  }
}

class ReplicaModelAgainstReferenceTest : public ::testing::TestWithParam<std::string> {
 protected:
  const v1::Job job_ = SmallJob(GetParam());
  const NamedTensors parameters_ = RandomParameters(job_, 7);
  LocalModel model_{TestBackend(), job_};
  const reference::ReferenceModel reference_{job_};
};

TEST_P(ReplicaModelAgainstReferenceTest, LossGradientsAndUpdate) {
  model_.SetParameters(parameters_);
  const Batches first = RandomBatches(job_, 1), second = RandomBatches(job_, 2);

  // The first step serves to carry a state into the second.
  const LocalModel::StepResult before = model_.Train(/*step=*/4, first);
  const auto reference_before = reference_.Forward(
      ToDouble(parameters_), ToReference(first), reference_.ZeroState(), 4,
      /*training=*/true);
  EXPECT_NEAR(before.loss, reference_before.loss, 2e-6);

  const LocalModel::StepResult result = model_.Train(/*step=*/5, second);
  const auto expected = reference_.Forward(ToDouble(parameters_), ToReference(second),
                                           reference_before.state, 5, /*training=*/true);
  EXPECT_NEAR(result.loss_sum, expected.loss_sum, 1e-6 * expected.loss_sum);
  EXPECT_NEAR(result.balance_loss, expected.balance_loss, 1e-5);
  EXPECT_NEAR(result.loss, expected.loss, 2e-6);

  const reference::NamedValues gradients = reference_.Gradients(
      ToDouble(parameters_), ToReference(second), reference_before.state, 5);
  ExpectNear(result.gradients, gradients, 2e-5);

  NamedTensors m, v;
  RandomMoments(job_, &m, &v);
  reference::NamedValues reference_m = ToDouble(m), reference_v = ToDouble(v);
  reference::NamedValues updated = ToDouble(parameters_);
  // An expert that no token chose stays as it is.
  reference::NamedValues of_touched = gradients;
  const auto untouched = [&](const std::string& prefix) {
    std::erase_if(of_touched,
                  [&](const auto& named) { return named.first.starts_with(prefix); });
  };
  for (const Mixture& mixture : model_.mixtures()) {
    const v1::Moe& moe = mixture.moe;
    const std::string& prefix = mixture.tensors;
    const std::vector<int64_t>& rows = expected.rows_of_expert.at(prefix);
    for (int e = 0; e < moe.experts(); ++e) {
      if (rows[e] == 0) untouched(prefix + "expert" + std::to_string(e) + ".");
    }
    // Nor does the gate of a group without tokens.
    for (int g = 0; moe.k_primary() > 0 && g < moe.groups(); ++g) {
      const auto begin = rows.begin() + g * (moe.experts() / moe.groups());
      if (std::all_of(begin, begin + moe.experts() / moe.groups(),
                      [](int64_t of_expert) { return of_expert == 0; })) {
        untouched(prefix + "group" + std::to_string(g) + ".");
      }
    }
  }
  // Thresholds have a rate of their own.
  for (const TensorSpec& tensor : MakeModelPlan(job_).tensors) {
    if (tensor.own_rate == 0) continue;
    for (int64_t i = 0; i < tensor.size(); ++i) {
      updated[tensor.name][i] -= tensor.own_rate * gradients.at(tensor.name)[i];
    }
    of_touched.erase(tensor.name);
  }
  const auto before_update = std::tuple(updated, reference_m, reference_v);
  reference::AdamUpdate(
      {.rate = 0.05f, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .count = 3},
      of_touched, &updated, &reference_m, &reference_v);
  if (job_.model().has_tables()) {
    RestoreUntouchedRows(job_, 5, second, std::get<0>(before_update), &updated);
    RestoreUntouchedRows(job_, 5, second, std::get<1>(before_update), &reference_m);
    RestoreUntouchedRows(job_, 5, second, std::get<2>(before_update), &reference_v);
  }
  model_.Update(
      {.kind = OptimizerStep::Kind::kAdam,
       .adam =
           {.rate = 0.05f, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .count = 3}},
      &m, &v);
  ExpectNear(model_.GetParameters(), updated, 2e-5);
  ExpectNear(m, reference_m, 2e-5);
  ExpectNear(v, reference_v, 2e-5);
}

TEST_P(ReplicaModelAgainstReferenceTest, EvaluationWithPadding) {
  model_.SetParameters(parameters_);
  Batches batches = RandomBatches(job_, 3);
  std::fill_n(batches[1][1].target.begin() + 2, 3, -1);
  batches[0][0].target[5] = -1;
  const LocalModel::StepResult result = model_.Evaluate(batches);
  const auto expected = reference_.Forward(ToDouble(parameters_), ToReference(batches),
                                           reference_.ZeroState(),
                                           /*step=*/0, /*training=*/false);
  EXPECT_NEAR(result.loss_sum, expected.loss_sum, 1e-6 * expected.loss_sum);
  std::map<int32_t, int32_t> pairs;  // by mixture
  for (size_t s = 0; s < result.choices.size(); ++s) {
    const MoeExchange& exchange = model_.replica(0).exchange(static_cast<int>(s));
    const std::vector<int32_t>& offset = result.choices[s][1][1].offset;
    const size_t first = exchange.call * (offset.size() - 1);
    for (size_t t = 0; t + 1 < offset.size(); ++t) {
      if (batches[1][1].target[first + t] >= 0) continue;
      EXPECT_EQ(offset[t], offset[t + 1]) << first + t;
    }
    pairs[exchange.mixture] += offset.back();
  }
  for (const auto& [mixture, count] : pairs) EXPECT_GT(count, 0) << mixture;
}

INSTANTIATE_TEST_SUITE_P(Jobs, ReplicaModelAgainstReferenceTest,
                         ::testing::ValuesIn(testing::SmallJobNames()),
                         [](const auto& info) { return info.param; });

// ---------------------------------------------------------------- hierarchical = flat

// The noise all but vanishes: the input's first number is 1, and its weight in W_noise -60.
void Silence(const v1::Job& job, NamedTensors* parameters) {
  const size_t d = job.model().d_model();
  std::vector<float>& embedding = parameters->at("embedding");
  for (size_t i = 0; i < embedding.size(); i += d) embedding[i] = 1;
  for (auto& [name, values] : *parameters) {
    if (!name.ends_with(".wnoise")) continue;
    std::fill(values.begin(), values.end(), 0.0f);
    std::fill_n(values.begin(), values.size() / d, -60.0f);
  }
}

// Both gates have noise of their own, so it must be silent for equal results; with noise,
// tests/server/secondary_gate_test.cc compares them.
TEST(HierarchicalModelTest, OneGroupIsAFlatLayer) {
  v1::Job hierarchical = SmallJob("hierarchical_extremes");
  hierarchical.mutable_model()->set_embedding_dropout(0);
  hierarchical.mutable_model()->mutable_layers()->RemoveLast();
  v1::Moe& moe = *hierarchical.mutable_model()->mutable_layers(0)->mutable_moe();
  moe.set_experts(6);
  moe.set_groups(1);
  moe.set_k_primary(1);
  v1::Job flat = hierarchical;
  flat.mutable_model()->mutable_layers(0)->mutable_moe()->set_k_primary(0);

  NamedTensors parameters = RandomParameters(hierarchical, 7);
  Silence(hierarchical, &parameters);
  NamedTensors of_flat = parameters;
  for (const char* tensor : {"wg", "wnoise"}) {
    const std::string of_group = std::string("layer0.moe.group0.") + tensor;
    of_flat[std::string("layer0.moe.") + tensor] = parameters.at(of_group);
    of_flat.erase(of_group);
  }
  LocalModel model(TestBackend(), hierarchical), flat_model(TestBackend(), flat);
  model.SetParameters(parameters);
  flat_model.SetParameters(of_flat);
  const Batches batches = RandomBatches(flat, 1);
  const LocalModel::StepResult result = model.Train(3, batches);
  const LocalModel::StepResult expected = flat_model.Train(3, batches);
  EXPECT_NEAR(result.loss_sum, expected.loss_sum, 1e-6 * expected.loss_sum);
  EXPECT_NEAR(result.balance_loss, expected.balance_loss, 1e-6);
  EXPECT_GT(expected.balance_loss, 0.01);
  NamedTensors gradients = result.gradients;
  for (const char* tensor : {"wg", "wnoise"}) {
    // There is nothing to choose for the primary gate.
    EXPECT_THAT(gradients.at(std::string("layer0.moe.") + tensor), Each(0));
    const std::string of_group = std::string("layer0.moe.group0.") + tensor;
    gradients[std::string("layer0.moe.") + tensor] = gradients.at(of_group);
    gradients.erase(of_group);
  }
  ExpectNear(gradients, ToDouble(expected.gradients), 1e-5);
  EXPECT_NEAR(model.Evaluate(batches).loss, flat_model.Evaluate(batches).loss, 1e-6);
}

std::vector<double> Softmax(std::vector<double> z) {
  double sum = 0;
  for (double& value : z) sum += value = std::exp(value);
  for (double& value : z) value /= sum;
  return z;
}

// x [rows] times w [rows, cols].
std::vector<double> Product(const std::vector<double>& x, const std::vector<float>& w) {
  std::vector<double> y(w.size() / x.size());
  for (size_t i = 0; i < w.size(); ++i) y[i % y.size()] += x[i / y.size()] * w[i];
  return y;
}

TEST(HierarchicalModelTest, AllExpertsAtBothLevelsAreTheDenseMixture) {
  v1::Job job = SmallJob("hierarchical_extremes");
  job.mutable_model()->mutable_layers()->RemoveLast();
  job.mutable_model()->mutable_layers(0)->set_residual(false);
  const NamedTensors parameters = RandomParameters(job, 7);
  LocalModel model(TestBackend(), job);
  model.SetParameters(parameters);
  const Batches batches = RandomBatches(job, 1);

  const int64_t d = job.model().d_model();
  double loss_sum = 0;
  for (const auto& of_replica : batches) {
    for (const LocalBatch& batch : of_replica) {
      for (size_t t = 0; t < batch.input.size(); ++t) {
        const auto row = parameters.at("embedding").begin() + batch.input[t] * d;
        const std::vector<double> x(row, row + d);
        const std::vector<double> primary =
            Softmax(Product(x, parameters.at("layer0.moe.wg")));
        std::vector<double> y(d);
        for (int i = 0; i < 2; ++i) {
          const std::string group = "layer0.moe.group" + std::to_string(i);
          const std::vector<double> secondary =
              Softmax(Product(x, parameters.at(group + ".wg")));
          for (int j = 0; j < 2; ++j) {
            const std::string expert = "layer0.moe.expert" + std::to_string(2 * i + j);
            std::vector<double> hidden = Product(x, parameters.at(expert + ".w1"));
            for (double& value : hidden) value = std::max(value, 0.0);
            const std::vector<double> out =
                Product(hidden, parameters.at(expert + ".w2"));
            for (int64_t c = 0; c < d; ++c) y[c] += primary[i] * secondary[j] * out[c];
          }
        }
        const std::vector<float>& w = parameters.at("softmax.w");
        std::vector<double> logits;
        for (float bias : parameters.at("softmax.b")) {
          const size_t v = logits.size();
          logits.push_back(bias);
          for (int64_t c = 0; c < d; ++c) logits[v] += y[c] * w[v * d + c];
        }
        loss_sum -= std::log(Softmax(logits)[batch.target[t]]);
      }
    }
  }
  EXPECT_NEAR(model.Evaluate(batches).loss_sum, loss_sum, 1e-6 * loss_sum);
}

class ReplicaModelTest : public ::testing::Test {
 protected:
  const v1::Job job_ = SmallJob("lstm_moe_lstm");
  const NamedTensors parameters_ = RandomParameters(job_, 7);
  LocalModel model_{TestBackend(), job_};
  const Batches batches_ = RandomBatches(job_, 1);
};

TEST_F(ReplicaModelTest, Segments) {
  EXPECT_EQ(model_.replica(0).segments(), 2);
  EXPECT_EQ(model_.replica(0).exchange(0).id, MixtureId(1));
  // Before and after an LSTM: the input, and 3 time steps.
  LocalModel recurrent(TestBackend(), SmallJob("recurrent"));
  ASSERT_EQ(recurrent.replica(0).segments(), 5);
  EXPECT_EQ(recurrent.replica(0).exchange(0).id, MixtureId(1, kInputMixture));
  for (int t = 0; t < 3; ++t) {
    EXPECT_EQ(recurrent.replica(0).exchange(1 + t).id, MixtureId(1, kRecurrentMixture));
    EXPECT_EQ(recurrent.replica(0).exchange(1 + t).call, t);
  }
  LocalModel without(TestBackend(), SmallJob("lstm"));
  EXPECT_EQ(without.replica(0).segments(), 1);
}

TEST_F(ReplicaModelTest, TheSameStepHasTheSameBits) {
  model_.SetParameters(parameters_);
  const LocalModel::StepResult first = model_.Train(3, batches_);
  LocalModel other(TestBackend(), job_);
  other.SetParameters(parameters_);
  other.Train(2, RandomBatches(job_, 9));
  for (int r = 0; r < 2; ++r) other.replica(r).ResetState();
  const LocalModel::StepResult second = other.Train(3, batches_);
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(first.gradients, second.gradients);
}

TEST_F(ReplicaModelTest, ReplicasMayRunAtTheSameTime) {
  model_.SetParameters(parameters_);
  LocalModel parallel(TestBackend(), job_, /*parallel=*/true);
  parallel.SetParameters(parameters_);
  for (uint64_t step = 0; step < 20; ++step) {
    const Batches batches = RandomBatches(job_, step);
    const LocalModel::StepResult expected = model_.Train(step, batches);
    const LocalModel::StepResult result = parallel.Train(step, batches);
    ASSERT_EQ(result.loss, expected.loss);
    ASSERT_EQ(result.gradients, expected.gradients);
  }
}

TEST_F(ReplicaModelTest, NoiseAndDropoutChangeFromStepToStep) {
  model_.SetParameters(parameters_);
  const double first = model_.Train(3, batches_).loss;
  for (int r = 0; r < 2; ++r) model_.replica(r).ResetState();
  EXPECT_NE(model_.Train(4, batches_).loss, first);
}

TEST(ReplicaModelStateTest, ASavedStateContinuesWithTheSameBits) {
  for (const char* name : {"lstm_moe_lstm", "projected", "recurrent", "recomputed"}) {
    const v1::Job job = SmallJob(name);
    const NamedTensors parameters = RandomParameters(job, 7);
    const Batches batches = RandomBatches(job, 1);
    LocalModel model(TestBackend(), job);
    model.SetParameters(parameters);
    model.Train(0, RandomBatches(job, 9));
    const std::string state0 = model.replica(0).SaveState();
    const std::string state1 = model.replica(1).SaveState();
    const LocalModel::StepResult expected = model.Train(1, batches);

    LocalModel resumed(TestBackend(), job);
    resumed.SetParameters(parameters);
    ASSERT_TRUE(resumed.replica(0).LoadState(state0).ok());
    ASSERT_TRUE(resumed.replica(1).LoadState(state1).ok());
    EXPECT_EQ(resumed.replica(1).SaveState(), state1);
    const LocalModel::StepResult result = resumed.Train(1, batches);
    EXPECT_EQ(result.loss, expected.loss);
    EXPECT_EQ(result.gradients, expected.gradients);

    resumed.replica(0).ResetState();
    EXPECT_THAT(resumed.replica(0).SaveState(), Each('\0'));
  }
}

// Every number of states that are kept, up to more than there are time steps.
TEST(ReplicaModelRecomputationTest, TheSameBitsHoweverManyStatesAreKept) {
  v1::Job job = SmallJob("recurrent");
  job.mutable_training()->set_unroll(7);
  const NamedTensors parameters = RandomParameters(job, 7);
  const auto run = [&](int32_t kept_states) {
    for (v1::Layer& layer : *job.mutable_model()->mutable_layers()) {
      if (!layer.has_recurrent_moe()) continue;
      layer.mutable_recurrent_moe()->set_kept_states(kept_states);
    }
    LocalModel model(TestBackend(), job);
    model.SetParameters(parameters);
    model.Train(0, RandomBatches(job, 9));
    model.Evaluate(RandomBatches(job, 10));
    LocalModel::StepResult result = model.Train(1, RandomBatches(job, 1));
    return std::pair(result.loss, std::move(result.gradients));
  };
  const auto expected = run(0);
  for (int32_t kept_states = 1; kept_states <= 8; ++kept_states) {
    EXPECT_EQ(run(kept_states), expected) << kept_states;
  }
}

TEST_F(ReplicaModelTest, RefusesAStateOfAnotherSize) {
  const absl::Status status = model_.replica(1).LoadState("short");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  // 2 LSTM layers, 4 lanes, c and h of 7 units.
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("has 5 bytes; this model's has 448"));
  // 4 lanes, c of 10 and of 5 units, the output twice of 7.
  LocalModel projected(TestBackend(), SmallJob("projected"));
  EXPECT_EQ(projected.replica(0).SaveState().size(),
            4 * (10 + 7 + 5 + 7) * sizeof(float));
}

TEST_F(ReplicaModelTest, NamesTheFirstLayerThatIsNotFinite) {
  model_.SetParameters(parameters_);
  model_.Evaluate(batches_);
  EXPECT_EQ(model_.replica(0).FirstNonFinite(0), "");

  const float nan = std::numeric_limits<float>::quiet_NaN();
  NamedTensors broken = parameters_;
  for (float& value : broken["layer1.moe.expert0.w2"]) value = nan;
  for (float& value : broken["layer1.moe.expert3.w2"]) value = nan;
  model_.SetParameters(broken);
  const auto choices = model_.Evaluate(batches_).choices;
  ASSERT_THAT(choices[0][0][0].expert, Contains(0));
  EXPECT_EQ(model_.replica(0).FirstNonFinite(0), "layer1 (moe) output");

  for (int r = 0; r < 2; ++r) model_.replica(r).ResetState();
  broken = parameters_;
  broken["layer0.lstm.b"][2] = nan;
  model_.SetParameters(broken);
  model_.Evaluate(batches_);
  EXPECT_EQ(model_.replica(0).FirstNonFinite(1), "layer0 (lstm) output");

  broken = parameters_;
  for (float& value : broken["embedding"]) value = nan;
  model_.SetParameters(broken);
  model_.Evaluate(batches_);
  EXPECT_EQ(model_.replica(1).FirstNonFinite(1), "embedding output");
}

}  // namespace
}  // namespace moe
