// A server's answers as a worker reads them: refused as wrong, or taken without a byte out of bounds.
//
// An input is which call is made, then an answer for each of its requests. An answer comes under the
// key of its request, as ShardStream lets no other pass.
#include <glog/logging.h>

#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "client/remote_experts.h"
#include "client/remote_parameters.h"
#include "client/remote_tables.h"
#include "common/tensor/bytes.h"
#include "tests/fuzz/target.h"
#include "tests/server/made_step.h"

namespace moe::fuzz {
namespace {

enum Call : uint8_t { kForward, kBackward, kPull, kClose, kRows, kScore, kCalls };
// Beside the call: whose layer is hierarchical.
constexpr uint8_t kHierarchical = 128;

constexpr uint32_t kReplica = 0;
constexpr int32_t kTokens = 3;
// [choices]: of tokens 0, 0 and 2.
const std::vector<int32_t> kOffset = {0, 2, 2, 3};
const std::vector<int32_t> kExpert = {1, 4, 0};
const std::vector<int32_t> kGroup = {0, 1, 0};
const std::vector<float> kGate = {0.5f, 0.25f, 1};
const std::vector<int32_t> kWords = {0, 3, 8};

v1::Job TablesJob() {
  v1::Job job = testing::MadeJob("adam {} clip_norm: 1");
  job.mutable_model()->mutable_tables()->set_shards(2);
  job.mutable_model()->mutable_tables()->set_candidates(3);
  return job;
}

// Has an answer for everything.
class CannedStream final : public ShardStream {
 public:
  explicit CannedStream(Reader* input) : input_(*input) {}
  const std::string& peer() const override { return peer_; }
  absl::Status Send(v1::ExchangeRequest) override { return absl::OkStatus(); }
  absl::StatusOr<Received<v1::ExchangeResponse>> Await(const ExchangeKey& key,
                                                       absl::Time) override {
    const std::string_view bytes = input_.TakeBytes(input_.Take<uint16_t>());
    v1::ExchangeResponse response;
    if (response.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) &&
        KeyOf(response) == key) {
      return response;
    }
    return absl::UnavailableError("no such answer");
  }
  void Cancel(const absl::Status&) override {}

 private:
  const std::string peer_ = "server/s0";
  Reader& input_;
};

class Worker {
 public:
  Worker(bool hierarchical, Reader* input)
      : plan_(MakeModelPlan(TablesJob())), layout_(LayoutOf(hierarchical)) {
    servers_.map.servers.emplace_back().id = "server/s0";
    for (size_t i = 0; i < plan_.shards.size(); ++i) {
      servers_.map.server_of_shard.push_back(0);
      servers_.map.servers[0].shards.push_back(static_cast<int32_t>(i));
    }
    servers_.map.workers = 1;
    servers_.map.layouts[{testing::kLayer, 0}] = layout_;
    servers_.streams.push_back(std::make_unique<CannedStream>(input));
  }

  absl::Status Make(uint8_t call) {
    switch (call) {
      case kForward:
        return Forward();
      case kBackward:
        return Backward();
      case kPull:
        return Pull();
      case kClose:
        return Close();
      case kRows:
        return Rows();
      default:
        return Score();
    }
  }

 private:
  static ExpertLayout LayoutOf(bool hierarchical) {
    ExpertLayout layout;
    layout.in = layout.out = testing::kWidth;
    layout.experts = testing::kExperts;
    layout.groups = testing::kGroups;
    layout.servers = 1;
    layout.hierarchical = hierarchical;
    layout.k = hierarchical ? 2 : 0;
    layout.server_of_group = {0, 0};
    return layout;
  }
  static v1::FrameId Id() {
    v1::FrameId id;
    id.set_layer(testing::kLayer);
    id.set_mode(v1::MODE_TRAIN);
    return id;
  }
  RoutingPlan Routes() const {
    return RoutingPlan(layout_, kOffset, layout_.hierarchical ? kGroup : kExpert, kGate);
  }

  absl::Status Forward() {
    RemoteExperts experts(servers_);
    const RoutingPlan plan = Routes();
    std::vector<float> y(kTokens * layout_.out);
    ChosenPairs chosen;
    const ForwardResult result = {.replica = kReplica,
                                  .plan = &plan,
                                  .y = y.data(),
                                  .chosen = layout_.hierarchical ? &chosen : nullptr};
    BalanceTotals totals;
    const absl::Status status = experts.AwaitForward(Id(), {&result, 1}, &totals);
    for (const int32_t expert : chosen.expert) {
      CHECK(!status.ok() || (expert >= 0 && expert < testing::kExperts));
    }
    return status;
  }

