#include "client/cluster_client.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>

#include "glog/logging.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "tests/client/fake_server.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using Responses = std::vector<v1::ExchangeResponse>;

constexpr int64_t kWidth = 4;
constexpr int32_t kExperts = 8;
constexpr int32_t kGroups = 4;
constexpr int32_t kPerGroup = kExperts / kGroups;
constexpr uint32_t kReplicas = 3;
constexpr uint32_t kLayer = 1;

v1::Job MakeJob(float clip_norm) {
  v1::Job job;
  CHECK(google::protobuf::TextFormat::ParseFromString(
      R"pb(
        name: "test"
        seed: 1
        model {
          d_model: 4
          vocabulary: 10
          layers { lstm { hidden: 4 } }
          layers {
            moe { experts: 8 k: 3 hidden: 5 groups: 4 gating: GATING_NOISY_TOP_K }
          }
        }
        optimizer {
          sgd {}
          schedule {
            base_rate: 0.1
            constant {}
          }
        }
        training { replicas: 3 waves: 1 lanes: 1 unroll: 4 steps: 10 dense_shards: 2 }
      )pb",
      &job));
  job.mutable_optimizer()->set_clip_norm(clip_norm);
  return job;
}

template <typename T>
std::vector<T> ToVector(const std::string& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) {
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  }
  return values;
}

template <typename T>
std::string ToBytes(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()),
                     values.size() * sizeof(T));
}

// Three servers: s0 hosts groups 0 and 2, s1 groups 1 and 3, s2 no experts.
class ClusterClientTest : public testing::Test {
 protected:
  void Start(float clip_norm = 0, absl::Duration timeout = absl::Seconds(30)) {
    job_ = MakeJob(clip_norm);
    if (hierarchical_) {
      v1::Moe& moe = *job_.mutable_model()->mutable_layers(kLayer)->mutable_moe();
      moe.set_k_primary(2);
      moe.set_k(1);
    }
    plan_ = MakeModelPlan(job_);
    state_.set_generation(kFakeGeneration);
    *state_.mutable_job() = job_;
    for (const ShardSpec& shard : plan_.shards) {
      v1::ShardPlacement& placement = *state_.mutable_placement()->add_shards();
      placement.set_shard(shard.id);
      placement.set_server(shard.kind == ShardKind::kExpert
                               ? (shard.group % 2 == 0 ? "server/s0" : "server/s1")
                           : shard.id == "dense/0" ? "server/s0"
                                                   : "server/s2");
      if (!copies_) continue;
      const int next = (placement.server().back() - '0' + 1) % 3;
      placement.set_standby("server/s" + std::to_string(next));
    }
    for (int s = 0; s < 3; ++s) {
      const std::string id = "server/s" + std::to_string(s);
      servers_.push_back(std::make_unique<FakeServer>(
          id, [this, s](const v1::ExchangeRequest& request, Responses* responses) {
            return Answer(s, request, responses);
          }));
      v1::ServerAddress& address = *state_.add_servers();
      address.set_server(id);
      address.set_address(servers_.back()->address());
    }
    auto client = ClusterClient::Connect(
        state_, plan_,
        {.member = "worker/w0",
         .owned_replicas = owned_,
         .timeout = timeout,
         .reconnect_timeout = reconnect_timeout_,
         .on_wait = {},
         .go_on_without = [this](const std::string& server, const absl::Status& why) {
           lost_.push_back(server);
           why_ = why;
           return go_on_;
         }});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }
  // Whether the placement gives the server a copy.
  bool Hosts(int server, int shard) const {
    const std::string id = "server/s" + std::to_string(server);
    const v1::ShardPlacement& placed = state_.placement().shards(shard);
    return placed.server() == id || placed.standby() == id;
  }

  // Experts that scale by 10^expert, so that sums of groups depend on their order.
  static float Scale(int32_t expert) {
    return std::pow(10.0f, static_cast<float>(expert));
  }

