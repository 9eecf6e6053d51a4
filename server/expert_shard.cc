#include "server/expert_shard.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/base/status_macros.h"
#include "common/job/mixtures.h"
#include "common/tensor/bytes.h"
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

// Of the experts of a shard.
std::vector<int64_t> HiddenWidths(const ModelPlan& plan, const ShardSpec& spec) {
  const size_t matrices = (spec.tensors.size() - spec.gate_tensors) / spec.experts;
  std::vector<int64_t> widths;
  for (size_t i = 0; i + 1 < matrices; ++i) {
    widths.push_back(plan.tensors[spec.tensors[spec.gate_tensors + i]].cols);
  }
  return widths;
}

// "", "input" or "recurrent".
std::string MixturePart(const v1::Job& job, const ShardSpec& spec) {
  for (const Mixture& mixture : MixturesOf(job)) {
    if (mixture.id == MixtureId(spec.layer, spec.mixture)) return mixture.part;
  }
  LOG(FATAL) << spec.id << " is of no mixture";
}

void PutSpread(const Spread& spread, v1::Spread* message) {
  message->set_mean(spread.mean);
  message->set_m2(spread.m2);
}

}  // namespace

ExpertShard::ExpertShard(Backend& backend, const ModelPlan& plan, const ShardSpec& spec,
                         const v1::Job& job, Host host)
    : backend_(backend),
      spec_(spec),
      mixture_(MixturePart(job, spec)),
      in_(plan.tensors[spec.tensors[spec.gate_tensors]].rows),
      out_(plan.tensors[spec.tensors.back()].cols),
      hidden_(HiddenWidths(plan, spec)),
      bfloat16_(plan.tensors[spec.tensors[spec.gate_tensors]].bfloat16),
      activations_(host.activations),
      parameters_(backend, plan, spec, job, host.tier),
      last_rows_(spec.experts),
      total_rows_(spec.experts) {
  CHECK_EQ(parameters_.tensors(), FirstMatrix(spec.experts));
  for (int i = 0; i < parameters_.tensors(); ++i) {
    values_.w.push_back(parameters_.w(i));
    values_.w16.push_back(parameters_.w16(i));
    m_.push_back(parameters_.m(i));
    v_.push_back(parameters_.v(i));
  }
  if (spec.gate_tensors > 0) gate_.emplace(backend, job, spec_, parameters_);
}

ExpertShard::~ExpertShard() { ForgetStep(); }

void ExpertShard::ForgetStep() {
  if (activations_ != nullptr) {
    for (const WaveBatch& batch : waves_) {
      if (batch.kept) activations_->Return(HiddenBytes(batch));
    }
  }
  step_.reset();
  waves_.clear();
}

ExpertRows ExpertShard::RowsOf(int32_t expert, int64_t begin, int64_t rows,
                               const Values& values) const {
  ExpertRows of_expert;
  of_expert.begin = begin;
  of_expert.rows = rows;
  if (bfloat16_) {
    of_expert.w16 = OfExpert(values.w16, expert);
  } else {
    of_expert.w = OfExpert(values.w, expert);
  }
  return of_expert;
}

std::vector<Tensor> ExpertShard::HiddenTensors(int64_t rows) const {
  std::vector<Tensor> tensors;
  for (int64_t width : hidden_) tensors.emplace_back(backend_, rows, width);
  return tensors;
}

template <typename Fn>
void ExpertShard::ForExpertsWithRows(const WaveBatch& batch, const Fn& fn) const {
  for (int32_t e = 0; e < spec_.experts; ++e) {
    const int64_t rows = batch.begin[e + 1] - batch.begin[e];
    if (rows > 0) fn(e, batch.begin[e], rows);
  }
}

std::vector<ExpertRows> ExpertShard::ExpertsOf(const WaveBatch& batch,
                                               const Values& values) const {
  std::vector<ExpertRows> experts;
  ForExpertsWithRows(batch, [&](int32_t e, int64_t begin, int64_t rows) {
    experts.push_back(RowsOf(e, begin, rows, values));
  });
  return experts;
}

