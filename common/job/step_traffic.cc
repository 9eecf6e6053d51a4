#include "common/job/step_traffic.h"

#include <algorithm>
#include <cmath>

#include "common/job/expert_traffic.h"
#include "common/job/step_memory.h"
#include "common/tensor/replica_tree.h"

namespace moe {
namespace {

constexpr double kFloat = 4;
constexpr double kDouble = 8;
// What protobuf makes of a field: a tag of one byte; numbers of two bytes stand for a step and for a
// sequence, which grow as the job runs.
constexpr double kTag = 1;
constexpr double kCounter = 2;
constexpr double kFixed64 = kTag + 8;
// HTTP/2: gRPC cuts messages, each with 5 bytes before it, into frames.
constexpr double kMessageHeader = 5;
constexpr double kFrameHeader = 9;
constexpr double kFrame = 16384;

double Varint(double value) {
  double bytes = 1;
  for (double most = 128; value >= most; most *= 128) ++bytes;
  return bytes;
}
// A number; zero isn't sent.
double Number(double value) { return value > 0 ? kTag + Varint(value) : 0; }
// A message within another.
double Nested(double bytes) { return kTag + Varint(bytes) + bytes; }
// Bytes, a string or packed numbers; nothing isn't sent.
double Field(double bytes) { return bytes > 0 ? Nested(bytes) : 0; }

double OnStream(double bytes) {
  const double all = kMessageHeader + bytes;
  return all + kFrameHeader * std::ceil(all / kFrame);
}

// ExchangeRequest and ExchangeResponse: generation and checksum, and of requests the sequence.
constexpr double kGeneration = kTag + 1;
constexpr double kChecksum = kTag + 4;
double Request(double content) {
  return OnStream(kGeneration + kChecksum + kTag + kCounter + Nested(content));
}
double Response(double content) {
  return OnStream(kGeneration + kChecksum + Nested(content));
}

// FrameId without wave and call: step, layer, mode, mixture.
double FrameId(const Mixture& mixture) {
  return kTag + kCounter + Number(mixture.id.layer) + Number(1) +
         Number(mixture.id.mixture);
}

}  // namespace

CallBytes& CallBytes::operator+=(const CallBytes& other) {
  forward += other.forward;
  forward_reply += other.forward_reply;
  backward += other.backward;
  backward_reply += other.backward_reply;
  return *this;
}

StepBytes& StepBytes::operator+=(const StepBytes& other) {
  activations_out += other.activations_out;
  gradients_out += other.gradients_out;
  dense_gradients += other.dense_gradients;
  table_gradients += other.table_gradients;
  carried_states += other.carried_states;
  requests += other.requests;
  activations_back += other.activations_back;
  gradients_back += other.gradients_back;
  dense_parameters += other.dense_parameters;
  table_rows += other.table_rows;
  answers += other.answers;
  return *this;
}

std::map<MixtureId, int32_t> GroupsOf(std::span<const ShardSpec> shards) {
  std::map<MixtureId, int32_t> groups;
  for (const ShardSpec& shard : shards) {
    if (shard.kind != ShardKind::kExpert) continue;
    ++groups[{static_cast<uint32_t>(shard.layer), shard.mixture}];
  }
  return groups;
}

StepTraffic::StepTraffic(const v1::Job& job, const ModelPlan& plan)
    : job_(job), plan_(plan), mixtures_(MixturesOf(job)), tables_(job, true) {}

int64_t StepTraffic::Tokens(const Mixture& mixture) const {
  const v1::Training& training = job_.training();
  return int64_t{training.lanes()} / training.waves() * training.unroll() / mixture.calls;
}

CallBytes StepTraffic::Call(const Mixture& mixture, int32_t groups,
                            std::span<const uint32_t> owned) const {
  if (groups == 0) return {};
  const v1::Moe& moe = mixture.moe;
  const bool hierarchical = moe.k_primary() > 0;
  const auto tokens = static_cast<double>(Tokens(mixture));
  const auto in = static_cast<double>(mixture.in);
  const auto out = static_cast<double>(mixture.out);
  const double experts = static_cast<double>(moe.experts()) / moe.groups();
  const ExpertTraffic traffic = EvenTraffic(moe, groups);
  const double rows = traffic.rows * tokens;
  const double group_rows = traffic.group_rows * tokens / groups;
  const double pairs = traffic.pairs * tokens / groups;
  // What a worker says about a pair, or to a hierarchical layer's group about a row.
  const double choices = hierarchical ? group_rows : pairs;

  const double group = Number(moe.groups() - 1);
  const double spread = 2 * kFixed64;
  const double routing =
      group + 2 * Field(kFloat * choices) +
      (hierarchical ? Field(kDouble)
                    : Field(kFloat * choices) + 2 * Field(kDouble * experts));
  double output = group + Field(kFloat * group_rows * out) + Number(tokens);
  double gradient = group + Field(kFloat * group_rows * in) + Field(kFloat * choices);
  if (hierarchical) {
    output += Nested(group + 2 * Field(kFloat * pairs)) + 2 * Nested(spread);
    gradient += kFixed64;
  } else {
    output += 2 * Field(kDouble * experts);
  }

  CallBytes content;
  for (const uint32_t replica : owned) {
    const double id = Number(replica);
    content.forward += Nested(id + Number(tokens) + Field(kFloat * rows) +
                              Field(kFloat * rows * in) + groups * Nested(routing));
    content.forward_reply += Nested(id + groups * Nested(output));
    content.backward +=
        Nested(id + Field(kFloat * rows * out) + (hierarchical ? 2 * Nested(spread) : 0));
    content.backward_reply += Nested(id + groups * Nested(gradient));
  }
  const double id = Nested(FrameId(mixture));
  return {.forward = Request(id + content.forward),
          .forward_reply = Response(id + content.forward_reply),
          .backward = Request(id + content.backward),
          .backward_reply = Response(id + content.backward_reply)};
}

int64_t StepTraffic::Repeated(const Mixture& mixture) const {
  if (mixture.id.mixture != kRecurrentMixture) return 0;
  const int32_t kept = job_.model()
                           .layers(static_cast<int>(mixture.id.layer))
                           .recurrent_moe()
                           .kept_states();
  if (kept == 0) return 0;
  // The schedule of worker/layers/recompute_schedule.h, by its programme; the forward pass is in it.
  const int64_t steps = mixture.calls;
  const int64_t slots = std::min<int64_t>(kept, steps);
  std::vector<int64_t> fewer(steps + 1);
  for (int64_t t = 1; t <= steps; ++t) fewer[t] = t * (t + 1) / 2;
  for (int64_t m = 1; m < slots; ++m) {
    std::vector<int64_t> cost(steps + 1);
    cost[1] = 1;
    for (int64_t t = 2; t <= steps; ++t) {
      cost[t] = fewer[t];
      for (int64_t y = 1; y < t; ++y) {
        cost[t] = std::min(cost[t], y + fewer[t - y] + cost[y]);
      }
    }
    fewer = std::move(cost);
  }
  return fewer[steps] - steps;
}

StepBytes StepTraffic::Between(std::span<const ShardSpec> shards,
                               std::span<const uint32_t> owned) const {
  const v1::Training& training = job_.training();
  StepBytes bytes;
  const std::map<MixtureId, int32_t> groups = GroupsOf(shards);
  for (const Mixture& mixture : mixtures_) {
    const auto found = groups.find(mixture.id);
    if (found == groups.end()) continue;
    const CallBytes call = Call(mixture, found->second, owned);
    const double calls = static_cast<double>(training.waves()) * mixture.calls;
    const double repeated = static_cast<double>(training.waves() * Repeated(mixture));
    bytes.activations_out += calls * call.forward;
    bytes.activations_back += (calls + repeated) * call.forward_reply;
    bytes.gradients_out += calls * call.backward;
    bytes.gradients_back += calls * call.backward_reply;
    if (repeated > 0) {
      double names = Nested(FrameId(mixture));
      for (const uint32_t replica : owned) names += Nested(Number(replica));
      bytes.activations_out += repeated * Request(names);
    }
  }

  const std::vector<TreeNode> nodes =
      MaximalNodes(owned, static_cast<uint32_t>(training.replicas()));
  const auto replicas = static_cast<int64_t>(owned.size());
  const double version = kTag + kCounter;
  const auto pulled = [&](double name, double content) {
    return Response(version + Nested(name + Field(content)) + version);
  };
  for (const ShardSpec& shard : shards) {
    const double name = Field(static_cast<double>(shard.id.size()));
    const auto floats = kFloat * static_cast<double>(plan_.SizeOf(shard));
    switch (shard.kind) {
      case ShardKind::kDense:
        bytes.requests += Request(name + version);
        bytes.dense_parameters += pulled(name, floats);
        for (const TreeNode& node : nodes) {
          bytes.dense_gradients +=
              Nested(name + Number(node.level) + Number(node.index) + Field(floats));
        }
        break;
      case ShardKind::kTable: {
        const double columns =
            job_.model().d_model() + (shard.table == Table::kSoftmax ? 1 : 0);
        const double rows = tables_.Rows(shard, replicas);
        bytes.requests += Request(version + Nested(name + Field(kFloat * rows)));
        bytes.table_rows += pulled(name, kFloat * rows * columns);
        for (const TreeNode& node : nodes) {
          const double of_node =
              tables_.Rows(shard, ReplicasOf(node, training.replicas()));
          bytes.table_gradients +=
              Nested(name + Number(node.level) + Number(node.index) +
                     Field(kFloat * of_node) + Field(kFloat * of_node * columns));
        }
        break;
      }
      case ShardKind::kReplica:
        if (std::find(owned.begin(), owned.end(), shard.replica) == owned.end()) break;
        bytes.carried_states +=
            Nested(name + Field(static_cast<double>(CarriedStateBytes(job_))));
        break;
      case ShardKind::kExpert:
        break;
    }
  }

  // The close's own envelope, and its frames, go to the gradients.
  double head = version + kFixed64;
  for (const uint32_t replica : owned) head += Varint(replica);
  head += kTag + Varint(static_cast<double>(owned.size()));
  const double content = bytes.closes() + head;
  bytes.dense_gradients += Request(content) - bytes.closes();
  bytes.answers += Response(2 * version);
  if (job_.optimizer().clip_norm() > 0) {
    double tensors = 0;
    for (const ShardSpec& shard : shards)
      tensors += static_cast<double>(shard.tensors.size());
    bytes.answers +=
        tensors * Nested(Number(static_cast<double>(plan_.tensors.size())) + kFixed64);
    bytes.requests += Request(version + kFixed64);
    bytes.answers += Response(2 * version);
  }
  return bytes;
}

}  // namespace moe