  grpc::Status Answer(int server, const v1::ExchangeRequest& request,
                      Responses* responses) {
    v1::ExchangeResponse response;
    if (fail_) {
      const grpc::Status failed = fail_(server, request);
      if (!failed.ok()) return failed;
    }
    switch (request.message_case()) {
      case v1::ExchangeRequest::kForward:
        AnswerForward(server, request.forward(), response.mutable_forward());
        break;
      case v1::ExchangeRequest::kBackward:
        AnswerBackward(server, request.backward(), response.mutable_backward());
        break;
      case v1::ExchangeRequest::kPull:
        response.mutable_pull()->set_version(request.pull().version());
        for (const std::string& shard : request.pull().shards()) {
          v1::ShardContent& content = *response.mutable_pull()->add_shards();
          content.set_shard(shard);
          content.set_content(ContentOf(shard));
        }
        break;
      case v1::ExchangeRequest::kClose: {
        const uint64_t step = request.close().step();
        response.mutable_close()->set_step(step);
        const bool clips = job_.optimizer().clip_norm() > 0;
        response.mutable_close()->set_version(clips ? step : step + 1);
        for (int64_t tensor : clips ? TensorsOf(server) : std::vector<int64_t>()) {
          v1::TensorSquareSum& sum = *response.mutable_close()->add_square_sums();
          sum.set_tensor(tensor);
          sum.set_sum(SquareSum(tensor));
        }
        break;
      }
      case v1::ExchangeRequest::kApply:
        response.mutable_apply()->set_step(request.apply().step());
        response.mutable_apply()->set_version(request.apply().step() + 1);
        break;
      default:
        return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "unexpected message");
    }
    if (spoil_) spoil_(server, &response);
    if (response.message_case() != v1::ExchangeResponse::MESSAGE_NOT_SET) {
      responses->push_back(std::move(response));
    }
    return grpc::Status::OK;
  }

  void AnswerForward(int server, const v1::ForwardRequest& request,
                     v1::ForwardResponse* response) {
    *response->mutable_id() = request.id();
    for (const v1::ForwardFrame& frame : request.frames()) {
      v1::ForwardReply& reply = *response->add_replies();
      reply.set_replica(frame.replica());
      const auto x = ToVector<float>(frame.x());
      for (const v1::GroupRouting& routing : frame.groups()) {
        v1::GroupOutput& output = *reply.add_groups();
        output.set_group(routing.group());
        std::map<uint32_t, std::vector<float>> rows;
        const auto row = ToVector<uint32_t>(routing.row());
        const auto expert = ToVector<uint32_t>(routing.expert());
        const auto gate = ToVector<float>(routing.gate());
        if (hierarchical_) {
          output.mutable_y()->assign(row.size() * kWidth * sizeof(float), '\0');
          output.mutable_chosen()->set_row(routing.row());
          output.mutable_chosen()->set_expert(ToBytes(std::vector<uint32_t>(row.size())));
          output.mutable_chosen()->set_gate(routing.gate());
          continue;
        }
        for (size_t p = 0; p < row.size(); ++p) {
          auto& sum = rows.try_emplace(row[p], kWidth, 0.0f).first->second;
          const int32_t e = static_cast<int32_t>(routing.group() * kPerGroup + expert[p]);
          for (int64_t i = 0; i < kWidth; ++i)
            sum[i] += gate[p] * Scale(e) * x[row[p] * kWidth + i];
        }
        for (const auto& [_, sum] : rows) output.mutable_y()->append(ToBytes(sum));
        if (request.id().mode() != v1::MODE_TRAIN) continue;
        for (int e = 0; e < kPerGroup; ++e) {
          output.add_importance(10 + routing.importance(e));
          output.add_load(20 + routing.load(e));
        }
        output.set_tokens(123);
      }
    }
    absl::MutexLock lock(&mutex_);
    for (const v1::ForwardFrame& frame : request.frames()) {
      for (const v1::GroupRouting& routing : frame.groups()) {
        frames_[server][{frame.replica(), routing.group()}] = routing;
      }
    }
  }

  // dx: dy times the number of pairs of the row in the group; dgate: 100 replica +
  // expert.
  void AnswerBackward(int server, const v1::BackwardRequest& request,
                      v1::BackwardResponse* response) {
    *response->mutable_id() = request.id();
    absl::MutexLock lock(&mutex_);
    for (const v1::BackwardFrame& frame : request.frames()) {
      v1::BackwardReply& reply = *response->add_replies();
      reply.set_replica(frame.replica());
      const auto dy = ToVector<float>(frame.dy());
      for (const auto& [key, routing] : frames_[server]) {
        if (key.first != frame.replica()) continue;
        v1::GroupGradient& gradient = *reply.add_groups();
        gradient.set_group(key.second);
        const auto row = ToVector<uint32_t>(routing.row());
        const auto expert = ToVector<uint32_t>(routing.expert());
        std::map<uint32_t, float> count;
        std::vector<float> dgate;
        for (size_t p = 0; p < row.size(); ++p) {
          count[row[p]] +=
              Scale(static_cast<int32_t>(key.second * kPerGroup + expert[p]));
          dgate.push_back(static_cast<float>(100 * frame.replica() +
                                             key.second * kPerGroup + expert[p]));
        }
        for (const auto& [r, n] : count) {
          std::vector<float> dx;
          for (int64_t i = 0; i < kWidth; ++i) dx.push_back(n * dy[r * kWidth + i]);
          gradient.mutable_dx()->append(ToBytes(dx));
        }
        gradient.set_dgate(ToBytes(dgate));
      }
    }
  }

  std::string ContentOf(const std::string& shard) {
    for (const ShardSpec& spec : plan_.shards) {
      if (spec.id != shard) continue;
      if (spec.kind == ShardKind::kReplica) return "state of " + shard;
      std::vector<float> values(plan_.SizeOf(spec));
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(i + shard.back());
      return ToBytes(values);
    }
    return "";
  }

  std::vector<int64_t> TensorsOf(int server) {
    std::vector<int64_t> tensors;
    for (size_t i = 0; i < plan_.shards.size(); ++i) {
      if (!Hosts(server, static_cast<int>(i))) continue;
      tensors.insert(tensors.begin(), plan_.shards[i].tensors.begin(),
                     plan_.shards[i].tensors.end());
    }
    return tensors;
  }
  static double SquareSum(int64_t tensor) { return tensor == 3 ? 1e16 : 1.0 + tensor; }

  // One replica's micro-batch and its plan.
  struct Batch {
    uint32_t replica;
    std::vector<int32_t> offset, expert;
    std::vector<float> gate, x, dy;
    std::vector<double> importance, load;
    std::unique_ptr<RoutingPlan> plan;
    std::vector<float> y, dx, dgate;
  };
  // Tokens have up to most_experts experts each, one after the other.
  Batch MakeBatch(uint32_t replica, int32_t tokens, int32_t most_experts) {
    std::mt19937 random(replica + 1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    Batch batch;
    batch.replica = replica;
    batch.offset.push_back(0);
    for (int32_t t = 0; t < tokens; ++t) {
      std::vector<int32_t> all(kExperts);
      for (int32_t e = 0; e < kExperts; ++e) all[e] = e;
      std::shuffle(all.begin(), all.end(), random);
      const int32_t chosen = t % (most_experts + 1);
      std::sort(all.begin(), all.begin() + chosen);
      batch.expert.insert(batch.expert.end(), all.begin(), all.begin() + chosen);
      batch.offset.push_back(static_cast<int32_t>(batch.expert.size()));
      for (int32_t j = 0; j < chosen; ++j) batch.gate.push_back(uniform(random));
    }
    for (int64_t i = 0; i < tokens * kWidth; ++i) {
      batch.x.push_back(uniform(random));
      batch.dy.push_back(uniform(random));
    }
    for (int e = 0; e < kExperts; ++e) {
      batch.importance.push_back(e);
      batch.load.push_back(2 * e);
    }
    batch.plan = std::make_unique<RoutingPlan>(client_->experts().layout(kLayer),
                                               batch.offset, batch.expert, batch.gate);
    batch.y.assign(batch.x.size(), 99);
    batch.dx.assign(batch.x.size(), 99);
    batch.dgate.assign(batch.gate.size(), 99);
    return batch;
  }

  static v1::FrameId Id(v1::Mode mode = v1::MODE_TRAIN) {
    v1::FrameId id;
    id.set_step(5);
    id.set_layer(kLayer);
    id.set_mode(mode);
    return id;
  }
  absl::Status Forward(std::vector<Batch>& batches, BalanceTotals* totals,
                       v1::Mode mode = v1::MODE_TRAIN) {
    std::vector<ForwardCall> calls;
    std::vector<ForwardResult> results;
    for (Batch& b : batches) {
      calls.push_back({b.replica, b.plan.get(), b.x.data(), b.importance, b.load});
      results.push_back({b.replica, b.plan.get(), b.y.data()});
    }
    const absl::Status sent = client_->experts().SendForward(Id(mode), calls);
    if (!sent.ok()) return sent;
    return client_->experts().AwaitForward(Id(mode), results, totals);
  }
  absl::Status Backward(std::vector<Batch>& batches) {
    std::vector<BackwardCall> calls;
    std::vector<BackwardResult> results;
    for (Batch& b : batches) {
      calls.push_back({b.replica, b.plan.get(), b.dy.data()});
      results.push_back({b.replica, b.plan.get(), b.dx.data(), b.dgate.data()});
    }
    const absl::Status sent = client_->experts().SendBackward(Id(), calls);
    if (!sent.ok()) return sent;
    return client_->experts().AwaitBackward(Id(), results);
  }
  std::vector<Batch> TwoBatches() {
    std::vector<Batch> batches;
    batches.push_back(MakeBatch(0, 13, 3));
    batches.push_back(MakeBatch(2, 7, 2));
    return batches;
  }

  // The close of the two owned replicas, with gradients in which the order of sums shows.
  StepClose MakeClose() {
    StepClose close;
    close.step = 5;
    close.learning_rate = 0.25;
    close.cut = true;
    for (const uint32_t replica : owned_) {
      close.replica_states[replica] = "new state " + std::to_string(replica);
      for (const ShardSpec& shard : plan_.shards) {
        if (shard.kind != ShardKind::kDense) continue;
        std::vector<float> gradient(plan_.SizeOf(shard));
        for (size_t i = 0; i < gradient.size(); ++i) {
          gradient[i] = static_cast<float>(1 + i) * static_cast<float>(replica + 1) / 7;
        }
        close.gradients[replica].push_back(std::move(gradient));
      }
    }
    return close;
  }

  std::vector<uint32_t> owned_ = {0, 2};
  // Of such a layer only forwards in evaluation are answered.
  bool hierarchical_ = false;
  // Second copies, each on the next server.
  bool copies_ = false;
  absl::Duration reconnect_timeout_ = absl::ZeroDuration();
  // What go_on_without was asked, and what it answers.
  std::vector<std::string> lost_;
  absl::Status why_;
  bool go_on_ = true;
  // How a server ends the stream instead of answering.
  std::function<grpc::Status(int server, const v1::ExchangeRequest&)> fail_;
  v1::Job job_;
  ModelPlan plan_;
  v1::ClusterState state_;
  std::function<void(int server, v1::ExchangeResponse*)> spoil_;
  absl::Mutex mutex_;
  // By server; by replica and group.
  std::map<int, std::map<std::pair<uint32_t, uint32_t>, v1::GroupRouting>> frames_;
  std::vector<std::unique_ptr<FakeServer>> servers_;
  std::unique_ptr<ClusterClient> client_;
};