absl::Status ExpertShard::Touch(const WaveBatch& batch) {
  absl::Status status;
  ForExpertsWithRows(batch, [&](int32_t e, int64_t, int64_t) {
    for (int i = FirstMatrix(e); status.ok() && i < FirstMatrix(e + 1); ++i) {
      status = parameters_.Touch(i);
    }
  });
  return status;
}

void ExpertShard::PrefetchExpert(int32_t expert) const {
  for (int i = FirstMatrix(expert); i < FirstMatrix(expert + 1); ++i) {
    parameters_.Prefetch(i);
  }
}

void ExpertShard::Prefetch(const WaveBatch& batch) const {
  ForExpertsWithRows(batch, [&](int32_t e, int64_t, int64_t) { PrefetchExpert(e); });
}

bool ExpertShard::HasMemory(int32_t expert) const {
  for (int i = FirstMatrix(expert); i < FirstMatrix(expert + 1); ++i) {
    if (!parameters_.has_memory(i)) return false;
  }
  return true;
}

void ExpertShard::Evaluate(const WaveBatch& batch, ConstMatrix x,
                           std::span<const Matrix> hidden, Matrix y) const {
  Prefetch(batch);
  std::vector<ExpertRows> touched;
  std::vector<std::pair<int32_t, ExpertRows>> untouched;
  ForExpertsWithRows(batch, [&](int32_t e, int64_t begin, int64_t rows) {
    if (HasMemory(e)) {
      touched.push_back(RowsOf(e, begin, rows, values_));
    } else {
      ExpertRows& of_expert = untouched.emplace_back(e, ExpertRows()).second;
      of_expert.begin = begin;
      of_expert.rows = rows;
    }
  });
  backend_.ExpertForward(touched, x, hidden, y);
  backend_.parallel().For(static_cast<int64_t>(untouched.size()), [&](int64_t i) {
    EvaluateUntouched(untouched[i].second, untouched[i].first, x, hidden, y);
  });
}