  absl::Status Backward() {
    RemoteExperts experts(servers_);
    const RoutingPlan plan = Routes();
    std::vector<float> dx(kTokens * layout_.in), dgate(plan.choices());
    std::vector<double> dload(layout_.groups);
    const BackwardResult result = {
        .replica = kReplica,
        .plan = &plan,
        .dx = dx.data(),
        .dgate = dgate.data(),
        .dload_primary = layout_.hierarchical ? dload.data() : nullptr};
    return experts.AwaitBackward(Id(), {&result, 1});
  }

  RemoteParameters Parameters() {
    return RemoteParameters(servers_, plan_, {kReplica}, testing::kReplicas, 1);
  }

  absl::Status Pull() {
    RemoteParameters parameters = Parameters();
    std::vector<std::vector<float>> dense;
    std::vector<std::span<float>> spans;
    for (const ShardSpec& shard : plan_.shards) {
      if (shard.kind == ShardKind::kDense) dense.emplace_back(plan_.SizeOf(shard));
    }
    for (std::vector<float>& values : dense) spans.emplace_back(values);
    absl::Status status = parameters.PullDense(0, spans);
    status.Update(parameters.PullReplicaState(0, kReplica).status());
    return status;
  }

  absl::Status Close() {
    StepClose close;
    for (const ShardSpec& shard : plan_.shards) {
      if (shard.kind != ShardKind::kDense) continue;
      close.gradients[kReplica].emplace_back(plan_.SizeOf(shard));
    }
    close.embedding_gradients[kReplica] = {};
    close.softmax_gradients[kReplica] = {};
    close.replica_states[kReplica] = "state";
    const absl::StatusOr<StepClosed> closed = Parameters().Close(std::move(close));
    if (closed.ok()) CHECK_GE(closed->gradient_norm, 0);
    return closed.status();
  }

  absl::Status Rows() {
    RemoteTables tables(servers_, plan_, testing::kWidth);
    std::vector<float> out(kWords.size() * tables.columns(Table::kSoftmax));
    absl::Status status = tables.SendPull(0, PullFor::kTraining, Table::kSoftmax, kWords);
    status.Update(tables.AwaitPull(0, Table::kSoftmax, kWords, std::span<float>(out)));
    return status;
  }

  absl::Status Score() {
    RemoteTables tables(servers_, plan_, testing::kWidth);
    const std::vector<float> x(kWords.size() * testing::kWidth);
    const ScoreCall call = {.replica = kReplica, .x = x.data(), .target = kWords};
    return tables.Score(0, 0, 0, {&call, 1}).status();
  }