TEST_F(ClusterClientTest, ForwardAddsGroupsInGroupOrderAcrossServers) {
  Start();
  std::vector<Batch> batches = TwoBatches();
  BalanceTotals totals;
  const absl::Status status = Forward(batches, &totals);
  ASSERT_TRUE(status.ok()) << status;
  for (const Batch& batch : batches) {
    std::vector<float> expected(batch.x.size());
    for (int32_t t = 0; t < batch.plan->tokens(); ++t) {
      for (int32_t g = 0; g < kGroups; ++g) {
        std::vector<float> inner(kWidth);
        for (int32_t j = batch.offset[t]; j < batch.offset[t + 1]; ++j) {
          const int32_t e = batch.expert[j];
          if (e / kPerGroup != g) continue;
          for (int64_t i = 0; i < kWidth; ++i) {
            inner[i] += batch.gate[j] * Scale(e) * batch.x[t * kWidth + i];
          }
        }
        for (int64_t i = 0; i < kWidth; ++i) expected[t * kWidth + i] += inner[i];
      }
    }
    EXPECT_EQ(batch.y, expected) << "replica " << batch.replica;
  }
  EXPECT_EQ(totals.tokens, 123u);
  for (int e = 0; e < kExperts; ++e) {
    EXPECT_EQ(totals.importance[e], 10 + e);
    EXPECT_EQ(totals.load[e], 20 + 2 * e);
  }
  // Hello and one frame a replica; nothing for the server without experts.
  EXPECT_EQ(servers_[0]->requests().size(), 2u);
  EXPECT_EQ(servers_[0]->requests()[1].forward().frames_size(), 2);
  EXPECT_EQ(servers_[2]->requests().size(), 1u);
}

