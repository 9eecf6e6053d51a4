#include "common/job/step_traffic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/job/model_plan.h"
#include "common/job/step_memory.h"
#include "proto/moe/v1/expert.pb.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

// Numbers of two bytes, which the model takes for steps and sequences.
constexpr uint64_t kLater = 300;
// 2 replicas of 2 lanes by 3 time steps: micro-batches of T = 6 tokens.
constexpr int kTokens = 6;
constexpr int kWidth = 4;
// Every token goes to all experts, so that all numbers are whole: 4 in 2 groups.
constexpr char kFlat[] =
    "d_model: 4 vocabulary: 10 layers { lstm { hidden: 4 } } layers { moe { experts: 4 "
    "hidden: 8 groups: 2 gating: GATING_SOFTMAX } }";
constexpr char kHierarchical[] =
    "d_model: 4 vocabulary: 10 layers { lstm { hidden: 4 } } layers { moe { experts: 4 "
    "k_primary: 2 k: 2 hidden: 8 groups: 2 gating: GATING_NOISY_TOP_K } }";

struct Planned {
  explicit Planned(const std::string& model, const std::string& training = "replicas: 2")
      : job(JobWith(model, training)), plan(MakeModelPlan(job)), traffic(job, plan) {}

  const v1::Job job;
  const ModelPlan plan;
  const StepTraffic traffic;
};

std::string Zeros(int64_t count, int64_t size = 4) {
  return std::string(count * size, '\0');
}

// On the stream: gRPC's 5 bytes, and 9 for each frame of 16 KiB.
double Size(const google::protobuf::Message& message) {
  const double bytes = 5 + static_cast<double>(message.ByteSizeLong());
  return bytes + 9 * std::ceil(bytes / 16384);
}

v1::ExchangeRequest Request() {
  v1::ExchangeRequest request;
  request.set_generation(1);
  request.set_checksum(1);
  request.set_sequence(kLater);
  return request;
}
v1::ExchangeResponse Response() {
  v1::ExchangeResponse response;
  response.set_generation(1);
  response.set_checksum(1);
  return response;
}

void SetId(v1::FrameId* id) {
  id->set_step(kLater);
  id->set_layer(1);
  id->set_mode(v1::MODE_TRAIN);
}

// The messages of one call with the frames of both replicas and all groups.
struct Messages {
  v1::ExchangeRequest forward = Request();
  v1::ExchangeResponse forward_reply = Response();
  v1::ExchangeRequest backward = Request();
  v1::ExchangeResponse backward_reply = Response();
};

void SetSpread(v1::Spread* spread) {
  spread->set_mean(1);
  spread->set_m2(1);
}
void SetMoments(v1::Moments* moments) {
  moments->set_mean(1);
  moments->set_variance(1);
}

Messages MakeMessages(bool hierarchical) {
  Messages m;
  SetId(m.forward.mutable_forward()->mutable_id());
  SetId(m.forward_reply.mutable_forward()->mutable_id());
  SetId(m.backward.mutable_backward()->mutable_id());
  SetId(m.backward_reply.mutable_backward()->mutable_id());
  for (uint32_t replica = 0; replica < 2; ++replica) {
    auto& frame = *m.forward.mutable_forward()->add_frames();
    auto& reply = *m.forward_reply.mutable_forward()->add_replies();
    auto& gradient = *m.backward.mutable_backward()->add_frames();
    auto& answer = *m.backward_reply.mutable_backward()->add_replies();
    frame.set_replica(replica);
    reply.set_replica(replica);
    gradient.set_replica(replica);
    answer.set_replica(replica);
    frame.set_tokens(kTokens);
    frame.set_token(Zeros(kTokens));
    frame.set_x(Zeros(kTokens * kWidth));
    gradient.set_dy(Zeros(kTokens * kWidth));
    if (hierarchical) {
      SetMoments(gradient.mutable_importance());
      SetMoments(gradient.mutable_load());
    }
    for (int group = 0; group < 2; ++group) {
      // Both experts of each of the two groups.
      const int pairs = 2 * kTokens;
      const int choices = hierarchical ? kTokens : pairs;
      auto& routing = *frame.add_groups();
      routing.set_group(group);
      routing.set_row(Zeros(choices));
      routing.set_gate(Zeros(choices));
      auto& output = *reply.add_groups();
      output.set_group(group);
      output.set_y(Zeros(kTokens * kWidth));
      output.set_tokens(2 * kTokens);
      auto& dx = *answer.add_groups();
      dx.set_group(group);
      dx.set_dx(Zeros(kTokens * kWidth));
      dx.set_dgate(Zeros(choices));
      if (hierarchical) {
        routing.add_load(1);
        output.mutable_chosen()->set_group(group);
        output.mutable_chosen()->set_row(Zeros(pairs));
        output.mutable_chosen()->set_expert(Zeros(pairs));
        SetSpread(output.mutable_importance_spread());
        SetSpread(output.mutable_load_spread());
        dx.set_dload_primary(1);
      } else {
        routing.set_expert(Zeros(choices));
        for (int expert = 0; expert < 2; ++expert) {
          routing.add_importance(1);
          routing.add_load(1);
          output.add_importance(1);
          output.add_load(1);
        }
      }
    }
  }
  return m;
}

