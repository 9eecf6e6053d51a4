#include "server/expert_shard.h"

#include <algorithm>
#include <utility>

#include "glog/logging.h"

namespace moe {
namespace {

// Rows [begin, end) of a matrix on the backend as a bytes field.
void DownloadRows(Backend& backend, const Tensor& matrix, int64_t begin, int64_t end,
                  std::string* bytes) {
  bytes->resize((end - begin) * matrix.cols() * sizeof(float));
  if (bytes->empty()) return;
  backend.Download(matrix.view().row(begin), bytes->data(), bytes->size());
}

}  // namespace

ExpertShard::ExpertShard(Backend& backend, const ModelPlan& plan, const ShardSpec& spec,
                         const v1::Job& job)
    : backend_(backend),
      spec_(spec),
      width_(plan.tensors[spec.tensors[0]].rows),
      hidden_(plan.tensors[spec.tensors[0]].cols),
      parameters_(backend, plan, spec, job.optimizer()),
      last_rows_(spec.experts),
      total_rows_(spec.experts) {
  CHECK_EQ(parameters_.tensors(), 2 * spec.experts);
}

ExpertShard::~ExpertShard() = default;

ExpertRows ExpertShard::RowsOf(int32_t expert, int64_t begin, int64_t rows) const {
  return {parameters_.w(2 * expert), parameters_.w(2 * expert + 1), begin, rows};
}

std::vector<ExpertRows> ExpertShard::ExpertsOf(const WaveBatch& batch) const {
  std::vector<ExpertRows> experts;
  for (int32_t e = 0; e < spec_.experts; ++e) {
    const int64_t rows = batch.begin[e + 1] - batch.begin[e];
    if (rows > 0) experts.push_back(RowsOf(e, batch.begin[e], rows));
  }
  return experts;
}

ExpertShard::WaveBatch ExpertShard::Join(const WaveRows& rows,
                                         std::span<const GroupPairs* const> pairs,
                                         std::vector<float>* pair_gate) {
  WaveBatch batch;
  batch.begin.assign(spec_.experts + 1, 0);
  for (const GroupPairs* replica : pairs) {
    for (int32_t expert : replica->expert) ++batch.begin[expert + 1];
  }
  for (int32_t e = 0; e < spec_.experts; ++e) batch.begin[e + 1] += batch.begin[e];

  const int64_t size = batch.begin.back();
  std::vector<int64_t> next(batch.begin.begin(), batch.begin.end() - 1);
  std::vector<float> gate(size);
  batch.source.resize(size);
  for (size_t r = 0; r < pairs.size(); ++r) {
    batch.replica_pair.push_back(batch.pairs());
    batch.replica_row.push_back(static_cast<int64_t>(batch.offset.size()));
    const GroupPairs& replica = *pairs[r];
    for (size_t i = 0; i < replica.row.size(); ++i) {
      if (i == 0 || replica.row[i] != replica.row[i - 1]) {
        batch.offset.push_back(static_cast<int32_t>(batch.pairs()));
      }
      const int64_t position = next[replica.expert[i]]++;
      batch.source[position] = static_cast<int32_t>(rows.begin[r] + replica.row[i]);
      gate[position] = replica.gate[i];
      pair_gate->push_back(replica.gate[i]);
      batch.position.push_back(static_cast<int32_t>(position));
    }
  }
  batch.replica_pair.push_back(batch.pairs());
  batch.replica_row.push_back(static_cast<int64_t>(batch.offset.size()));
  batch.offset.push_back(static_cast<int32_t>(batch.pairs()));
  if (size > 0) {
    batch.gate = Array<float>(backend_, size);
    batch.gate.Upload(gate);
  }
  return batch;
}

void ExpertShard::AddTotals(uint32_t wave, std::span<const GroupPairs* const> pairs) {
  if (wave == 0) {
    importance_.assign(spec_.experts, 0);
    load_.assign(spec_.experts, 0);
  }
  std::vector<double> importance(spec_.experts);
  std::vector<double> load(spec_.experts);
  for (const GroupPairs* replica : pairs) {
    for (int32_t e = 0; e < spec_.experts; ++e) {
      importance[e] += replica->importance[e];
      load[e] += replica->load[e];
    }
  }
  for (int32_t e = 0; e < spec_.experts; ++e) {
    importance_[e] += importance[e];
    load_[e] += load[e];
  }
}

std::vector<v1::GroupOutput> ExpertShard::Forward(
    v1::Mode mode, uint32_t wave, const WaveRows& rows,
    std::span<const GroupPairs* const> pairs) {
  std::vector<float> host_gate;
  WaveBatch batch = Join(rows, pairs, &host_gate);
  std::vector<v1::GroupOutput> outputs(pairs.size());
  for (v1::GroupOutput& output : outputs) output.set_group(spec_.group);

  if (batch.pairs() > 0) {
    Tensor x(backend_, batch.pairs(), width_);
    batch.hidden = Tensor(backend_, batch.pairs(), hidden_);
    Tensor y(backend_, batch.pairs(), width_);
    Tensor combined(backend_, batch.rows(), width_);
    Array<float> pair_gate(backend_, batch.pairs());
    pair_gate.Upload(host_gate);
    backend_.GatherRows(rows.x.view(), batch.source, nullptr, x.view());
    backend_.ExpertForward(ExpertsOf(batch), x.view(), batch.hidden.view(), y.view());
    backend_.CombineRows(y.view(), batch.offset, batch.position, pair_gate.data(),
                         combined.view());
    for (size_t r = 0; r < pairs.size(); ++r) {
      DownloadRows(backend_, combined, batch.replica_row[r], batch.replica_row[r + 1],
                   outputs[r].mutable_y());
    }
  }
  if (mode != v1::MODE_TRAIN) return outputs;

  AddTotals(wave, pairs);
  for (v1::GroupOutput& output : outputs) {
    output.mutable_importance()->Assign(importance_.begin(), importance_.end());
    output.mutable_load()->Assign(load_.begin(), load_.end());
  }
  CHECK_EQ(wave, waves_.size());
  waves_.push_back(std::move(batch));
  return outputs;
}

std::vector<v1::GroupGradient> ExpertShard::Backward(uint32_t wave,
                                                     const WaveRows& rows) {
  CHECK_LT(wave, waves_.size());
  WaveBatch& batch = waves_[wave];
  const size_t replicas = rows.begin.size() - 1;
  std::vector<v1::GroupGradient> gradients(replicas);
  for (v1::GroupGradient& gradient : gradients) gradient.set_group(spec_.group);
  if (batch.pairs() == 0) return gradients;

  Tensor dy(backend_, batch.pairs(), width_);
  batch.dhidden = Tensor(backend_, batch.pairs(), hidden_);
  Tensor dx(backend_, batch.pairs(), width_);
  Tensor combined(backend_, batch.rows(), width_);
  Array<float> dgate(backend_, batch.pairs());
  backend_.GatherRows(rows.dy.view(), batch.source, nullptr, dy.view());
  backend_.ExpertBackward(ExpertsOf(batch), dy.view(), batch.gate.data(),
                          batch.hidden.view(), dgate.data(), batch.dhidden.view(),
                          dx.view());
  backend_.CombineRows(dx.view(), batch.offset, batch.position, nullptr, combined.view());
  std::vector<float> host_dgate(batch.pairs());
  dgate.Download(host_dgate);
  for (size_t r = 0; r < replicas; ++r) {
    DownloadRows(backend_, combined, batch.replica_row[r], batch.replica_row[r + 1],
                 gradients[r].mutable_dx());
    std::vector<float> by_pair;
    for (int64_t i = batch.replica_pair[r]; i < batch.replica_pair[r + 1]; ++i) {
      by_pair.push_back(host_dgate[batch.position[i]]);
    }
    gradients[r].mutable_dgate()->assign(reinterpret_cast<const char*>(by_pair.data()),
                                         by_pair.size() * sizeof(float));
  }
  return gradients;
}

const ExpertShard::StepBatch& ExpertShard::Gather(std::span<const WaveRows> waves) {
  if (step_.has_value()) return *step_;
  CHECK_EQ(waves.size(), waves_.size());
  StepBatch& step = step_.emplace();
  // [b + 1] first row of each expert over all waves.
  std::vector<int64_t> begin(1, 0);
  for (int32_t e = 0; e < spec_.experts; ++e) {
    int64_t rows = 0;
    for (const WaveBatch& batch : waves_) rows += batch.begin[e + 1] - batch.begin[e];
    if (rows > 0) {
      step.experts.push_back(RowsOf(e, begin.back(), rows));
      step.expert.push_back(e);
    }
    begin.push_back(begin.back() + rows);
  }
  const int64_t size = begin.back();
  if (size == 0) return step;
  step.x = Tensor(backend_, size, width_);
  step.hidden = Tensor(backend_, size, hidden_);
  step.dhidden = Tensor(backend_, size, hidden_);
  step.gated_dy = Tensor(backend_, size, width_);
  const int64_t hidden_bytes = hidden_ * sizeof(float);
  backend_.parallel().For(step.experts.size(), [&](int64_t i) {
    const int32_t e = step.expert[i];
    int64_t to = begin[e];
    for (size_t w = 0; w < waves.size(); ++w) {
      const WaveBatch& batch = waves_[w];
      const int64_t from = batch.begin[e];
      const int64_t rows = batch.begin[e + 1] - from;
      if (rows == 0) continue;
      const auto source = std::span(batch.source).subspan(from, rows);
      backend_.GatherRows(waves[w].x.view(), source, nullptr, step.x.Rows(to, rows));
      backend_.GatherRows(waves[w].dy.view(), source, batch.gate.data() + from,
                          step.gated_dy.Rows(to, rows));
      backend_.Copy(batch.hidden.view().row(from), step.hidden.view().row(to),
                    rows * hidden_bytes);
      backend_.Copy(batch.dhidden.view().row(from), step.dhidden.view().row(to),
                    rows * hidden_bytes);
      to += rows;
    }
  });
  return step;
}

void ExpertShard::AppendSquareSums(std::span<const WaveRows> waves,
                                   std::vector<v1::TensorSquareSum>* sums) {
  const StepBatch& step = Gather(waves);
  if (step.experts.empty()) return;
  std::vector<double> values(2 * step.experts.size());
  backend_.ExpertSquareSums(step.experts, step.x.view(), step.hidden.view(),
                            step.dhidden.view(), step.gated_dy.view(), values);
  for (size_t i = 0; i < values.size(); ++i) {
    v1::TensorSquareSum& sum = sums->emplace_back();
    sum.set_tensor(spec_.tensors[2 * step.expert[i / 2] + i % 2]);
    sum.set_sum(values[i]);
  }
}

void ExpertShard::Apply(std::span<const WaveRows> waves, double rate, double scale) {
  const StepBatch& step = Gather(waves);
  std::fill(last_rows_.begin(), last_rows_.end(), 0);
  std::vector<ExpertUpdate> updates;
  for (size_t i = 0; i < step.experts.size(); ++i) {
    const int32_t e = step.expert[i];
    const int w1 = 2 * e;
    const int w2 = 2 * e + 1;
    ExpertUpdate update;
    update.expert = step.experts[i];
    update.m1 = parameters_.m(w1);
    update.v1 = parameters_.v(w1);
    update.m2 = parameters_.m(w2);
    update.v2 = parameters_.v(w2);
    update.step = parameters_.NextUpdate(w1, rate, scale);
    parameters_.NextUpdate(w2, rate, scale);
    updates.push_back(update);
    last_rows_[e] = step.experts[i].rows;
    total_rows_[e] += step.experts[i].rows;
  }
  if (!updates.empty()) {
    backend_.ExpertUpdates(updates, step.x.view(), step.hidden.view(),
                           step.dhidden.view(), step.gated_dy.view());
  }
  step_.reset();
  waves_.clear();
}

void ExpertShard::FillStatus(v1::ShardStatus* status) const {
  status->set_shard(spec_.id);
  status->set_parameter_bytes(parameters_.parameter_bytes());
  status->set_optimizer_bytes(parameters_.optimizer_bytes());
  for (int32_t e = 0; e < spec_.experts; ++e) {
    v1::ExpertStatus* expert = status->add_experts();
    expert->set_layer(spec_.layer);
    expert->set_expert(spec_.first_expert + e);
    expert->set_last_rows(last_rows_[e]);
    expert->set_total_rows(total_rows_[e]);
    expert->set_updates(parameters_.count(2 * e));
  }
}

}  // namespace moe