void ExpertShard::EvaluateUntouched(ExpertRows of_expert, int32_t expert, ConstMatrix x,
                                    std::span<const Matrix> hidden, Matrix y) const {
  std::vector<Array<float>> floats;
  std::vector<Array<Bfloat16>> halves;
  std::vector<float*> w;
  std::vector<Bfloat16*> w16;
  for (int i = FirstMatrix(expert); i < FirstMatrix(expert + 1); ++i) {
    const int64_t size = parameters_.tensor(i).size();
    if (parameters_.has_memory(i)) {
      w16.push_back(values_.w16[i]);
      w.push_back(values_.w[i]);
    } else if (bfloat16_) {
      w16.push_back(halves.emplace_back(backend_, size).data());
      parameters_.GetInitialValues(i, w16.back());
    } else {
      w.push_back(floats.emplace_back(backend_, size).data());
      parameters_.GetInitialValues(i, w.back());
    }
  }
  if (bfloat16_) {
    of_expert.w16 = w16;
  } else {
    of_expert.w = w;
  }
  backend_.ExpertForward({&of_expert, 1}, x, hidden, y);
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

absl::StatusOr<std::vector<v1::GroupOutput>> ExpertShard::RunExperts(
    v1::Mode mode, const WaveRows& rows, std::span<const GroupPairs* const> pairs) {
  const bool train = mode == v1::MODE_TRAIN;
  std::vector<float> host_gate;
  WaveBatch batch = Join(rows, pairs, &host_gate);
  if (train) RETURN_IF_ERROR(Touch(batch));
  std::vector<v1::GroupOutput> outputs(pairs.size());
  for (v1::GroupOutput& output : outputs) output.set_group(spec_.group);

  if (batch.pairs() > 0) {
    Tensor x(backend_, batch.pairs(), in_);
    batch.hidden = HiddenTensors(batch.pairs());
    Tensor y(backend_, batch.pairs(), out_);
    Tensor combined(backend_, batch.rows(), out_);
    Array<float> pair_gate(backend_, batch.pairs());
    pair_gate.Upload(host_gate);
    backend_.GatherRows(rows.x.view(), batch.source, nullptr, x.view());
    const std::vector<Matrix> hidden = Views<Matrix>(batch.hidden);
    if (train) {
      backend_.ExpertForward(ExpertsOf(batch, values_), x.view(), hidden, y.view());
    } else {
      Evaluate(batch, x.view(), hidden, y.view());
    }
    backend_.CombineRows(y.view(), batch.offset, batch.position, pair_gate.data(),
                         combined.view());
    for (size_t r = 0; r < pairs.size(); ++r) {
      DownloadRows(backend_, combined, batch.replica_row[r], batch.replica_row[r + 1],
                   outputs[r].mutable_y());
    }
  }
  if (train) {
    KeepOrFree(&batch);
    waves_.push_back(std::move(batch));
  }
  return outputs;
}

int64_t ExpertShard::HiddenBytes(const WaveBatch& batch) const {
  const int64_t width = std::accumulate(hidden_.begin(), hidden_.end(), int64_t{0});
  return 2 * batch.pairs() * width * static_cast<int64_t>(sizeof(float));
}

void ExpertShard::KeepOrFree(WaveBatch* batch) {
  batch->kept = activations_ == nullptr || activations_->Take(HiddenBytes(*batch));
  if (!batch->kept) batch->hidden.clear();
}

std::vector<Tensor> ExpertShard::HiddenAgain(const WaveRows& rows,
                                             const WaveBatch& batch) const {
  Tensor x(backend_, batch.pairs(), in_);
  std::vector<Tensor> hidden = HiddenTensors(batch.pairs());
  backend_.GatherRows(rows.x.view(), batch.source, nullptr, x.view());
  backend_.ExpertForward(ExpertsOf(batch, values_), x.view(), Views<Matrix>(hidden),
                         Matrix());
  return hidden;
}

std::vector<Tensor> ExpertShard::DhiddenAgain(const WaveRows& rows,
                                              const WaveBatch& batch,
                                              const std::vector<Tensor>& hidden) const {
  Tensor dy(backend_, batch.pairs(), out_);
  std::vector<Tensor> dhidden = HiddenTensors(batch.pairs());
  Array<float> dgate(backend_, batch.pairs());
  backend_.GatherRows(rows.dy.view(), batch.source, nullptr, dy.view());
  backend_.ExpertBackward(ExpertsOf(batch, values_), ConstMatrix(), dy.view(),
                          batch.gate.data(), Views<ConstMatrix>(hidden), dgate.data(),
                          Views<Matrix>(dhidden), Matrix());
  return dhidden;
}

absl::StatusOr<std::vector<v1::GroupOutput>> ExpertShard::Forward(
    v1::Mode mode, uint32_t wave, const WaveRows& rows,
    std::span<const GroupPairs* const> pairs) {
  if (mode == v1::MODE_TRAIN) CHECK_EQ(wave, waves_.size());
  ASSIGN_OR_RETURN(std::vector<v1::GroupOutput> outputs, RunExperts(mode, rows, pairs));
  if (mode != v1::MODE_TRAIN) return outputs;
  AddTotals(wave, pairs);
  for (v1::GroupOutput& output : outputs) {
    output.mutable_importance()->Assign(importance_.begin(), importance_.end());
    output.mutable_load()->Assign(load_.begin(), load_.end());
  }
  return outputs;
}

absl::StatusOr<std::vector<v1::GroupOutput>> ExpertShard::Forward(
    v1::Mode mode, uint64_t step, uint32_t wave, const WaveRows& rows,
    std::span<const GroupRows* const> chosen) {
  const std::vector<GroupPairs> pairs = gate_->Forward(mode, step, wave, rows, chosen);
  std::vector<const GroupPairs*> by_replica;
  for (const GroupPairs& replica : pairs) by_replica.push_back(&replica);
  ASSIGN_OR_RETURN(std::vector<v1::GroupOutput> outputs,
                   RunExperts(mode, rows, by_replica));
  for (size_t r = 0; r < pairs.size(); ++r) {
    v1::GroupRouting& routing = *outputs[r].mutable_chosen();
    routing.set_group(spec_.group);
    PutArray(pairs[r].row, routing.mutable_row());
    PutArray(pairs[r].expert, routing.mutable_expert());
    // In training it is nobody's business.
    if (mode == v1::MODE_EVALUATE) PutArray(pairs[r].gate, routing.mutable_gate());
  }
  if (mode != v1::MODE_TRAIN) return outputs;
  const Spread importance = gate_->ImportanceSpread();
  const Spread load = gate_->LoadSpread();
  for (v1::GroupOutput& output : outputs) {
    PutSpread(importance, output.mutable_importance_spread());
    PutSpread(load, output.mutable_load_spread());
  }
  return outputs;
}

std::vector<v1::GroupGradient> ExpertShard::Backward(uint32_t wave, const WaveRows& rows,
                                                     const BalanceMoments* moments) {
  CHECK_LT(wave, waves_.size());
  CHECK_EQ(moments != nullptr, gate_.has_value());
  WaveBatch& batch = waves_[wave];
  const size_t replicas = rows.begin.size() - 1;
  std::vector<v1::GroupGradient> gradients(replicas);
  const double dload_primary = gate_ ? gate_->LoadPrimaryGradient(*moments) : 0;
  for (v1::GroupGradient& gradient : gradients) {
    gradient.set_group(spec_.group);
    gradient.set_dload_primary(dload_primary);
  }
  if (batch.pairs() == 0) return gradients;

  Prefetch(batch);
  std::vector<Tensor> again;
  if (!batch.kept) again = HiddenAgain(rows, batch);
  // Of the experts' input, where there is no hidden layer, which would be as good.
  Tensor x;
  if (hidden_.empty()) {
    x = Tensor(backend_, batch.pairs(), in_);
    backend_.GatherRows(rows.x.view(), batch.source, nullptr, x.view());
  }
  Tensor dy(backend_, batch.pairs(), out_);
  std::vector<Tensor> dhidden = HiddenTensors(batch.pairs());
  Tensor dx(backend_, batch.pairs(), in_);
  Tensor combined(backend_, batch.rows(), in_);
  Array<float> dgate(backend_, batch.pairs());
  backend_.GatherRows(rows.dy.view(), batch.source, nullptr, dy.view());
  backend_.ExpertBackward(ExpertsOf(batch, values_), x.view(), dy.view(),
                          batch.gate.data(),
                          Views<ConstMatrix>(batch.kept ? batch.hidden : again),
                          dgate.data(), Views<Matrix>(dhidden), dx.view());
  if (batch.kept) batch.dhidden = std::move(dhidden);
  backend_.CombineRows(dx.view(), batch.offset, batch.position, nullptr, combined.view());
  std::vector<float> by_position(batch.pairs());
  dgate.Download(by_position);
  std::vector<float> by_pair;
  for (int32_t position : batch.position) by_pair.push_back(by_position[position]);
  // What goes back as dgate: by pair, or by row what the group's gate makes of it.
  std::vector<float> result = std::move(by_pair);
  std::span<const int64_t> begin = batch.replica_pair;
  if (gate_) {
    result = gate_->Backward(wave, *moments, result, combined.view());
    begin = batch.replica_row;
  }
  for (size_t r = 0; r < replicas; ++r) {
    DownloadRows(backend_, combined, batch.replica_row[r], batch.replica_row[r + 1],
                 gradients[r].mutable_dx());
    PutArray(std::span(result).subspan(begin[r], begin[r + 1] - begin[r]),
             gradients[r].mutable_dgate());
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
      PrefetchExpert(e);
      step.experts.push_back(RowsOf(e, begin.back(), rows, values_));
      step.expert.push_back(e);
    }
    begin.push_back(begin.back() + rows);
  }
  const int64_t size = begin.back();
  if (size == 0) return step;
  step.x = Tensor(backend_, size, in_);
  step.hidden = HiddenTensors(size);
  step.dhidden = HiddenTensors(size);
  step.gated_dy = Tensor(backend_, size, out_);
  struct Hidden {
    std::vector<Tensor> hidden;
    std::vector<Tensor> dhidden;
  };
  std::vector<Hidden> again(waves.size());
  for (size_t w = 0; w < waves.size(); ++w) {
    if (waves_[w].kept || waves_[w].pairs() == 0) continue;
    again[w].hidden = HiddenAgain(waves[w], waves_[w]);
    again[w].dhidden = DhiddenAgain(waves[w], waves_[w], again[w].hidden);
  }
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
      const std::vector<Tensor>& hidden = batch.kept ? batch.hidden : again[w].hidden;
      const std::vector<Tensor>& dhidden = batch.kept ? batch.dhidden : again[w].dhidden;
      for (size_t l = 0; l < hidden_.size(); ++l) {
        const size_t bytes = rows * hidden_[l] * sizeof(float);
        backend_.Copy(hidden[l].view().row(from), step.hidden[l].view().row(to), bytes);
        backend_.Copy(dhidden[l].view().row(from), step.dhidden[l].view().row(to), bytes);
      }
      to += rows;
    }
  });
  return step;
}