TEST_F(ClusterClientTest, FramesWithoutRowsAreSent) {
  Start();
  std::vector<Batch> batches;
  batches.push_back(MakeBatch(0, 4, 0));
  batches.push_back(MakeBatch(2, 4, 0));
  ASSERT_TRUE(Forward(batches, nullptr).ok());
  EXPECT_EQ(batches[0].y, std::vector<float>(4 * kWidth));
  for (const int s : {0, 1}) {
    const v1::ForwardRequest request = servers_[s]->requests().at(1).forward();
    ASSERT_EQ(request.frames_size(), 2);
    EXPECT_EQ(request.frames(1).replica(), 2u);
    EXPECT_EQ(request.frames(1).tokens(), 4u);
    EXPECT_EQ(request.frames(1).x(), "");
    ASSERT_EQ(request.frames(1).groups_size(), 2);
    EXPECT_EQ(request.frames(1).groups(1).importance_size(), kPerGroup);
  }
}

TEST_F(ClusterClientTest, EvaluationSendsNoBalance) {
  Start();
  std::vector<Batch> batches = TwoBatches();
  for (Batch& batch : batches) batch.importance = batch.load = {};
  const absl::Status status = Forward(batches, nullptr, v1::MODE_EVALUATE);
  ASSERT_TRUE(status.ok()) << status;
  const auto request = servers_[0]->requests().at(1);
  EXPECT_EQ(request.forward().frames(0).groups(0).importance_size(), 0);
}

TEST_F(ClusterClientTest, BackwardAddsGroupsInOrderAndScattersGateGradients) {
  Start();
  std::vector<Batch> batches = TwoBatches();
  ASSERT_TRUE(Forward(batches, nullptr).ok());
  const absl::Status status = Backward(batches);
  ASSERT_TRUE(status.ok()) << status;
  for (const Batch& batch : batches) {
    std::vector<float> dx(batch.x.size());
    std::vector<float> dgate(batch.gate.size());
    for (int32_t t = 0; t < batch.plan->tokens(); ++t) {
      for (int32_t g = 0; g < kGroups; ++g) {
        float n = 0;
        for (int32_t j = batch.offset[t]; j < batch.offset[t + 1]; ++j) {
          if (batch.expert[j] / kPerGroup != g) continue;
          n += Scale(batch.expert[j]);
          dgate[j] = static_cast<float>(100 * batch.replica + batch.expert[j]);
        }
        for (int64_t i = 0; i < kWidth; ++i)
          dx[t * kWidth + i] += n * batch.dy[t * kWidth + i];
      }
    }
    EXPECT_EQ(batch.dx, dx) << "replica " << batch.replica;
    EXPECT_EQ(batch.dgate, dgate) << "replica " << batch.replica;
  }
}

TEST_F(ClusterClientTest, WrongForwardAnswersAreRefused) {
  Start();
  struct Case {
    const char* message;
    std::function<void(v1::ForwardResponse*)> spoil;
  };
  const std::vector<Case> cases = {
      {"1 replies instead of 2", [](auto* r) { r->mutable_replies()->RemoveLast(); }},
      {"no reply for replica 2", [](auto* r) { r->mutable_replies(1)->set_replica(1); }},
      {"1 groups instead of 2",
       [](auto* r) { r->mutable_replies(0)->mutable_groups()->RemoveLast(); }},
      {"group 0 in place of group 1",
       [](auto* r) { r->mutable_replies(0)->mutable_groups(0)->set_group(0); }},
      {"y has ",
       [](auto* r) {
         r->mutable_replies(0)->mutable_groups(0)->mutable_y()->append("x");
       }},
      {"3 values of importance and 2 of load instead of 2",
       [](auto* r) { r->mutable_replies(0)->mutable_groups(0)->add_importance(1); }},
      {"2 values of importance and 0 of load instead of 2",
       [](auto* r) { r->mutable_replies(0)->mutable_groups(0)->clear_load(); }},
      {"the totals of group 3 differ",
       [](auto* r) { r->mutable_replies(1)->mutable_groups(1)->set_load(0, 4); }},
      {"the totals of group 1 differ",
       [](auto* r) {
         for (auto& reply : *r->mutable_replies()) reply.mutable_groups(0)->set_tokens(1);
       }},
  };
  for (const Case& wrong : cases) {
    spoil_ = [&](int server, v1::ExchangeResponse* response) {
      if (server == 1) wrong.spoil(response->mutable_forward());
    };
    std::vector<Batch> batches = TwoBatches();
    BalanceTotals totals;
    const absl::Status status = Forward(batches, &totals);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << wrong.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(wrong.message));
    EXPECT_THAT(std::string(status.message()), HasSubstr("the answer of server/s1 at "));
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("to forward step 5 wave 0 layer 1"));
  }
}

