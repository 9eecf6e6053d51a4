#include "tests/server/made_step.h"

#include <algorithm>
#include <cstring>

#include "absl/time/time.h"
#include "common/job/job_file.h"
#include "common/random/random.h"
#include "common/tensor/replica_tree.h"
#include "glog/logging.h"

namespace moe::testing {
namespace {

std::vector<float> Uniform(uint64_t step, uint32_t replica, uint32_t wave, uint32_t what,
                           int64_t size) {
  std::vector<float> values(size);
  FillUniform(MakeKey(11, Purpose::kProbe,
                      {.layer = what, .step = step, .wave = wave, .replica = replica}),
              0, values);
  return values;
}

std::vector<float> Centred(std::vector<float> values, float bound) {
  for (float& value : values) value = bound * (2 * value - 1);
  return values;
}

template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()),
                     values.size() * sizeof(T));
}

v1::ExchangeRequest NewRequest() {
  v1::ExchangeRequest request;
  request.set_generation(1);
  return request;
}

v1::FrameId IdOf(uint64_t step, uint32_t wave, v1::Mode mode) {
  v1::FrameId id;
  id.set_step(step);
  id.set_wave(wave);
  id.set_layer(kLayer);
  id.set_mode(mode);
  return id;
}

}  // namespace

v1::Job MadeJob(const std::string& optimizer, const std::string& hidden) {
  absl::StatusOr<v1::Job> job = ParseJob(
      "name: \"made\" seed: 5 "
      "model { d_model: 5 vocabulary: 9 layers { lstm { hidden: 5 } } "
      "  layers { moe { experts: 6 k: 2 groups: 2 gating: GATING_NOISY_TOP_K hidden: [" +
          hidden +
          "] } } } "
          "optimizer { " +
          optimizer +
          " schedule { base_rate: 0.1 } } "
          "training { replicas: 3 waves: 2 lanes: 4 unroll: 3 steps: 4 dense_shards: 2 }",
      "made job");
  CHECK(job.ok()) << job.status();
  return *job;
}

v1::Job MadeHierarchicalJob(const std::string& optimizer) {
  v1::Job job = MadeJob(optimizer);
  v1::Moe& moe = *job.mutable_model()->mutable_layers(kLayer)->mutable_moe();
  moe.set_k_primary(1);
  moe.set_w_importance(0.1f);
  moe.set_w_load(0.1f);
  CHECK(ValidateJob(job).ok()) << ValidateJob(job);
  return job;
}

std::vector<MadeFrame::Pair> MadeFrame::PairsOf(int32_t group) const {
  std::vector<Pair> of_group;
  for (Pair pair : pairs) {
    if (static_cast<int32_t>(pair.expert) / kPerGroup != group) continue;
    pair.expert %= kPerGroup;
    of_group.push_back(pair);
  }
  return of_group;
}

MadeFrame MakeFrame(uint64_t step, uint32_t replica, uint32_t wave) {
  MadeFrame frame;
  frame.tokens = 11;
  frame.importance.resize(kExperts);
  frame.load.resize(kExperts);
  const bool empty = replica == 1 && wave == 1;
  const std::vector<float> choice = Uniform(step, replica, wave, 1, 3 * frame.tokens);
  for (uint32_t t = 0; t < frame.tokens && !empty; ++t) {
    // About a third of the tokens have no expert here.
    if (choice[3 * t] < 0.1f * static_cast<float>(replica + 2)) continue;
    std::vector<uint32_t> experts = {static_cast<uint32_t>(choice[3 * t + 1] * kExperts),
                                     static_cast<uint32_t>(choice[3 * t + 2] * kExperts)};
    std::sort(experts.begin(), experts.end());
    experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
    std::erase(experts, static_cast<uint32_t>(kIdleExpert));
    for (size_t i = 0; i < experts.size(); ++i) {
      const float gate = 0.3f + 0.4f * choice[3 * t + i];
      frame.pairs.push_back(
          {static_cast<uint32_t>(frame.token.size()), experts[i], gate});
      frame.importance[experts[i]] += gate;
      frame.load[experts[i]] += 0.9;
    }
    if (!experts.empty()) frame.token.push_back(t);
  }
  const int64_t size = frame.rows() * kWidth;
  frame.x = Centred(Uniform(step, replica, wave, 2, size), 1);
  frame.dy = Centred(Uniform(step, replica, wave, 3, size), 0.1f);
  return frame;
}

