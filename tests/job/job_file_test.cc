#include "common/job/job_file.h"

#include <cstdio>
#include <fstream>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "common/job/model_plan.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kJob[] = R"(# a comment
name: "job"
seed: 7
model {
  d_model: 8
  layers { lstm { hidden: 8 } }
  layers {
    moe {
      experts: 4
      k: 2
      hidden: 16
      groups: 2
      gating: GATING_NOISY_TOP_K
    }
  }
}
optimizer {
  adam {}
  schedule { base_rate: 0.1 }
}
training {
  replicas: 2
  waves: 2
  lanes: 4
  unroll: 3
  steps: 5
}
)";

// kJob with `from` replaced by `to`, once.
std::string Changed(const std::string& from, const std::string& to) {
  std::string text = kJob;
  const size_t at = text.find(from);
  CHECK_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string ErrorOf(const std::string& text) {
  const absl::StatusOr<v1::Job> job = ParseJob(text, "job.textproto");
  EXPECT_EQ(job.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(job.status().message());
}

TEST(ParseJobTest, FillsDefaults) {
  const absl::StatusOr<v1::Job> job = ParseJob(kJob, "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->optimizer().adam().beta1(), 0.9f);
  EXPECT_EQ(job->optimizer().adam().beta2(), 0.999f);
  EXPECT_EQ(job->optimizer().adam().epsilon(), 1e-8f);
  EXPECT_EQ(job->optimizer().adam().second_moment(), v1::SECOND_MOMENT_FULL);
  EXPECT_FALSE(job->optimizer().has_experts());
  EXPECT_EQ(job->model().layers(1).moe().parameters(), v1::PARAMETERS_FLOAT32);
  EXPECT_TRUE(job->optimizer().schedule().has_constant());
  EXPECT_EQ(job->training().dense_shards(), kDefaultDenseShards);
  EXPECT_EQ(job->model().vocabulary(), 0);
}

TEST(ParseJobTest, KeepsWhatIsSet) {
  const absl::StatusOr<v1::Job> job =
      ParseJob(Changed("adam {}", "adam { beta1: 0.5 beta2: 0.75 epsilon: 0.125 }"),
               "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->optimizer().adam().beta1(), 0.5f);
  EXPECT_EQ(job->optimizer().adam().beta2(), 0.75f);
  EXPECT_EQ(job->optimizer().adam().epsilon(), 0.125f);
}

TEST(ParseJobTest, ZeroIsNoDefault) {
  const absl::StatusOr<v1::Job> job = ParseJob(
      Changed("adam {}",
              "adam { beta2: 0 } "
              "experts { beta1: 0 epsilon: 1e-5 second_moment: SECOND_MOMENT_FACTORED }"),
      "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  const v1::Adam& adam = job->optimizer().adam();
  EXPECT_EQ(adam.beta1(), 0.9f);
  EXPECT_EQ(adam.beta2(), 0);
  EXPECT_EQ(adam.second_moment(), v1::SECOND_MOMENT_FULL);
  const v1::Adam& experts = job->optimizer().experts();
  EXPECT_EQ(experts.beta1(), 0);
  EXPECT_EQ(experts.beta2(), 0.999f);
  EXPECT_EQ(experts.epsilon(), 1e-5f);
  EXPECT_EQ(experts.second_moment(), v1::SECOND_MOMENT_FACTORED);
}

TEST(ParseJobTest, DefaultsDoNotChooseAnOptimizer) {
  const absl::StatusOr<v1::Job> job =
      ParseJob(Changed("adam {}", "sgd {}"), "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_TRUE(job->optimizer().has_sgd());
}

TEST(ParseJobTest, UnknownFieldIsNamedWithItsPlaceAndTheMessagesFields) {
  EXPECT_EQ(
      ErrorOf(Changed("experts: 4", "expert: 4")),
      "job.textproto:9:7: no field named \"expert\" in moe.v1.Moe; it has experts, k, "
      "hidden, groups, gating, w_importance, w_load, sigmoid_output, k_primary, "
      "parameters");
}

TEST(ParseJobTest, PlaceIsTheUnknownWordEvenIfAnotherLineFollows) {
  EXPECT_THAT(
      ErrorOf("seed: 1\nmodle\n\n{ }\n"),
      StartsWith("job.textproto:2:1: no field named \"modle\" in moe.v1.Job; it has "));
}

TEST(ParseJobTest, PlaceIsTheUnknownWordEvenIfItComesTwice) {
  EXPECT_THAT(ErrorOf("seed: 1 sed sed: 2"), StartsWith("job.textproto:1:9: "));
}

TEST(ParseJobTest, UnknownEnumValueIsNamedWithTheKnownOnes) {
  EXPECT_EQ(ErrorOf(Changed("GATING_NOISY_TOP_K", "NOISY")),
            "job.textproto:13:15: no value named \"NOISY\" for field \"gating\"; it must "
            "be one of GATING_NOISY_TOP_K, GATING_SOFTMAX, GATING_STRICTLY_BALANCED");
}

TEST(ParseJobTest, SyntaxErrorsHaveAPlace) {
  EXPECT_THAT(ErrorOf(Changed("seed: 7", "seed: -1")), StartsWith("job.textproto:3:7: "));
  EXPECT_THAT(ErrorOf(Changed("seed: 7", "seed: \"x\"")),
              StartsWith("job.textproto:3:7: "));
  EXPECT_THAT(ErrorOf(Changed("\"job\"", "\"job")), StartsWith("job.textproto:2:"));
  EXPECT_THAT(ErrorOf(Changed("seed: 7", "seed: 7 seed: 8")),
              HasSubstr("multiple times"));
  EXPECT_THAT(ErrorOf(Changed("lstm { hidden: 8 }", "lstm { hidden: 8 } moe {}")),
              HasSubstr("oneof"));
  EXPECT_THAT(ErrorOf("model {"), StartsWith("job.textproto:1:"));
  EXPECT_THAT(ErrorOf("\xff\xfe: 1"), StartsWith("job.textproto:1:"));
}

TEST(ParseJobTest, EmptyFileNamesWhatIsMissing) {
  const std::string error = ErrorOf("");
  for (const char* path :
       {"name ", "model.d_model ", "model.layers ", "optimizer ",
        "optimizer.schedule.base_rate ", "training.replicas ", "training.waves ",
        "training.lanes ", "training.unroll ", "training "}) {
    EXPECT_THAT("\n" + error, HasSubstr(std::string("\njob.textproto: ") + path));
  }
}

TEST(ReadJobFileTest, ReadsAFileAndNamesItInErrors) {
  const std::string path = ::testing::TempDir() + "/read.textproto";
  std::ofstream(path) << kJob;
  const absl::StatusOr<v1::Job> job = ReadJobFile(path);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->name(), "job");

  std::ofstream(path) << Changed("k: 2", "k: 9");
  EXPECT_THAT(std::string(ReadJobFile(path).status().message()),
              StartsWith(path + ": model.layers[1].moe.k "));
  std::remove(path.c_str());
}

TEST(ReadJobFileTest, MissingFileIsNamed) {
  const absl::StatusOr<v1::Job> job = ReadJobFile("/nowhere/job.textproto");
  ASSERT_FALSE(job.ok());
  EXPECT_THAT(std::string(job.status().message()), HasSubstr("/nowhere/job.textproto"));
}

// A change that makes the valid job invalid, and the line that says so.
struct Wrong {
  const char* name;
  void (*change)(v1::Job& job);
  const char* error;
};

class ValidateJobTest : public ::testing::TestWithParam<Wrong> {};

TEST_P(ValidateJobTest, SaysWhatWouldBeValid) {
  absl::StatusOr<v1::Job> job = ParseJob(kJob, "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_TRUE(ValidateJob(*job).ok());
  GetParam().change(*job);
  const absl::Status status = ValidateJob(*job);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), GetParam().error);
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

v1::Layer& Layer(v1::Job& job, int l) { return *job.mutable_model()->mutable_layers(l); }
v1::Lstm& Lstm(v1::Job& job) { return *Layer(job, 0).mutable_lstm(); }
v1::Moe& Moe(v1::Job& job) { return *Layer(job, 1).mutable_moe(); }
// In place of the moe, which both of its mixtures are.
v1::RecurrentMoe& RecurrentMoe(v1::Job& job) {
  const v1::Moe moe = Moe(job);
  v1::RecurrentMoe& layer = *Layer(job, 1).mutable_recurrent_moe();
  layer.set_hidden(8);
  *layer.mutable_input() = moe;
  *layer.mutable_recurrent() = moe;
  return layer;
}
v1::Schedule& Schedule(v1::Job& job) {
  return *job.mutable_optimizer()->mutable_schedule();
}

// Valid values.
v1::Adam& Experts(v1::Job& job) {
  v1::Adam& experts = *job.mutable_optimizer()->mutable_experts();
  experts = job.optimizer().adam();
  return experts;
}

INSTANTIATE_TEST_SUITE_P(
    Fields, ValidateJobTest,
    ::testing::Values(
        Wrong{"NoName", [](v1::Job& job) { job.clear_name(); },
              "name is not set: letters, digits, '-', '_' and '.', such as \"kjv-moe\""},
        Wrong{"NameWithSlash", [](v1::Job& job) { job.set_name("a/b"); },
              "name is \"a/b\": must be letters, digits, '-', '_' and '.', and begin with a letter "
              "or a digit"},
        Wrong{"NameIsAFolder", [](v1::Job& job) { job.set_name(".."); },
              "name is \"..\": must be letters, digits, '-', '_' and '.', and begin with a letter "
              "or a digit"},
        Wrong{"NameWithNewline", [](v1::Job& job) { job.set_name("a\n"); },
              "name is \"a\\n\": must be letters, digits, '-', '_' and '.', and begin with a "
              "letter or a digit"},
        Wrong{"NoLayers", [](v1::Job& job) { job.mutable_model()->clear_layers(); },
              "model.layers is empty: at least one layer is needed"},
        Wrong{"Vocabulary", [](v1::Job& job) { job.mutable_model()->set_vocabulary(-1); },
              "model.vocabulary is -1: must be at least 0"},
        Wrong{"EmbeddingDropout",
              [](v1::Job& job) { job.mutable_model()->set_embedding_dropout(1); },
              "model.embedding_dropout is 1: must be in [0, 1)"},
        Wrong{"UniformScale",
              [](v1::Job& job) {
                job.mutable_model()->mutable_initialization()->set_uniform_scale(-0.5f);
              },
              "model.initialization.uniform_scale is -0.5: must be 0 or more, and finite"},
        Wrong{"NoKind", [](v1::Job& job) { Layer(job, 0).clear_lstm(); },
              "model.layers[0] has no kind: set lstm, moe or recurrent_moe"},
        Wrong{"Dropout", [](v1::Job& job) { Layer(job, 1).set_dropout(-0.5f); },
              "model.layers[1].dropout is -0.5: must be in [0, 1)"},
        Wrong{"DropoutNan", [](v1::Job& job) { Layer(job, 1).set_dropout(kNan); },
              "model.layers[1].dropout is nan: must be in [0, 1)"},
        Wrong{"HiddenIsNotDModel", [](v1::Job& job) { Lstm(job).set_hidden(16); },
              "model.layers[0].lstm.hidden is 16: must be d_model (8), because projection is 0"},
        Wrong{"HiddenTooLarge",
              [](v1::Job& job) {
                Lstm(job).set_hidden(2000000);
                Lstm(job).set_projection(8);
              },
              "model.layers[0].lstm.hidden is 2000000: must be between 1 and 1048576"},
        Wrong{"ProjectionIsNotDModel", [](v1::Job& job) { Lstm(job).set_projection(4); },
              "model.layers[0].lstm.projection is 4: must be d_model (8), or 0 for no projection"},
        Wrong{"ForgetBias", [](v1::Job& job) { Lstm(job).set_forget_bias(kInfinity); },
              "model.layers[0].lstm.forget_bias is inf: must be finite"},
        Wrong{"KTooLarge", [](v1::Job& job) { Moe(job).set_k(8); },
              "model.layers[1].moe.k is 8: must be between 1 and experts (4)"},
        Wrong{"KZero", [](v1::Job& job) { Moe(job).set_k(0); },
              "model.layers[1].moe.k is 0: must be between 1 and experts (4)"},
        Wrong{"Groups", [](v1::Job& job) { Moe(job).set_groups(3); },
              "model.layers[1].moe.groups is 3: must divide experts (4)"},
        Wrong{"NoGroups", [](v1::Job& job) { Moe(job).set_groups(0); },
              "model.layers[1].moe.groups is 0: must divide experts (4)"},
        Wrong{"MoreGroupsThanExperts", [](v1::Job& job) { Moe(job).set_groups(8); },
              "model.layers[1].moe.groups is 8: must divide experts (4)"},
        Wrong{"RecurrentMoeIsNotDModel",
              [](v1::Job& job) { RecurrentMoe(job).set_hidden(16); },
              "model.layers[1].recurrent_moe.hidden is 16: must be d_model (8)"},
        Wrong{"RecurrentMoeWithoutInput",
              [](v1::Job& job) { RecurrentMoe(job).clear_input(); },
              "model.layers[1].recurrent_moe.input is not set: both products of the layer "
              "are mixtures of experts"},
        Wrong{"RecurrentMoeWithoutRecurrent",
              [](v1::Job& job) { RecurrentMoe(job).clear_recurrent(); },
              "model.layers[1].recurrent_moe.recurrent is not set: both products of the "
              "layer are mixtures of experts"},
        Wrong{"RecurrentMoeHierarchical",
              [](v1::Job& job) {
                RecurrentMoe(job).mutable_recurrent()->set_k_primary(1);
              },
              "model.layers[1].recurrent_moe.recurrent.k_primary is 1: must be 0, because "
              "the mixtures of a recurrent_moe are flat"},
        Wrong{"RecurrentMoeStrict",
              [](v1::Job& job) {
                RecurrentMoe(job).mutable_input()->set_gating(
                    v1::GATING_STRICTLY_BALANCED);
              },
              "model.layers[1].recurrent_moe.input.gating is GATING_STRICTLY_BALANCED: a "
              "recurrent_moe needs GATING_NOISY_TOP_K or GATING_SOFTMAX"},
        Wrong{"RecurrentMoeSigmoid",
              [](v1::Job& job) {
                RecurrentMoe(job).mutable_input()->set_sigmoid_output(true);
              },
              "model.layers[1].recurrent_moe.input.sigmoid_output is true: must be false, "
              "because what the mixture gives is added to the gates of an LSTM"},
        Wrong{"RecurrentMoeExpertHiddenZero",
              [](v1::Job& job) { RecurrentMoe(job).mutable_recurrent()->set_hidden(0, 0); },
              "model.layers[1].recurrent_moe.recurrent.hidden[0] is 0: must be between 1 "
              "and 1048576"},
        Wrong{"RecurrentMoeTooManyChosen",
              [](v1::Job& job) { RecurrentMoe(job).mutable_recurrent()->set_k(5); },
              "model.layers[1].recurrent_moe.recurrent.k is 5: must be between 1 and "
              "experts (4)"},
        Wrong{"RecurrentMoeKeepsLessThanNothing",
              [](v1::Job& job) { RecurrentMoe(job).set_kept_states(-1); },
              "model.layers[1].recurrent_moe.kept_states is -1: must be at least 0"},
        Wrong{"RecurrentMoeForgetBias",
              [](v1::Job& job) { RecurrentMoe(job).set_forget_bias(kInfinity); },
              "model.layers[1].recurrent_moe.forget_bias is inf: must be finite"},
        Wrong{"NoExpertHidden", [](v1::Job& job) { Moe(job).clear_hidden(); },
              "model.layers[1].moe.hidden is empty: an expert needs a hidden layer"},
        Wrong{"ExpertHiddenZero", [](v1::Job& job) { Moe(job).set_hidden(0, 0); },
              "model.layers[1].moe.hidden[0] is 0: must be between 1 and 1048576"},
        Wrong{"NoGating", [](v1::Job& job) { Moe(job).clear_gating(); },
              "model.layers[1].moe.gating is not set: must be one of GATING_NOISY_TOP_K, GATING_SOFTMAX, "
              "GATING_STRICTLY_BALANCED"},
        Wrong{"UnknownGating",
              [](v1::Job& job) { Moe(job).set_gating(static_cast<v1::Gating>(9)); },
              "model.layers[1].moe.gating is 9: must be one of GATING_NOISY_TOP_K, GATING_SOFTMAX, "
              "GATING_STRICTLY_BALANCED"},
        Wrong{"WImportance", [](v1::Job& job) { Moe(job).set_w_importance(-1); },
              "model.layers[1].moe.w_importance is -1: must be 0 or more, and finite"},
        Wrong{"WLoad", [](v1::Job& job) { Moe(job).set_w_load(kInfinity); },
              "model.layers[1].moe.w_load is inf: must be 0 or more, and finite"},
        Wrong{"KPrimaryTooLarge",
              [](v1::Job& job) { Moe(job).set_k_primary(3); },
              "model.layers[1].moe.k_primary is 3: must be between 1 and groups (2), or 0 for a "
              "flat mixture"},
        Wrong{"KPrimaryNegative",
              [](v1::Job& job) { Moe(job).set_k_primary(-1); },
              "model.layers[1].moe.k_primary is -1: must be between 1 and groups (2), or 0 for a "
              "flat mixture"},
        Wrong{"HierarchicalKTooLarge",
              [](v1::Job& job) {
                Moe(job).set_k_primary(1);
                Moe(job).set_k(3);
              },
              "model.layers[1].moe.k is 3: must be between 1 and the experts of a group (2), "
              "because k_primary makes the mixture hierarchical"},
        Wrong{"HierarchicalKZero",
              [](v1::Job& job) {
                Moe(job).set_k_primary(2);
                Moe(job).set_k(0);
              },
              "model.layers[1].moe.k is 0: must be between 1 and the experts of a group (2), "
              "because k_primary makes the mixture hierarchical"},
        Wrong{"HierarchicalSoftmax",
              [](v1::Job& job) {
                Moe(job).set_k_primary(1);
                Moe(job).set_gating(v1::GATING_SOFTMAX);
              },
              "model.layers[1].moe.gating is GATING_SOFTMAX: a hierarchical mixture (k_primary) "
              "needs GATING_NOISY_TOP_K"},
        Wrong{"HierarchicalStrict",
              [](v1::Job& job) {
                Moe(job).set_k_primary(1);
                Moe(job).set_gating(v1::GATING_STRICTLY_BALANCED);
              },
              "model.layers[1].moe.gating is GATING_STRICTLY_BALANCED: a hierarchical mixture "
              "(k_primary) needs GATING_NOISY_TOP_K"},
        Wrong{"SoftmaxK", [](v1::Job& job) { Moe(job).set_gating(v1::GATING_SOFTMAX); },
              "model.layers[1].moe.k is 2: softmax gating uses all 4 experts; leave k out"},
        Wrong{"SoftmaxWLoad",
              [](v1::Job& job) {
                Moe(job).set_gating(v1::GATING_SOFTMAX);
                Moe(job).set_k(4);
                Moe(job).set_w_load(0.5f);
              },
              "model.layers[1].moe.w_load is 0.5: must be 0, because Load is a constant with "
              "GATING_SOFTMAX"},
        Wrong{"StrictWLoad",
              [](v1::Job& job) {
                Moe(job).set_gating(v1::GATING_STRICTLY_BALANCED);
                Moe(job).set_w_load(0.5f);
              },
              "model.layers[1].moe.w_load is 0.5: must be 0, because Load is a constant with "
              "GATING_STRICTLY_BALANCED"},
        Wrong{"StrictBatch",
              [](v1::Job& job) {
                Moe(job).set_gating(v1::GATING_STRICTLY_BALANCED);
                Moe(job).set_k(1);
              },
              "model.layers[1].moe.experts is 4: must divide k * tokens = 1 * 6 (lanes / waves * "
              "unroll), because every expert gets equally many tokens of a wave"},
        Wrong{"NoOptimizer", [](v1::Job& job) { job.mutable_optimizer()->clear_adam(); },
              "optimizer has no kind: set adam or sgd"},
        Wrong{"Beta1",
              [](v1::Job& job) { job.mutable_optimizer()->mutable_adam()->set_beta1(1); },
              "optimizer.adam.beta1 is 1: must be in [0, 1)"},
        Wrong{"Beta2",
              [](v1::Job& job) { job.mutable_optimizer()->mutable_adam()->set_beta2(-1); },
              "optimizer.adam.beta2 is -1: must be in [0, 1)"},
        Wrong{"Epsilon",
              [](v1::Job& job) { job.mutable_optimizer()->mutable_adam()->set_epsilon(0); },
              "optimizer.adam.epsilon is 0: must be greater than 0, and finite"},
        Wrong{"SecondMoment",
              [](v1::Job& job) {
                job.mutable_optimizer()->mutable_adam()->set_second_moment(
                    static_cast<v1::SecondMoment>(7));
              },
              "optimizer.adam.second_moment is 7: must be one of SECOND_MOMENT_FULL, "
              "SECOND_MOMENT_FACTORED, SECOND_MOMENT_PER_ROW"},
        Wrong{"ExpertsBeta1", [](v1::Job& job) { Experts(job).set_beta1(kNan); },
              "optimizer.experts.beta1 is nan: must be in [0, 1)"},
        Wrong{"ExpertsBesideSgd",
              [](v1::Job& job) {
                Experts(job);
                job.mutable_optimizer()->mutable_sgd();
              },
              "optimizer.experts is set beside sgd: it needs adam for the other parameters, "
              "because all share a learning rate"},
        Wrong{"ExpertsWithoutExperts",
              [](v1::Job& job) {
                Experts(job);
                job.mutable_model()->mutable_layers()->RemoveLast();
              },
              "optimizer.experts is set, but no layer has experts: leave it out, or give the "
              "model a moe layer"},
        Wrong{"Parameters",
              [](v1::Job& job) { Moe(job).set_parameters(static_cast<v1::Parameters>(5)); },
              "model.layers[1].moe.parameters is 5: must be one of PARAMETERS_FLOAT32, "
              "PARAMETERS_BFLOAT16"},
        Wrong{"ClipNorm", [](v1::Job& job) { job.mutable_optimizer()->set_clip_norm(-1); },
              "optimizer.clip_norm is -1: must be 0 or more, and finite"},
        Wrong{"NoRate", [](v1::Job& job) { Schedule(job).clear_base_rate(); },
              "optimizer.schedule.base_rate is 0: must be greater than 0, and finite"},
        Wrong{"RateNan", [](v1::Job& job) { Schedule(job).set_base_rate(kNan); },
              "optimizer.schedule.base_rate is nan: must be greater than 0, and finite"},
        Wrong{"WarmUp", [](v1::Job& job) { Schedule(job).mutable_inverse_sqrt(); },
              "optimizer.schedule.inverse_sqrt.warmup_steps is 0: must be at least 1"},
        Wrong{"ConstantEpochs",
              [](v1::Job& job) {
                Schedule(job).mutable_step_decay()->set_factor(0.5f);
                Schedule(job).mutable_step_decay()->set_constant_epochs(-1);
              },
              "optimizer.schedule.step_decay.constant_epochs is -1: must be at least 0"},
        Wrong{"DecayFactor",
              [](v1::Job& job) { Schedule(job).mutable_step_decay()->set_factor(1.5f); },
              "optimizer.schedule.step_decay.factor is 1.5: must be in (0, 1]"},
        Wrong{"NoDecayFactor", [](v1::Job& job) { Schedule(job).mutable_step_decay(); },
              "optimizer.schedule.step_decay.factor is 0: must be in (0, 1]"},
        Wrong{"Replicas", [](v1::Job& job) { job.mutable_training()->set_replicas(0); },
              "training.replicas is 0: must be between 1 and 1048576"},
        Wrong{"Unroll", [](v1::Job& job) { job.mutable_training()->set_unroll(-1); },
              "training.unroll is -1: must be between 1 and 1048576"},
        Wrong{"Waves", [](v1::Job& job) { job.mutable_training()->set_waves(3); },
              "training.waves is 3: must divide lanes (4)"},
        Wrong{"NoWaves", [](v1::Job& job) { job.mutable_training()->set_waves(0); },
              "training.waves is 0: must divide lanes (4)"},
        Wrong{"NoEnd", [](v1::Job& job) { job.mutable_training()->clear_steps(); },
              "training has no end: set steps or epochs"},
        Wrong{"Steps", [](v1::Job& job) { job.mutable_training()->set_steps(-1); },
              "training.steps is -1: must be at least 0"},
        Wrong{"Epochs", [](v1::Job& job) { job.mutable_training()->set_epochs(-1); },
              "training.epochs is -1: must be at least 0"},
        Wrong{"EvaluateEvery",
              [](v1::Job& job) { job.mutable_training()->set_evaluate_every(-1); },
              "training.evaluate_every is -1: must be at least 0"},
        Wrong{"DenseShards", [](v1::Job& job) { job.mutable_training()->set_dense_shards(-1); },
              "training.dense_shards is -1: must be at least 0"},
        Wrong{"EverySteps",
              [](v1::Job& job) { job.mutable_checkpointing()->set_every_steps(-1); },
              "checkpointing.every_steps is -1: must be at least 0"}),
    [](const auto& info) { return info.param.name; });

TEST(ValidateJobTest, ListsEveryWrongField) {
  absl::StatusOr<v1::Job> job = ParseJob(kJob, "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  Moe(*job).set_k(5);
  job->mutable_training()->set_lanes(0);
  EXPECT_EQ(ValidateJob(*job).message(),
            "model.layers[1].moe.k is 5: must be between 1 and experts (4)\n"
            "training.lanes is 0: must be between 1 and 1048576\n"
            "training.waves is 2: must divide lanes (0)");
}

TEST(ValidateJobTest, ARecurrentMoeMayHaveLinearExperts) {
  absl::StatusOr<v1::Job> job = ParseJob(kJob, "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  v1::RecurrentMoe& layer = RecurrentMoe(*job);
  layer.mutable_input()->clear_hidden();
  layer.mutable_recurrent()->clear_hidden();
  layer.mutable_recurrent()->set_gating(v1::GATING_SOFTMAX);
  layer.mutable_recurrent()->clear_k();
  layer.mutable_recurrent()->clear_parameters();
  layer.set_kept_states(100);
  job->mutable_optimizer()->mutable_experts();
  FillDefaults(&*job);
  EXPECT_EQ(layer.recurrent().k(), 4);
  EXPECT_EQ(layer.recurrent().parameters(), v1::PARAMETERS_FLOAT32);
  EXPECT_TRUE(ValidateJob(*job).ok()) << ValidateJob(*job);
}

TEST(ValidateJobTest, HierarchicalLimitsBelongToTheLevels) {
  absl::StatusOr<v1::Job> job = ParseJob(kJob, "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  for (int k_primary : {1, 2}) {
    for (int k : {1, 2}) {
      Moe(*job).set_k_primary(k_primary);
      Moe(*job).set_k(k);
      EXPECT_TRUE(ValidateJob(*job).ok()) << ValidateJob(*job);
    }
  }
}

TEST(ValidateJobTest, GroupsAreCheckedBeforeTheLevels) {
  absl::StatusOr<v1::Job> job = ParseJob(kJob, "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  Moe(*job).set_k_primary(1);
  Moe(*job).set_groups(3);
  EXPECT_EQ(ValidateJob(*job).message(),
            "model.layers[1].moe.groups is 3: must divide experts (4)");
  Moe(*job).set_groups(0);
  EXPECT_EQ(ValidateJob(*job).message(),
            "model.layers[1].moe.groups is 0: must divide experts (4)");
}

TEST(ValidateJobTest, StrictlyBalancedTakesAWholeNumberOfTokens) {
  absl::StatusOr<v1::Job> job = ParseJob(kJob, "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  // m = 2 * (4 / 2 * 3) / 4 = 3.
  Moe(*job).set_gating(v1::GATING_STRICTLY_BALANCED);
  EXPECT_TRUE(ValidateJob(*job).ok()) << ValidateJob(*job);
  // The waves' lanes count, not the replica's: 2 * (4 / 4 * 3) / 4 = 1.5.
  job->mutable_training()->set_waves(4);
  EXPECT_FALSE(ValidateJob(*job).ok());
}

TEST(ParseJobTest, SoftmaxGatingTakesAllExpertsByDefault) {
  const absl::StatusOr<v1::Job> job = ParseJob(
      Changed("k: 2\n      hidden: 16\n      groups: 2\n      gating: GATING_NOISY_TOP_K",
              "hidden: 16\n      groups: 2\n      gating: GATING_SOFTMAX"),
      "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->model().layers(1).moe().k(), 4);
}

TEST(ValidateJobTest, StepsOrEpochsOrBoth) {
  absl::StatusOr<v1::Job> job = ParseJob(kJob, "job.textproto");
  ASSERT_TRUE(job.ok()) << job.status();
  job->mutable_training()->set_epochs(2);
  EXPECT_TRUE(ValidateJob(*job).ok());
  job->mutable_training()->clear_steps();
  EXPECT_TRUE(ValidateJob(*job).ok());
}

}  // namespace
}  // namespace moe
