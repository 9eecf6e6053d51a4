#include "tests/worker/local_secondary_gates.h"

#include <utility>

namespace moe::testing {

LocalSecondaryGates::LocalSecondaryGates(Backend& backend, const v1::Job& job,
                                         int32_t layer)
    : backend_(backend),
      d_(job.model().d_model()),
      experts_(job.model().layers(layer).moe().experts()),
      waves_(job.training().waves()) {
  const ModelPlan plan = MakeModelPlan(job);
  v1::Job without_moments = job;
  without_moments.mutable_optimizer()->mutable_sgd();
  for (const ShardSpec& spec : plan.shards) {
    if (spec.kind != ShardKind::kExpert || spec.layer != layer) continue;
    Group& group = groups_.emplace_back();
    group.spec = spec;
    group.parameters =
        std::make_unique<ParameterBlock>(backend, plan, spec, without_moments);
    group.gate = std::make_unique<SecondaryGate>(backend, job, spec, *group.parameters);
  }
}

std::vector<LocalSecondaryGates::GateTensor> LocalSecondaryGates::Tensors() {
  std::vector<GateTensor> tensors;
  for (Group& group : groups_) {
    const std::vector<Tensor>& gradients = group.gate->Gradients(rows_);
    for (int i = 0; i < group.spec.gate_tensors; ++i) {
      const TensorSpec& tensor = group.parameters->tensor(i);
      GateTensor& named = tensors.emplace_back();
      named.name = tensor.name;
      named.value = Matrix(group.parameters->w(i), tensor.rows, tensor.cols);
      if (gradients.empty()) continue;
      named.gradient.resize(tensor.size());
      gradients[i].Download(named.gradient);
    }
  }
  return tensors;
}

void LocalSecondaryGates::BeginStep() {
  // Forgets the step before.
  for (Group& group : groups_) group.gate->Apply(rows_, /*rate=*/0, /*scale=*/0);
  rows_.clear();
}

std::vector<MoeCall> LocalSecondaryGates::Forward(PassMode mode, uint64_t step,
                                                  int32_t wave,
                                                  std::span<const MoeCall* const> calls) {
  WaveRows rows;
  std::vector<float> x;
  Wave& w = waves_[wave];
  w = Wave();
  rows.begin.push_back(0);
  for (const MoeCall* call : calls) {
    x.insert(x.end(), call->x.begin(), call->x.end());
    for (size_t t = 0; t + 1 < call->offset.size(); ++t) {
      rows.token.push_back(static_cast<int32_t>(t));
    }
    rows.begin.push_back(static_cast<int64_t>(rows.token.size()));
    w.primary_choices.push_back(call->expert.size());
  }
  rows.x = Tensor(backend_, rows.begin.back(), d_);
  rows.x.Upload(x);

  const bool train = mode == PassMode::kTrain;
  std::vector<std::vector<GroupPairs>> pairs;  // [groups][replicas]
  for (size_t g = 0; g < groups_.size(); ++g) {
    GroupWave& group = w.groups.emplace_back();
    group.rows.resize(calls.size());
    group.choice.resize(calls.size());
    group.position.resize(calls.size());
    std::vector<const GroupRows*> chosen;
    for (size_t r = 0; r < calls.size(); ++r) {
      const MoeCall& call = *calls[r];
      if (train) group.rows[r].load = call.load[g];
      for (size_t t = 0; t + 1 < call.offset.size(); ++t) {
        for (int32_t c = call.offset[t]; c < call.offset[t + 1]; ++c) {
          if (call.expert[c] != static_cast<int32_t>(g)) continue;
          group.rows[r].row.push_back(static_cast<int32_t>(t));
          group.rows[r].gate.push_back(call.gate[c]);
          group.choice[r].push_back(c);
        }
      }
      chosen.push_back(&group.rows[r]);
    }
    pairs.push_back(groups_[g].gate->Forward(train ? v1::MODE_TRAIN : v1::MODE_EVALUATE,
                                             step, wave, rows, chosen));
  }
  if (train) rows_.push_back(std::move(rows));

  zeros_.assign(experts_, 0);
  std::vector<MoeCall> flat;
  for (size_t r = 0; r < calls.size(); ++r) {
    Choices choices;
    std::vector<size_t> next(groups_.size());
    for (int32_t t = 0; t + 1 < static_cast<int32_t>(calls[r]->offset.size()); ++t) {
      choices.offset.push_back(static_cast<int32_t>(choices.expert.size()));
      for (size_t g = 0; g < groups_.size(); ++g) {
        const GroupPairs& of_group = pairs[g][r];
        for (; next[g] < of_group.row.size() && of_group.row[next[g]] == t; ++next[g]) {
          w.groups[g].position[r].push_back(static_cast<int32_t>(choices.expert.size()));
          choices.expert.push_back(groups_[g].spec.first_expert +
                                   of_group.expert[next[g]]);
          choices.gate.push_back(of_group.gate[next[g]]);
        }
      }
    }
    choices.offset.push_back(static_cast<int32_t>(choices.expert.size()));
    w.flat.push_back(std::move(choices));
  }
  for (size_t r = 0; r < calls.size(); ++r) {
    MoeCall& call = flat.emplace_back(*calls[r]);
    call.offset = w.flat[r].offset;
    call.expert = w.flat[r].expert;
    call.gate = w.flat[r].gate;
    call.importance = zeros_;
    call.load = zeros_;
  }
  return flat;
}

BalanceMoments LocalSecondaryGates::Moments() const {
  Spread importance, load;
  for (const Group& group : groups_) {
    importance = Join(importance, group.gate->ImportanceSpread());
    load = Join(load, group.gate->LoadSpread());
  }
  return {importance.moments(), load.moments()};
}

std::vector<double> LocalSecondaryGates::Backward(int32_t wave,
                                                  LocalExperts::Gradients* gradients) {
  const BalanceMoments moments = Moments();
  const Wave& w = waves_[wave];
  std::vector<std::vector<float>> primary;
  for (size_t choices : w.primary_choices) primary.emplace_back(choices);
  std::vector<double> dload;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const GroupWave& group = w.groups[g];
    std::vector<float> dgate;
    int64_t rows = 0;
    for (size_t r = 0; r < group.rows.size(); ++r) {
      for (int32_t p : group.position[r]) dgate.push_back(gradients->dgate[r][p]);
      rows += static_cast<int64_t>(group.rows[r].row.size());
    }
    Tensor dx(backend_, rows, d_);
    dx.Zero();
    const std::vector<float> dprimary =
        groups_[g].gate->Backward(wave, moments, dgate, dx.view());
    std::vector<float> host_dx(dx.size());
    if (rows > 0) dx.Download(host_dx);
    size_t i = 0;
    for (size_t r = 0; r < group.rows.size(); ++r) {
      for (size_t row = 0; row < group.rows[r].row.size(); ++row, ++i) {
        primary[r][group.choice[r][row]] = dprimary[i];
        float* to = gradients->dx[r].data() + group.rows[r].row[row] * d_;
        for (int64_t c = 0; c < d_; ++c) to[c] += host_dx[i * d_ + c];
      }
    }
    dload.push_back(groups_[g].gate->LoadPrimaryGradient(moments));
  }
  gradients->dgate = std::move(primary);
  return dload;
}

}  // namespace moe::testing