void ExpectCall(const CallBytes& call, const Messages& messages) {
  // The number of group 0 isn't sent, which the model doesn't know: two bytes of each frame, or four.
  constexpr double kNumbers = 2 * 4;
  EXPECT_NEAR(call.forward, Size(messages.forward), kNumbers);
  EXPECT_NEAR(call.forward_reply, Size(messages.forward_reply), kNumbers);
  EXPECT_EQ(call.backward, Size(messages.backward));
  EXPECT_NEAR(call.backward_reply, Size(messages.backward_reply), kNumbers);
}

TEST(StepTrafficTest, CallsAreAsLongAsTheirMessages) {
  const std::vector<uint32_t> owned = {0, 1};
  for (const bool hierarchical : {false, true}) {
    const Planned planned(hierarchical ? kHierarchical : kFlat);
    const Mixture& mixture = planned.traffic.mixtures().front();
    ExpectCall(planned.traffic.Call(mixture, 2, owned), MakeMessages(hierarchical));
    EXPECT_EQ(planned.traffic.Call(mixture, 0, owned).forward, 0);
  }
}

TEST(StepTrafficTest, LongMessagesHaveFrames) {
  // 2 * 1,024 lanes: 6,144 tokens with rows of 16 bytes, 98,304 of them: more than 6 frames of 16 KiB.
  const Planned planned(kFlat, "replicas: 2 lanes: 2048");
  const std::vector<uint32_t> owned = {0};
  const CallBytes call = planned.traffic.Call(planned.traffic.mixtures()[0], 2, owned);
  v1::ExchangeRequest backward = Request();
  SetId(backward.mutable_backward()->mutable_id());
  backward.mutable_backward()->add_frames()->set_dy(Zeros(6144 * kWidth));
  EXPECT_EQ(call.backward, Size(backward));
  EXPECT_EQ(Size(backward) - static_cast<double>(backward.ByteSizeLong()), 5 + 9 * 7);
}

TEST(StepTrafficTest, AStepIsItsMessages) {
  // Two waves of two lanes each, so of the same micro-batches.
  const Planned planned(kFlat, "replicas: 2 lanes: 4 waves: 2");
  const std::vector<uint32_t> owned = {0, 1};
  const StepBytes step = planned.traffic.Between(planned.plan.shards, owned);
  const CallBytes call = planned.traffic.Call(planned.traffic.mixtures()[0], 2, owned);
  EXPECT_EQ(step.activations_out, 2 * call.forward);
  EXPECT_EQ(step.activations_back, 2 * call.forward_reply);
  EXPECT_EQ(step.gradients_out, 2 * call.backward);
  EXPECT_EQ(step.gradients_back, 2 * call.backward_reply);
  EXPECT_EQ(step.table_rows, 0);
  EXPECT_EQ(step.table_gradients, 0);

  double requests = 0;
  double parameters = 0;
  v1::ExchangeRequest request = Request();
  v1::CloseRequest& close = *request.mutable_close();
  close.set_step(kLater);
  close.add_replicas(0);
  close.add_replicas(1);
  close.set_learning_rate(1);
  for (const ShardSpec& shard : planned.plan.shards) {
    if (shard.kind == ShardKind::kDense) {
      v1::ExchangeRequest asks = Request();
      asks.mutable_pull()->add_shards(shard.id);
      asks.mutable_pull()->set_version(kLater);
      requests += Size(asks);
      v1::ExchangeResponse pulled = Response();
      pulled.mutable_pull()->set_version(kLater);
      pulled.mutable_pull()->set_sequence(kLater);
      v1::ShardContent& content = *pulled.mutable_pull()->add_shards();
      content.set_shard(shard.id);
      content.set_content(Zeros(planned.plan.SizeOf(shard)));
      parameters += Size(pulled);
      // Both replicas are the root of their tree.
      v1::GradientNode& gradient = *close.add_gradients();
      gradient.set_shard(shard.id);
      gradient.set_level(1);
      gradient.set_gradient(Zeros(planned.plan.SizeOf(shard)));
    } else if (shard.kind == ShardKind::kReplica) {
      v1::ShardContent& state = *close.add_replica_states();
      state.set_shard(shard.id);
      state.set_content(Zeros(CarriedStateBytes(planned.job), 1));
    }
  }
  EXPECT_EQ(step.requests, requests);
  EXPECT_EQ(step.dense_parameters, parameters);
  EXPECT_EQ(step.closes(), Size(request));
  v1::ExchangeResponse closed = Response();
  closed.mutable_close()->set_step(kLater);
  closed.mutable_close()->set_version(kLater);
  EXPECT_EQ(step.answers, Size(closed));
}