v1::ForwardFrame ForwardFrameOf(const MadeFrame& frame, uint32_t replica, v1::Mode mode) {
  v1::ForwardFrame message;
  message.set_replica(replica);
  message.set_tokens(frame.tokens);
  message.set_token(BytesOf(frame.token));
  message.set_x(BytesOf(frame.x));
  for (int32_t group = 0; group < kGroups; ++group) {
    v1::GroupRouting* routing = message.add_groups();
    routing->set_group(group);
    std::vector<uint32_t> row, expert;
    std::vector<float> gate;
    for (const MadeFrame::Pair& pair : frame.PairsOf(group)) {
      row.push_back(pair.row);
      expert.push_back(pair.expert);
      gate.push_back(pair.gate);
    }
    routing->set_row(BytesOf(row));
    routing->set_expert(BytesOf(expert));
    routing->set_gate(BytesOf(gate));
    for (int32_t e = group * kPerGroup;
         mode == v1::MODE_TRAIN && e < (group + 1) * kPerGroup; ++e) {
      routing->add_importance(frame.importance[e]);
      routing->add_load(frame.load[e]);
    }
  }
  return message;
}

v1::BackwardFrame BackwardFrameOf(const MadeFrame& frame, uint32_t replica) {
  v1::BackwardFrame message;
  message.set_replica(replica);
  message.set_dy(BytesOf(frame.dy));
  return message;
}

v1::ExchangeRequest ForwardOf(uint64_t step, uint32_t wave,
                              const std::vector<uint32_t>& replicas, v1::Mode mode) {
  v1::ExchangeRequest request = NewRequest();
  *request.mutable_forward()->mutable_id() = IdOf(step, wave, mode);
  for (uint32_t r : replicas) {
    *request.mutable_forward()->add_frames() =
        ForwardFrameOf(MakeFrame(step, r, wave), r, mode);
  }
  return request;
}

v1::ExchangeRequest BackwardOf(uint64_t step, uint32_t wave,
                               const std::vector<uint32_t>& replicas) {
  v1::ExchangeRequest request = NewRequest();
  *request.mutable_backward()->mutable_id() = IdOf(step, wave, v1::MODE_TRAIN);
  for (uint32_t r : replicas) {
    *request.mutable_backward()->add_frames() =
        BackwardFrameOf(MakeFrame(step, r, wave), r);
  }
  return request;
}

namespace {

void MakeHierarchical(v1::ForwardRequest* request) {
  for (v1::ForwardFrame& frame : *request->mutable_frames()) {
    for (v1::GroupRouting& routing : *frame.mutable_groups()) {
      std::vector<uint32_t> all_rows(routing.row().size() / sizeof(uint32_t)), row;
      if (!all_rows.empty()) {
        std::memcpy(all_rows.data(), routing.row().data(), routing.row().size());
      }
      const std::vector<float> gates = Floats(routing.gate());
      std::vector<float> gate;
      for (size_t p = 0; p < all_rows.size(); ++p) {
        if (!row.empty() && row.back() == all_rows[p]) continue;
        row.push_back(all_rows[p]);
        gate.push_back(gates[p]);
      }
      routing.set_row(BytesOf(row));
      routing.set_gate(BytesOf(gate));
      routing.clear_expert();
      routing.clear_importance();
      if (routing.load_size() > 0) {
        routing.clear_load();
        routing.add_load(0.5 + static_cast<double>(row.size()));
      }
    }
  }
}

void MakeHierarchical(const BalanceMoments& moments, v1::BackwardRequest* request) {
  for (v1::BackwardFrame& frame : *request->mutable_frames()) {
    frame.mutable_importance()->set_mean(moments.importance.mean);
    frame.mutable_importance()->set_variance(moments.importance.variance);
    frame.mutable_load()->set_mean(moments.load.mean);
    frame.mutable_load()->set_variance(moments.load.variance);
  }
}

}  // namespace