TEST_F(ClusterClientTest, WhatSecondaryGatesChoseIsChecked) {
  hierarchical_ = true;
  Start();
  // Tokens 0 and 1 go to the groups 1 and 3, which are on server/s1; token 2 to group 0.
  const std::vector<int32_t> offset = {0, 2, 4, 5};
  const std::vector<int32_t> group = {1, 3, 1, 3, 0};
  const std::vector<float> gate = {0.25, 0.75, 0.5, 0.5, 1};
  const std::vector<float> x(3 * kWidth, 1);
  const RoutingPlan plan(client_->experts().layout(kLayer), offset, group, gate);
  ChosenPairs chosen;
  std::vector<float> y(x.size());
  const auto forward = [&](uint64_t step) {
    v1::FrameId id = Id(v1::MODE_EVALUATE);
    id.set_step(step);
    const ForwardCall call = {2, &plan, x.data(), {}, {}};
    const ForwardResult result = {2, &plan, y.data(), &chosen};
    EXPECT_TRUE(client_->experts().SendForward(id, {&call, 1}).ok());
    return client_->experts().AwaitForward(id, {&result, 1}, nullptr);
  };
  const absl::Status status = forward(0);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(chosen.token, testing::ElementsAre(2, 0, 1, 0, 1));
  EXPECT_THAT(chosen.expert, testing::ElementsAre(0, 2, 2, 6, 6));
  EXPECT_THAT(chosen.gate, testing::ElementsAre(1, 0.25, 0.5, 0.75, 0.5));

  struct Case {
    const char* message;
    std::function<void(v1::GroupRouting*)> spoil;
  };
  const std::vector<Case> cases = {
      {"1 rows, 1 experts and 1 gates are chosen instead of 2, 2 and 2",
       [](auto* c) {
         for (std::string* field :
              {c->mutable_row(), c->mutable_expert(), c->mutable_gate()}) {
           field->resize(4);
         }
       }},
      {"gate has 7 bytes, which is no multiple of 4",
       [](auto* c) { c->mutable_gate()->resize(7); }},
  };
  uint64_t step = 1;
  for (const Case& wrong : cases) {
    spoil_ = [&](int server, v1::ExchangeResponse* response) {
      if (server != 1) return;
      wrong.spoil(response->mutable_forward()
                      ->mutable_replies(0)
                      ->mutable_groups(1)
                      ->mutable_chosen());
    };
    const absl::Status refused = forward(step++);
    EXPECT_EQ(refused.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("the answer of server/s1 at "));
    EXPECT_THAT(std::string(refused.message()),
                HasSubstr(std::string("replica 2, group 3: ") + wrong.message));
  }
}

TEST_F(ClusterClientTest, WrongBackwardAnswersAreRefused) {
  Start();
  std::vector<Batch> batches = TwoBatches();
  ASSERT_TRUE(Forward(batches, nullptr).ok());
  for (const std::string field : {"dx", "dgate"}) {
    spoil_ = [&](int server, v1::ExchangeResponse* response) {
      if (server == 0) {
        v1::GroupGradient& gradient =
            *response->mutable_backward()->mutable_replies(1)->mutable_groups(1);
        (field == "dx" ? gradient.mutable_dx() : gradient.mutable_dgate())
            ->append("1234");
      }
    };
    const absl::Status status = Backward(batches);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("replica 2, group 2: " + field + " has "));
    EXPECT_THAT(std::string(status.message()), HasSubstr("server/s0 at "));
  }
}

TEST_F(ClusterClientTest, ASilentServerIsNamed) {
  Start(0, absl::Milliseconds(200));
  spoil_ = [](int server, v1::ExchangeResponse* response) {
    if (server == 1) response->Clear();
  };
  std::vector<Batch> batches = TwoBatches();
  const absl::Status status = Forward(batches, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("server/s1 at "));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("did not answer forward step 5 wave 0 layer 1 within 200ms"));
}

TEST_F(ClusterClientTest, CancelEndsEveryCall) {
  Start();
  const absl::Status cause = absl::AbortedError("worker/w1 is lost");
  client_->Cancel(cause);
  std::vector<Batch> batches = TwoBatches();
  EXPECT_EQ(Forward(batches, nullptr), cause);
  EXPECT_EQ(client_->parameters().Close(MakeClose()).status(), cause);
}

TEST_F(ClusterClientTest, PullsDenseAndReplicaShards) {
  Start();
  std::vector<std::vector<float>> values;
  std::vector<std::span<float>> spans;
  for (const ShardSpec& shard : plan_.shards) {
    if (shard.kind == ShardKind::kDense) values.emplace_back(plan_.SizeOf(shard));
  }
  for (auto& v : values) spans.emplace_back(v);
  const absl::Status status = client_->parameters().PullDense(3, spans);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(values.size(), 2u);
  EXPECT_EQ(ToBytes(values[0]), ContentOf("dense/0"));
  EXPECT_EQ(ToBytes(values[1]), ContentOf("dense/1"));
  const auto state = client_->parameters().PullReplicaState(3, 2);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(*state, "state of replica/2");

  spoil_ = [](int, v1::ExchangeResponse* response) {
    response->mutable_pull()->mutable_shards(0)->set_content("1234");
  };
  const absl::Status wrong = client_->parameters().PullDense(4, spans);
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("sent 4 bytes for shard dense/0"));
}