void ExpertShard::AppendSquareSums(std::span<const WaveRows> waves,
                                   std::vector<v1::TensorSquareSum>* sums) {
  if (gate_) gate_->AppendSquareSums(waves, sums);
  const StepBatch& step = Gather(waves);
  if (step.experts.empty()) return;
  std::vector<double> values(matrices() * step.experts.size());
  backend_.ExpertSquareSums(step.experts, step.x.view(), Views<ConstMatrix>(step.hidden),
                            Views<ConstMatrix>(step.dhidden), step.gated_dy.view(),
                            values);
  auto value = values.begin();
  for (int32_t e : step.expert) {
    for (int i = 0; i < matrices(); ++i) {
      v1::TensorSquareSum& sum = sums->emplace_back();
      sum.set_tensor(spec_.tensors[FirstMatrix(e) + i]);
      sum.set_sum(*value++);
    }
  }
}

void ExpertShard::Apply(std::span<const WaveRows> waves, double rate, double scale) {
  const StepBatch& step = Gather(waves);
  std::fill(last_rows_.begin(), last_rows_.end(), 0);
  std::vector<ExpertUpdate> updates;
  std::vector<OptimizerStep> steps;  // by expert and matrix
  steps.reserve(step.experts.size() * matrices());
  for (size_t i = 0; i < step.experts.size(); ++i) {
    const int32_t e = step.expert[i];
    // With clipping all shards were read since they were gathered.
    PrefetchExpert(e);
    for (int j = 0; j < matrices(); ++j) {
      steps.push_back(parameters_.NextUpdate(FirstMatrix(e) + j, rate, scale));
    }
    ExpertUpdate update;
    update.expert = step.experts[i];
    update.m = OfExpert(m_, e);
    update.v = OfExpert(v_, e);
    update.steps = std::span<const OptimizerStep>(steps).last(matrices());
    updates.push_back(update);
    last_rows_[e] = step.experts[i].rows;
    total_rows_[e] += step.experts[i].rows;
  }
  if (!updates.empty()) {
    backend_.ExpertUpdates(updates, step.x.view(), Views<ConstMatrix>(step.hidden),
                           Views<ConstMatrix>(step.dhidden), step.gated_dy.view());
  }
  if (gate_) gate_->Apply(waves, rate, scale);
  ForgetStep();
}

absl::Status ExpertShard::SetPiece(int64_t piece, uint64_t version,
                                   std::string_view content) {
  const int tensor = static_cast<int>(piece);
  ASSIGN_OR_RETURN(const bool fits, parameters_.SetContent(
                                        tensor, static_cast<int64_t>(version), content));
  return fits
             ? absl::OkStatus()
             : WrongPiece(spec_, piece, content.size(), parameters_.ContentBytes(tensor));
}

void ExpertShard::FillStatus(v1::ShardStatus* status) const {
  status->set_shard(spec_.id);
  parameters_.FillStatus(status);
  for (int32_t e = 0; e < spec_.experts; ++e) {
    v1::ExpertStatus* expert = status->add_experts();
    expert->set_layer(spec_.layer);
    expert->set_mixture(mixture_);
    expert->set_expert(spec_.first_expert + e);
    expert->set_last_rows(last_rows_[e]);
    expert->set_total_rows(total_rows_[e]);
    expert->set_updates(parameters_.count(FirstMatrix(e)));
  }
}

}  // namespace moe
