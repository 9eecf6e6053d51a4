#include "worker/models/replica_model.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/local_step.h"
#include "tests/worker/reference/reference_model.h"
#include "tests/worker/small_jobs.h"
#include "tests/worker/values.h"

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
  for (int l = 0; l < job_.model().layers_size(); ++l) {
    for (int e = 0; e < job_.model().layers(l).moe().experts(); ++e) {
      if (expected.rows_of_expert[l][e] > 0) continue;
      const std::string expert =
          "layer" + std::to_string(l) + ".moe.expert" + std::to_string(e) + ".";
      std::erase_if(of_touched,
                    [&](const auto& named) { return named.first.starts_with(expert); });
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
  reference::AdamUpdate(
      {.rate = 0.05f, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-8f, .count = 3},
      of_touched, &updated, &reference_m, &reference_v);
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
  for (const auto& layer : result.choices) {
    const std::vector<int32_t>& offset = layer[1][1].offset;
    for (size_t t = 0; t < batches[1][1].target.size(); ++t) {
      if (batches[1][1].target[t] == -1) EXPECT_EQ(offset[t], offset[t + 1]);
    }
    EXPECT_GT(offset.back(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Jobs, ReplicaModelAgainstReferenceTest,
                         ::testing::ValuesIn(testing::SmallJobNames()),
                         [](const auto& info) { return info.param; });

class ReplicaModelTest : public ::testing::Test {
 protected:
  const v1::Job job_ = SmallJob("lstm_moe_lstm");
  const NamedTensors parameters_ = RandomParameters(job_, 7);
  LocalModel model_{TestBackend(), job_};
  const Batches batches_ = RandomBatches(job_, 1);
};

TEST_F(ReplicaModelTest, Segments) {
  EXPECT_EQ(model_.replica(0).segments(), 2);
  EXPECT_EQ(model_.replica(0).moe_layer(0), 1);
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
  for (const char* name : {"lstm_moe_lstm", "projected"}) {
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