TEST_F(ClusterClientTest, CloseSendsMaximalNodesAndStates) {
  owned_ = {0, 1};
  Start();
  const auto closed = client_->parameters().Close(MakeClose());
  ASSERT_TRUE(closed.ok()) << closed.status();
  EXPECT_EQ(closed->gradient_norm, 0);
  const StepClose close = MakeClose();
  int nodes = 0;
  for (const auto& server : servers_) {
    const v1::CloseRequest request = server->requests().at(1).close();
    EXPECT_EQ(request.step(), 5u);
    EXPECT_EQ(request.learning_rate(), 0.25);
    EXPECT_TRUE(request.cut());
    EXPECT_THAT(request.replicas(), testing::ElementsAre(0u, 1u));
    for (const v1::GradientNode& node : request.gradients()) {
      ++nodes;
      const size_t shard = node.shard() == "dense/0" ? 0 : 1;
      EXPECT_EQ(server->id(), shard == 0 ? "server/s0" : "server/s2");
      EXPECT_EQ(node.level(), 1u);
      EXPECT_EQ(node.index(), 0u);
      std::vector<float> sum = close.gradients.at(0)[shard];
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += close.gradients.at(1)[shard][i];
      EXPECT_EQ(ToVector<float>(node.gradient()), sum);
    }
  }
  EXPECT_EQ(nodes, 2);
  const v1::CloseRequest with_states = servers_[2]->requests().at(1).close();
  ASSERT_EQ(with_states.replica_states_size(), 2);
  EXPECT_EQ(with_states.replica_states(1).shard(), "replica/1");
  EXPECT_EQ(with_states.replica_states(1).content(), "new state 1");
}

TEST_F(ClusterClientTest, CloseSendsEachReplicaThatHasNoOwnedSibling) {
  Start();  // owns 0 and 2 of 3
  ASSERT_TRUE(client_->parameters().Close(MakeClose()).ok());
  const v1::CloseRequest request = servers_[0]->requests().at(1).close();
  ASSERT_EQ(request.gradients_size(), 2);
  EXPECT_EQ(request.gradients(0).level(), 0u);
  EXPECT_EQ(request.gradients(0).index(), 0u);
  // Replica 3 doesn't exist, so replica 2 alone is the node above it.
  EXPECT_EQ(request.gradients(1).level(), 1u);
  EXPECT_EQ(request.gradients(1).index(), 1u);
  EXPECT_EQ(ToVector<float>(request.gradients(1).gradient()),
            MakeClose().gradients.at(2)[0]);
}

TEST_F(ClusterClientTest, ClippingAddsSquareSumsInTensorOrder) {
  Start(2.5f);
  const auto closed = client_->parameters().Close(MakeClose());
  ASSERT_TRUE(closed.ok()) << closed.status();
  double total = 0;
  for (size_t t = 0; t < plan_.tensors.size(); ++t)
    total += SquareSum(static_cast<int64_t>(t));
  EXPECT_EQ(closed->gradient_norm, std::sqrt(total));
  for (const auto& server : servers_) {
    const auto requests = server->requests();
    ASSERT_EQ(requests.size(), 3u);
    EXPECT_EQ(requests[2].apply().step(), 5u);
    EXPECT_EQ(requests[2].apply().scale(), 2.5 / std::sqrt(total));
  }
}

TEST_F(ClusterClientTest, ExpertsWithoutRowsHaveNoSquareSum) {
  Start(2.5f);
  double total = 0;
  for (const ShardSpec& shard : plan_.shards) {
    if (shard.kind != ShardKind::kDense) continue;
    for (const int64_t tensor : shard.tensors) total += SquareSum(tensor);
  }
  spoil_ = [&](int, v1::ExchangeResponse* response) {
    if (!response->has_close()) return;
    v1::CloseResponse dense_only = response->close();
    dense_only.clear_square_sums();
    for (const v1::TensorSquareSum& sum : response->close().square_sums()) {
      const std::string& name = plan_.tensors[sum.tensor()].name;
      if (name.find("expert") == std::string::npos) *dense_only.add_square_sums() = sum;
    }
    *response->mutable_close() = dense_only;
  };
  const auto closed = client_->parameters().Close(MakeClose());
  ASSERT_TRUE(closed.ok()) << closed.status();
  EXPECT_DOUBLE_EQ(closed->gradient_norm, std::sqrt(total));
}

TEST_F(ClusterClientTest, ASmallNormIsNotScaled) {
  Start(1e9f);
  ASSERT_TRUE(client_->parameters().Close(MakeClose()).ok());
  EXPECT_EQ(servers_[1]->requests().at(2).apply().scale(), 1.0);
}