  const ModelPlan plan_;
  const ExpertLayout layout_;
  ServerSet servers_;
};

// ---- good answers

void PutAnswer(const v1::ExchangeResponse& response, std::string* input) {
  const std::string bytes = response.SerializeAsString();
  Put(static_cast<uint16_t>(bytes.size()), input);
  *input += bytes;
}

std::string FloatsOf(int64_t count) {
  return testing::Bytes(std::vector<float>(count, 0.5f));
}

void SetId(v1::FrameId* id) {
  id->set_layer(testing::kLayer);
  id->set_mode(v1::MODE_TRAIN);
}

std::string ForwardAnswer(bool hierarchical) {
  std::string input(1, static_cast<char>(kForward | (hierarchical ? kHierarchical : 0)));
  v1::ExchangeResponse response;
  SetId(response.mutable_forward()->mutable_id());
  v1::ForwardReply& reply = *response.mutable_forward()->add_replies();
  for (const uint32_t rows : {2, 1}) {
    v1::GroupOutput& group = *reply.add_groups();
    group.set_group(reply.groups_size() - 1);
    group.set_y(FloatsOf(rows * testing::kWidth));
    group.set_tokens(kTokens);
    if (!hierarchical) {
      for (int e = 0; e < testing::kPerGroup; ++e) {
        group.add_importance(0.5);
        group.add_load(1);
      }
      continue;
    }
    group.mutable_importance_spread()->set_mean(1);
    group.mutable_load_spread()->set_mean(1);
    std::vector<uint32_t> row, expert;
    for (uint32_t r = 0; r < rows; ++r) {
      for (const uint32_t e : {0, 2}) {
        row.push_back(r);
        expert.push_back(e);
      }
    }
    PutArray(row, group.mutable_chosen()->mutable_row());
    PutArray(expert, group.mutable_chosen()->mutable_expert());
  }
  PutAnswer(response, &input);
  return input;
}

std::string BackwardAnswer(bool hierarchical) {
  std::string input(1, static_cast<char>(kBackward | (hierarchical ? kHierarchical : 0)));
  v1::ExchangeResponse response;
  SetId(response.mutable_backward()->mutable_id());
  v1::BackwardReply& reply = *response.mutable_backward()->add_replies();
  for (const uint32_t rows : {2, 1}) {
    v1::GroupGradient& group = *reply.add_groups();
    group.set_group(reply.groups_size() - 1);
    group.set_dx(FloatsOf(rows * testing::kWidth));
    group.set_dgate(FloatsOf(rows));
  }
  PutAnswer(response, &input);
  return input;
}

void AddContent(const std::string& shard, std::string content, std::string* input) {
  v1::ExchangeResponse response;
  v1::ShardContent& added = *response.mutable_pull()->add_shards();
  added.set_shard(shard);
  added.set_content(std::move(content));
  PutAnswer(response, input);
}

std::string PullAnswers(const ModelPlan& plan) {
  std::string input(1, static_cast<char>(kPull));
  for (const ShardSpec& shard : plan.shards) {
    if (shard.kind == ShardKind::kDense) {
      AddContent(shard.id, FloatsOf(plan.SizeOf(shard)), &input);
    }
  }
  AddContent("replica/0", "state", &input);
  return input;
}

std::string CloseAnswers(const ModelPlan& plan) {
  std::string input(1, static_cast<char>(kClose));
  v1::ExchangeResponse response;
  response.mutable_close()->set_version(0);
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    v1::TensorSquareSum& sum = *response.mutable_close()->add_square_sums();
    sum.set_tensor(i);
    sum.set_sum(0.5);
  }
  PutAnswer(response, &input);
  v1::ExchangeResponse applied;
  applied.mutable_apply()->set_version(1);
  PutAnswer(applied, &input);
  return input;
}

// The vocabulary's 9 words are on two shards.
std::string RowsAnswers() {
  std::string input(1, static_cast<char>(kRows));
  AddContent("softmax/rows0", FloatsOf(2 * (testing::kWidth + 1)), &input);
  AddContent("softmax/rows1", FloatsOf(testing::kWidth + 1), &input);
  return input;
}

std::string ScoreAnswer() {
  std::string input(1, static_cast<char>(kScore));
  v1::ExchangeResponse response;
  v1::ScoreReply& reply = *response.mutable_score()->add_replies();
  for (const char* shard : {"softmax/rows0", "softmax/rows1"}) {
    v1::ShardScore& score = *reply.add_shards();
    score.set_shard(shard);
    score.set_largest(FloatsOf(static_cast<int64_t>(kWords.size())));
    PutArray(std::vector<double>(kWords.size(), 2), score.mutable_sum());
    score.set_target(FloatsOf(static_cast<int64_t>(kWords.size())));
  }
  PutAnswer(response, &input);
  return input;
}

std::map<std::string, std::string> GoodAnswers() {
  const ModelPlan plan = MakeModelPlan(TablesJob());
  return {{"forward", ForwardAnswer(false)},
          {"forward_h", ForwardAnswer(true)},
          {"backward", BackwardAnswer(false)},
          {"backward_h", BackwardAnswer(true)},
          {"pull", PullAnswers(plan)},
          {"close", CloseAnswers(plan)},
          {"rows", RowsAnswers()},
          {"score", ScoreAnswer()}};
}

absl::Status Try(Reader input) {
  const uint8_t call = input.Take<uint8_t>();
  return Worker((call & kHierarchical) != 0, &input)
      .Make(static_cast<uint8_t>(call & ~kHierarchical) % kCalls);
}

}  // namespace

std::map<std::string, std::string> Seeds() {
  std::map<std::string, std::string> seeds = GoodAnswers();
  // Else they would lead nowhere.
  for (const auto& [name, input] : seeds) {
    const absl::Status status = Try(Reader(input));
    CHECK(status.ok()) << name << ": " << status;
  }
  seeds["empty"] = "";
  return seeds;
}

}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)moe::fuzz::Try(moe::fuzz::Reader(data, size));
  return 0;
}