TEST(StepTrafficTest, AServerGetsOnlyTheRowsOfItsGroups) {
  // 2 of 8 experts for each token, in 4 groups.
  const Planned planned(
      "d_model: 512 vocabulary: 10 layers { moe { experts: 8 k: 2 hidden: 8 groups: 4 "
      "gating: GATING_NOISY_TOP_K } }",
      "replicas: 1 lanes: 1024");
  const std::vector<uint32_t> owned = {0};
  const Mixture& mixture = planned.traffic.mixtures()[0];
  const double tokens = 1024 * 3;
  const double row = 4 * 512;
  // With two of four groups: a token has none of its two experts there with probability 4/8 * 3/7.
  const CallBytes half = planned.traffic.Call(mixture, 2, owned);
  EXPECT_NEAR(half.backward / (tokens * (1 - 12.0 / 56) * row), 1, 0.002);
  // Back come rows of each group: one of two experts of a group with probability 1 - 6/8 * 5/7.
  EXPECT_NEAR(half.backward_reply / (tokens * 2 * (1 - 30.0 / 56) * row), 1, 0.01);
}

TEST(StepTrafficTest, RowsOfTablesGoBothWays) {
  const Planned planned(
      "d_model: 64 vocabulary: 1000 tables { shards: 2 candidates: 100 } "
      "layers { lstm { hidden: 64 } }",
      "replicas: 2");
  const std::vector<uint32_t> owned = {0, 1};
  const std::vector<uint32_t> first = {0};
  const StepBytes both = planned.traffic.Between(planned.plan.shards, owned);
  const StepBytes one = planned.traffic.Between(planned.plan.shards, first);
  const TableTraffic tables(planned.job, true);
  // Rows of 64 or 65 floats with their numbers.
  const auto rows = static_cast<double>(tables.Bytes(planned.plan.shards, 1));
  EXPECT_NEAR(one.table_gradients / rows, 1, 0.01);
  EXPECT_NEAR(one.table_rows / rows, 64.0 / 65, 0.01);
  // Words that both replicas have are pulled once.
  EXPECT_LT(both.table_rows, 2 * one.table_rows);
  EXPECT_GT(both.table_rows, one.table_rows);
}

TEST(StepTrafficTest, ARecurrentMoeIsAskedAgain) {
  const std::string layer =
      "d_model: 4 vocabulary: 10 layers { recurrent_moe { hidden: 4 "
      "input { experts: 2 groups: 1 gating: GATING_SOFTMAX } "
      "recurrent { experts: 2 groups: 1 gating: GATING_SOFTMAX } ";
  const std::vector<uint32_t> owned = {0};
  const auto repeated = [&](int kept) {
    const Planned planned(absl::StrCat(layer, "kept_states: ", kept, " } }"),
                          "replicas: 1 unroll: 4");
    const Mixture& recurrent = planned.traffic.mixtures()[1];
    EXPECT_EQ(planned.traffic.Repeated(planned.traffic.mixtures()[0]), 0);
    return planned.traffic.Repeated(recurrent);
  };
  EXPECT_EQ(repeated(0), 0);
  // With the first state alone 4 + 3 + 2 + 1 time steps, the first 4 of which are the forward pass.
  EXPECT_EQ(repeated(1), 6);
  // With all states each time step but the last once more.
  EXPECT_EQ(repeated(4), 3);
  EXPECT_EQ(repeated(9), 3);
  const Planned kept(layer + "} }", "replicas: 1 unroll: 4");
  const Planned again(layer + "kept_states: 1 } }", "replicas: 1 unroll: 4");
  const StepBytes less = kept.traffic.Between(kept.plan.shards, owned);
  const StepBytes more = again.traffic.Between(again.plan.shards, owned);
  const CallBytes call = kept.traffic.Call(kept.traffic.mixtures()[1], 1, owned);
  EXPECT_EQ(more.activations_back - less.activations_back, 6 * call.forward_reply);
  EXPECT_GT(more.activations_out, less.activations_out);
  EXPECT_EQ(more.gradients_back, less.gradients_back);
}

}  // namespace
}  // namespace moe