TEST_F(ClusterClientTest, WrongSquareSumsAreRefused) {
  Start(1);
  struct Case {
    const char* message;
    std::function<void(v1::CloseResponse*)> spoil;
  };
  const std::vector<Case> cases = {
      {"sent no square sum of tensor ",
       [](auto* r) { r->mutable_square_sums()->RemoveLast(); }},
      {"sent two square sums of tensor ",
       [](auto* r) { *r->add_square_sums() = r->square_sums(0); }},
      {"which it doesn't host", [](auto* r) { r->add_square_sums()->set_tensor(1000); }},
      {" is not finite", [](auto* r) { r->mutable_square_sums(0)->set_sum(NAN); }},
      {"sent the square sum -4 of tensor ",
       [](auto* r) { r->mutable_square_sums(0)->set_sum(-4); }},
      {"is at version 9 after the close of step ", [](auto* r) { r->set_version(9); }},
  };
  uint64_t step = 0;
  for (const Case& wrong : cases) {
    spoil_ = [&](int server, v1::ExchangeResponse* response) {
      if (server == 2 && response->has_close()) wrong.spoil(response->mutable_close());
    };
    StepClose close = MakeClose();
    close.step = step++;
    const auto closed = client_->parameters().Close(std::move(close));
    EXPECT_FALSE(closed.ok());
    EXPECT_THAT(std::string(closed.status().message()), HasSubstr(wrong.message));
  }
}

// What a job with two copies does all the time: one forward, one backward and one close.
class StandbyClientTest : public ClusterClientTest {
 protected:
  void SetUp() override { copies_ = true; }
  // The server's stream breaks when it gets such a message.
  void Break(int server, v1::ExchangeRequest::MessageCase at) {
    fail_ = [=](int asked, const v1::ExchangeRequest& request) {
      return asked == server && request.message_case() == at
                 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "killed")
                 : grpc::Status::OK;
    };
  }
  // The results of a step, to be compared.
  struct Step {
    std::vector<std::vector<float>> numbers;
    double norm = 0;
    absl::Status status;
  };
  Step TakeStep() {
    Step step;
    std::vector<Batch> batches = TwoBatches();
    BalanceTotals totals;
    step.status = Forward(batches, &totals);
    if (step.status.ok()) step.status = Backward(batches);
    for (const Batch& batch : batches) {
      step.numbers.insert(step.numbers.end(), {batch.y, batch.dx, batch.dgate});
    }
    if (!step.status.ok()) return step;
    const auto closed = client_->parameters().Close(MakeClose());
    step.status = closed.status();
    if (closed.ok()) step.norm = closed->gradient_norm;
    return step;
  }
  // Of messages but Hello.
  size_t Asked(int server) const { return servers_[server]->requests().size() - 1; }
};