v1::ExchangeRequest Hierarchical(v1::ExchangeRequest request,
                                 const BalanceMoments& moments) {
  if (request.has_forward()) MakeHierarchical(request.mutable_forward());
  if (request.has_backward()) MakeHierarchical(moments, request.mutable_backward());
  return request;
}

std::vector<float> MakeGradient(uint64_t step, const std::string& shard, int64_t size,
                                uint32_t replica) {
  return Centred(Uniform(step, replica, 0, 10 + shard.back(), size), 0.1f);
}

v1::ExchangeRequest CloseOf(const ModelPlan& plan, uint64_t step,
                            const std::vector<uint32_t>& replicas, bool cut) {
  v1::ExchangeRequest request = NewRequest();
  v1::CloseRequest& close = *request.mutable_close();
  close.set_step(step);
  close.mutable_replicas()->Assign(replicas.begin(), replicas.end());
  close.set_learning_rate(0.1);
  close.set_cut(cut);
  for (const ShardSpec& shard : plan.shards) {
    if (shard.kind == ShardKind::kDense) {
      TreeReduction tree(kReplicas, plan.SizeOf(shard));
      for (uint32_t r : replicas) {
        CHECK(tree.Add({0, r}, MakeGradient(step, shard.id, plan.SizeOf(shard), r)).ok());
      }
      for (const auto& [node, sum] : tree.TakeNodes()) {
        v1::GradientNode* gradient = close.add_gradients();
        gradient->set_shard(shard.id);
        gradient->set_level(node.level);
        gradient->set_index(node.index);
        gradient->set_gradient(BytesOf(sum));
      }
    }
    if (shard.kind == ShardKind::kReplica &&
        std::find(replicas.begin(), replicas.end(), shard.replica) != replicas.end()) {
      v1::ShardContent* state = close.add_replica_states();
      state->set_shard(shard.id);
      state->set_content("state of " + shard.id + " after step " + std::to_string(step));
    }
  }
  return request;
}

v1::ExchangeRequest ApplyOf(uint64_t step, double scale) {
  v1::ExchangeRequest request = NewRequest();
  request.mutable_apply()->set_step(step);
  request.mutable_apply()->set_scale(scale);
  return request;
}

v1::ExchangeRequest PullOf(const std::vector<std::string>& shards, uint64_t version) {
  v1::ExchangeRequest request = NewRequest();
  request.mutable_pull()->mutable_shards()->Assign(shards.begin(), shards.end());
  request.mutable_pull()->set_version(version);
  return request;
}

v1::ClusterState MadeState(const v1::Job& job) {
  v1::ClusterState state;
  state.set_phase(v1::PHASE_LOADING);
  state.set_generation(1);
  *state.mutable_job() = job;
  state.set_mode(v1::RUN_MODE_TRAIN);
  for (const ShardSpec& shard : MakeModelPlan(job).shards) {
    v1::ShardPlacement* placed = state.mutable_placement()->add_shards();
    placed->set_shard(shard.id);
    placed->set_server("server/s0");
  }
  for (const auto& [worker, replicas] : Workers()) {
    for (uint32_t r : replicas) {
      v1::ReplicaAssignment* assignment = state.add_replicas();
      assignment->set_replica(r);
      assignment->set_worker(worker);
    }
  }
  return state;
}

std::string Bytes(const std::vector<float>& values) { return BytesOf(values); }

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

void RecordingSink::Send(std::shared_ptr<const v1::ExchangeResponse> response) {
  absl::MutexLock lock(&mutex_);
  responses_.push_back(std::move(response));
}

v1::ExchangeResponse RecordingSink::Next() {
  absl::MutexLock lock(&mutex_);
  const auto ready = [this] { return !responses_.empty(); };
  CHECK(mutex_.AwaitWithTimeout(absl::Condition(&ready), absl::Seconds(20)))
      << "no response";
  const v1::ExchangeResponse response = *responses_.front();
  responses_.erase(responses_.begin());
  return response;
}

size_t RecordingSink::waiting() const {
  absl::MutexLock lock(&mutex_);
  return responses_.size();
}

}  // namespace moe::testing