TEST_F(StandbyClientTest, BothServersAreSentTheSameAndItCountsOnce) {
  Start(/*clip_norm=*/1);
  const Step step = TakeStep();
  ASSERT_TRUE(step.status.ok()) << step.status;
  EXPECT_TRUE(lost_.empty());
  // Groups 0 and 2 are on s0 and s1, 1 and 3 on s1 and s2.
  const auto groups = [this](int server) {
    std::vector<uint32_t> groups;
    const v1::ForwardFrame frame = servers_[server]->requests().at(1).forward().frames(0);
    for (const v1::GroupRouting& routing : frame.groups()) {
      groups.push_back(routing.group());
    }
    return groups;
  };
  EXPECT_THAT(groups(0), testing::ElementsAre(0, 2));
  EXPECT_THAT(groups(1), testing::ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(groups(2), testing::ElementsAre(1, 3));
  // dense/0 is on s0 and s1, dense/1 on s2 and s0.
  const auto gradients = [this](int server) {
    std::map<std::string, std::vector<std::string>> sent;
    const v1::CloseRequest close = servers_[server]->requests().at(3).close();
    for (const v1::GradientNode& node : close.gradients()) {
      sent[node.shard()].push_back(node.gradient());
    }
    return sent;
  };
  EXPECT_EQ(gradients(0).at("dense/0"), gradients(1).at("dense/0"));
  EXPECT_EQ(gradients(0).at("dense/1"), gradients(2).at("dense/1"));

  copies_ = false;
  lost_.clear();
  client_.reset();
  servers_.clear();
  frames_.clear();
  state_.Clear();
  Start(/*clip_norm=*/1);
  const Step single = TakeStep();
  ASSERT_TRUE(single.status.ok()) << single.status;
  EXPECT_EQ(step.numbers, single.numbers);
  EXPECT_EQ(step.norm, single.norm);
}

TEST_F(StandbyClientTest, GoesOnWithoutAServerThatIsLost) {
  Start(/*clip_norm=*/1);
  const Step whole = TakeStep();
  using Case = v1::ExchangeRequest;
  for (const auto at : {Case::kForward, Case::kBackward, Case::kClose, Case::kApply}) {
    for (const int server : {0, 1, 2}) {
      client_.reset();
      servers_.clear();
      frames_.clear();
      state_.Clear();
      lost_.clear();
      Start(/*clip_norm=*/1);
      Break(server, at);
      const Step step = TakeStep();
      ASSERT_TRUE(step.status.ok()) << step.status;
      EXPECT_EQ(step.numbers, whole.numbers) << server << " at " << at;
      EXPECT_EQ(step.norm, whole.norm);
      EXPECT_THAT(lost_, testing::ElementsAre(servers_[server]->id()));
      EXPECT_THAT(std::string(why_.message()), HasSubstr(servers_[server]->id()));
      // Nothing is sent to it any more, and there is nothing to lose any more.
      const size_t before = Asked(server);
      fail_ = nullptr;
      frames_.clear();
      EXPECT_TRUE(TakeStep().status.ok());
      EXPECT_EQ(Asked(server), before);
      Break((server + 1) % 3, Case::kClose);
      EXPECT_EQ(TakeStep().status.code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(lost_.size(), 1u);
    }
  }
}

TEST_F(StandbyClientTest, AsksTheOtherForWhatALostOneWasAsked) {
  Start();
  Break(0, v1::ExchangeRequest::kPull);
  std::vector<std::vector<float>> values;
  std::vector<std::span<float>> spans;
  for (const ShardSpec& shard : plan_.shards) {
    if (shard.kind == ShardKind::kDense) values.emplace_back(plan_.SizeOf(shard));
  }
  for (auto& v : values) spans.emplace_back(v);
  const absl::Status status = client_->parameters().PullDense(3, spans);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(ToBytes(values[0]), ContentOf("dense/0"));
  EXPECT_EQ(ToBytes(values[1]), ContentOf("dense/1"));
  EXPECT_THAT(lost_, testing::ElementsAre("server/s0"));
  // One of them was asked, not both.
  EXPECT_EQ(Asked(1), 1u);
  EXPECT_EQ(Asked(2), 1u);
}

TEST_F(StandbyClientTest, TheCoordinatorMayHaveLostOne) {
  Start();
  client_->KeepServers({"server/s0", "server/s2"});
  const Step step = TakeStep();
  ASSERT_TRUE(step.status.ok()) << step.status;
  EXPECT_THAT(lost_, testing::ElementsAre("server/s1"));
  EXPECT_THAT(std::string(why_.message()),
              HasSubstr("the coordinator has lost server/s1"));
  EXPECT_EQ(Asked(1), 0u);
}

TEST_F(StandbyClientTest, GoesOnWithoutOneThatDoesNotAnswer) {
  Start(/*clip_norm=*/0, absl::Seconds(2));
  spoil_ = [](int server, v1::ExchangeResponse* response) {
    if (server == 1 && response->has_backward()) response->Clear();
  };
  const Step step = TakeStep();
  ASSERT_TRUE(step.status.ok()) << step.status;
  EXPECT_THAT(lost_, testing::ElementsAre("server/s1"));
  EXPECT_EQ(why_.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(StandbyClientTest, GoesOnWithoutOneThatIsNotThere) {
  Start();
  servers_[1].reset();
  client_.reset();
  auto client = ClusterClient::Connect(
      state_, plan_,
      {.member = "worker/w0",
       .owned_replicas = owned_,
       .reconnect_timeout = absl::Milliseconds(50),
       .on_wait = {},
       .go_on_without = [this](const std::string& server, const absl::Status&) {
         lost_.push_back(server);
         return true;
       }});
  ASSERT_TRUE(client.ok()) << client.status();
  client_ = *std::move(client);
  EXPECT_TRUE(TakeStep().status.ok());
  EXPECT_THAT(lost_, testing::ElementsAre("server/s1"));
}

TEST_F(StandbyClientTest, WhatIsNoLossIsAnError) {
  // Of a server that says what is wrong.
  Start();
  fail_ = [](int server, const v1::ExchangeRequest&) {
    return server == 1 ? grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "a bad frame")
                       : grpc::Status::OK;
  };
  EXPECT_THAT(std::string(TakeStep().status.message()), HasSubstr("a bad frame"));
  EXPECT_TRUE(lost_.empty());
}

TEST_F(StandbyClientTest, ALossThatComesOfTheGenerationsEndIsAnError) {
  Start();
  go_on_ = false;
  const absl::Status cause = absl::AbortedError("generation 7 is over");
  client_->Cancel(cause);
  EXPECT_EQ(TakeStep().status, cause);
}

TEST_F(StandbyClientTest, CopiesThatDifferAreAnError) {
  Start(/*clip_norm=*/1);
  spoil_ = [](int server, v1::ExchangeResponse* response) {
    if (server != 1 || !response->has_close()) return;
    v1::TensorSquareSum& sum = *response->mutable_close()->mutable_square_sums(0);
    sum.set_sum(std::nextafter(sum.sum(), 1e20));
  };
  const absl::Status status = TakeStep().status;
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("their copies differ"));
}

TEST_F(ClusterClientTest, ConnectRefusesAPlacementThatIsNotTheJobs) {
  Start();
  const auto message = [&](const v1::ClusterState& state) {
    const auto client = ClusterClient::Connect(state, plan_,
                                               {.member = "worker/w0",
                                                .owned_replicas = {0},
                                                .on_wait = {},
                                                .go_on_without = {}});
    EXPECT_FALSE(client.ok());
    return std::string(client.status().message());
  };
  v1::ClusterState state = state_;
  state.mutable_placement()->mutable_shards()->RemoveLast();
  EXPECT_THAT(message(state), HasSubstr("doesn't name shard replica/2"));
  state = state_;
  *state.mutable_placement()->add_shards() = state.placement().shards(0);
  EXPECT_THAT(message(state), HasSubstr("names shard dense/0 twice"));
  state = state_;
  state.mutable_placement()->mutable_shards(0)->set_server("server/s9");
  EXPECT_THAT(message(state), HasSubstr("no address for server/s9"));
}

TEST_F(ClusterClientTest, TellsWhatItWaitsFor) {
  Start();
  std::vector<std::string> reasons;
  auto client = ClusterClient::Connect(
      state_, plan_,
      {.member = "worker/w0",
       .owned_replicas = owned_,
       .on_wait = [&](const std::string& reason) { reasons.push_back(reason); },
       .go_on_without = {}});
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE((*client)->parameters().PullReplicaState(0, 0).ok());
  EXPECT_THAT(
      reasons,
      testing::ElementsAre(
          "pull of replica/0 version 0 from server/s2 at " + servers_[2]->address(), ""));
}

}  // namespace
}  // namespace moe
