#include "tests/worker/local_step.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/random/random.h"
#include "glog/logging.h"
#include "worker/gating/cv_squared.h"

namespace moe::testing {
namespace {

// Of an expert or table shard, and so not the replicas'.
bool IsOfServers(const TensorSpec& tensor) {
  return tensor.of_table || tensor.name.find(".expert") != std::string::npos ||
         tensor.name.find(".group") != std::string::npos;
}

// matrix: from 0.
std::string ExpertName(const Mixture& mixture, int32_t expert, size_t matrix) {
  return absl::StrCat(mixture.tensors, "expert", expert, ".w", matrix + 1);
}

// Flat, [replica * wave].
std::vector<MicroBatch> MicroBatches(
    const std::vector<std::vector<LocalBatch>>& batches) {
  std::vector<MicroBatch> flat;
  for (const auto& of_replica : batches) {
    for (const LocalBatch& batch : of_replica)
      flat.push_back({batch.input, batch.target});
  }
  return flat;
}

std::vector<float> Download(const Tensor& tensor) {
  std::vector<float> values(tensor.size());
  tensor.Download(values);
  return values;
}

}  // namespace

NamedTensors RandomParameters(const v1::Job& job, uint64_t seed) {
  NamedTensors parameters;
  for (const TensorSpec& tensor : MakeModelPlan(job).tensors) {
    std::vector<float>& values = parameters[tensor.name];
    values.resize(tensor.size());
    const auto id = static_cast<uint32_t>(tensor.index);
    FillUniform(MakeKey(seed, Purpose::kProbe, {.tensor = id}), 0, values);
    for (size_t i = 0; i < values.size(); ++i) {
      const auto column = static_cast<int64_t>(i) % tensor.cols;
      const bool offset = column >= tensor.offset_begin && column < tensor.offset_end;
      values[i] += (offset ? tensor.offset : 0) - 0.5f;
    }
  }
  return parameters;
}

std::vector<std::vector<LocalBatch>> RandomBatches(const v1::Job& job, uint64_t seed) {
  const v1::Training& training = job.training();
  const size_t rows = training.lanes() / training.waves() * training.unroll();
  std::vector<std::vector<LocalBatch>> batches(training.replicas());
  for (uint32_t r = 0; r < batches.size(); ++r) {
    for (int32_t w = 0; w < training.waves(); ++w) {
      std::vector<uint32_t> bits(2 * rows);
      FillBits(MakeKey(seed, Purpose::kProbe,
                       {.wave = static_cast<uint32_t>(w), .replica = r}),
               0, bits);
      LocalBatch& batch = batches[r].emplace_back();
      for (size_t t = 0; t < rows; ++t) {
        batch.input.push_back(bits[2 * t] % job.model().vocabulary());
        batch.target.push_back(bits[2 * t + 1] % job.model().vocabulary());
      }
    }
  }
  return batches;
}

LocalModel::LocalModel(Backend& backend, const v1::Job& job, bool parallel)
    : backend_(backend),
      job_(job),
      parallel_(parallel),
      plan_(MakeModelPlan(job)),
      parameters_(backend, plan_),
      mixtures_(MixturesOf(job)),
      tables_(job.model().vocabulary(), job.model().d_model()) {
  const v1::Training& training = job.training();
  if (job.model().has_tables()) {
    table_pass_ = std::make_unique<TablePass>(backend, job_, tables_, clock_);
  }
  for (int32_t r = 0; r < training.replicas(); ++r) {
    replicas_.push_back(std::make_unique<ReplicaModel>(
        backend, job_, plan_, parameters_, r, training.lanes(), training.waves(),
        training.unroll()));
  }
  for (const Mixture& mixture : mixtures_) {
    experts_.emplace_back(backend, job_, mixture);
    gates_.push_back(mixture.moe.k_primary() > 0 ? std::make_unique<LocalSecondaryGates>(
                                                       backend, job_, mixture.id.layer)
                                                 : nullptr);
  }
}

void LocalModel::SetParameters(const NamedTensors& parameters) {
  if (table_pass_ != nullptr) {
    for (const TensorSpec& tensor : plan_.tensors) {
      if (tensor.of_table) of_tables_[tensor.name] = parameters.at(tensor.name);
    }
    for (const Table table : {Table::kEmbedding, Table::kSoftmax}) SetTable(table);
  }
  for (const TensorSpec& tensor : plan_.tensors) {
    if (IsOfServers(tensor)) continue;
    const std::vector<float>& values = parameters.at(tensor.name);
    backend_.Upload(values.data(), parameters_.tensor(tensor.name).data,
                    values.size() * sizeof(float));
  }
  for (size_t i = 0; i < experts_.size(); ++i) {
    for (int32_t e = 0; e < experts_[i].experts(); ++e) {
      std::vector<Tensor>& weights = experts_[i].weights(e);
      for (size_t j = 0; j < weights.size(); ++j) {
        weights[j].Upload(parameters.at(ExpertName(mixtures_[i], e, j)));
      }
    }
    if (gates_[i] == nullptr) continue;
    for (const LocalSecondaryGates::GateTensor& tensor : gates_[i]->Tensors()) {
      const std::vector<float>& values = parameters.at(tensor.name);
      backend_.Upload(values.data(), tensor.value.data, values.size() * sizeof(float));
    }
  }
}

NamedTensors LocalModel::GetParameters() {
  NamedTensors parameters = of_tables_;
  for (const TensorSpec& tensor : plan_.tensors) {
    if (IsOfServers(tensor)) continue;
    std::vector<float>& values = parameters[tensor.name];
    values.resize(tensor.size());
    backend_.Download(parameters_.tensor(tensor.name).data, values.data(),
                      values.size() * sizeof(float));
  }
  for (size_t i = 0; i < experts_.size(); ++i) {
    for (int32_t e = 0; e < experts_[i].experts(); ++e) {
      const std::vector<Tensor>& weights = experts_[i].weights(e);
      for (size_t j = 0; j < weights.size(); ++j) {
        parameters[ExpertName(mixtures_[i], e, j)] = Download(weights[j]);
      }
    }
    if (gates_[i] == nullptr) continue;
    for (const LocalSecondaryGates::GateTensor& tensor : gates_[i]->Tensors()) {
      std::vector<float>& values = parameters[tensor.name];
      values.resize(tensor.value.size());
      backend_.Download(tensor.value.data, values.data(), values.size() * sizeof(float));
    }
  }
  return parameters;
}

LocalModel::StepResult LocalModel::Forward(
    uint64_t step, PassMode mode, const std::vector<std::vector<LocalBatch>>& batches) {
  StepResult result;
  int64_t tokens = 0;
  for (const auto& of_replica : batches) {
    for (const LocalBatch& batch : of_replica) {
      for (int32_t target : batch.target) tokens += target >= 0;
    }
  }
  std::span<const StepTables> tables;
  if (table_pass_ != nullptr) {
    const auto pulled =
        table_pass_->Pull(/*version=*/step, mode, step, MicroBatches(batches));
    CHECK(pulled.ok()) << pulled.status();
    tables = *pulled;
  }
  for (size_t r = 0; r < replicas_.size(); ++r) {
    replicas_[r]->BeginStep(step, mode, tokens, tables.empty() ? nullptr : &tables[r]);
  }
  for (LocalExperts& experts : experts_) experts.BeginStep();
  for (auto& gates : gates_) {
    if (gates != nullptr) gates->BeginStep();
  }
  const int32_t waves = job_.training().waves();
  const int segments = replicas_[0]->segments();
  result.choices.resize(segments - 1);
  outputs_.assign(segments - 1, std::vector<std::vector<std::vector<float>>>(waves));
  for (int segment = 0; segment < segments; ++segment) {
    for (int32_t wave = 0; wave < waves; ++wave) {
      ForEachReplica([&](int64_t r) {
        const LocalBatch& batch = batches[r][wave];
        replicas_[r]->Forward(segment, wave, batch.input, batch.target);
      });
      if (segment == segments - 1 && table_pass_ != nullptr &&
          mode == PassMode::kEvaluate) {
        std::vector<uint32_t> all(replicas_.size());
        std::iota(all.begin(), all.end(), 0);
        const absl::Status scored = table_pass_->Score(
            step, wave, /*version=*/step, replicas_, all, MicroBatches(batches));
        CHECK(scored.ok()) << scored;
      }
      std::vector<const MoeCall*> calls;
      for (auto& replica : replicas_) {
        if (segment == segments - 1) {
          result.loss_sum += replica->loss_sum(wave);
        } else {
          calls.push_back(&replica->moe_call(segment, wave));
        }
      }
      if (segment == segments - 1) continue;
      const MoeExchange& exchange = replicas_[0]->exchange(segment);
      std::vector<MoeCall> flat;
      if (gates_[exchange.mixture] != nullptr) {
        flat = gates_[exchange.mixture]->Forward(mode, step, wave, calls);
        for (size_t r = 0; r < flat.size(); ++r) calls[r] = &flat[r];
      }
      const auto& y = outputs_[segment][wave] =
          experts_[exchange.mixture].Forward(exchange.call * waves + wave, calls);
      result.choices[segment].resize(replicas_.size());
      for (size_t r = 0; r < replicas_.size(); ++r) {
        replicas_[r]->SetMoeOutput(segment, wave, y[r]);
        result.choices[segment][r].push_back(
            {.offset = {calls[r]->offset.begin(), calls[r]->offset.end()},
             .expert = {calls[r]->expert.begin(), calls[r]->expert.end()}});
      }
    }
  }
  result.loss = result.loss_sum / static_cast<double>(tokens);
  return result;
}

LocalModel::StepResult LocalModel::Evaluate(
    const std::vector<std::vector<LocalBatch>>& batches) {
  return Forward(/*step=*/0, PassMode::kEvaluate, batches);
}

LocalModel::StepResult LocalModel::Train(
    uint64_t step, const std::vector<std::vector<LocalBatch>>& batches) {
  StepResult result = Forward(step, PassMode::kTrain, batches);
  Backward(&result);
  return result;
}

void LocalModel::ForEachReplica(const std::function<void(int64_t)>& fn) {
  const auto replicas = static_cast<int64_t>(replicas_.size());
  if (parallel_) {
    backend_.parallel().For(replicas, fn);
  } else {
    for (int64_t r = 0; r < replicas; ++r) fn(r);
  }
}

void LocalModel::Recompute(int segment, int32_t wave) {
  const std::vector<int> again = replicas_[0]->recomputed(segment);
  for (size_t i = 0; i < again.size(); ++i) {
    ForEachReplica([&](int64_t r) {
      replicas_[r]->Recompute(segment, wave, i, outputs_[again[i]][wave][r]);
    });
  }
}

void LocalModel::Backward(StepResult* result) {
  const int32_t waves = job_.training().waves();
  // By mixture.
  std::vector<std::vector<double>> dimportance(mixtures_.size()), dload(mixtures_.size());
  for (size_t m = 0; m < mixtures_.size(); ++m) {
    const v1::Moe& moe = mixtures_[m].moe;
    if (gates_[m] != nullptr) {
      const BalanceMoments moments = gates_[m]->Moments();
      result->balance_loss += moe.w_importance() * CvSquared(moments.importance) +
                              moe.w_load() * CvSquared(moments.load);
      dimportance[m].resize(moe.groups());
    } else {
      result->balance_loss +=
          moe.w_importance() *
              CvSquared(experts_[m].importance(), moe.w_importance(), &dimportance[m]) +
          moe.w_load() * CvSquared(experts_[m].load(), moe.w_load(), &dload[m]);
    }
  }
  // [wave][replica] dL/dy of the exchange at hand.
  std::vector<std::vector<std::vector<float>>> dy(
      waves, std::vector<std::vector<float>>(replicas_.size()));
  for (int segment = replicas_[0]->segments() - 1; segment >= 0; --segment) {
    for (int32_t wave = 0; wave < waves; ++wave) {
      if (segment < replicas_[0]->segments() - 1) {
        const MoeExchange& exchange = replicas_[0]->exchange(segment);
        const int32_t m = exchange.mixture;
        LocalExperts::Gradients gradients = experts_[m].Backward(
            exchange.call * waves + wave,
            std::vector<std::span<const float>>(dy[wave].begin(), dy[wave].end()));
        if (gates_[m] != nullptr) dload[m] = gates_[m]->Backward(wave, &gradients);
        ForEachReplica([&](int64_t r) {
          replicas_[r]->SetMoeGradient(segment, wave, gradients.dx[r], gradients.dgate[r],
                                       dimportance[m], dload[m]);
        });
      }
      Recompute(segment, wave);
      ForEachReplica([&](int64_t r) {
        replicas_[r]->Backward(segment, wave);
        if (segment == 0) return;
        const std::span<const float> of_replica = replicas_[r]->moe_output_gradient();
        dy[wave][r].assign(of_replica.begin(), of_replica.end());
      });
    }
  }
  result->loss += result->balance_loss;

  gradients_.clear();
  for (const TensorSpec& tensor : plan_.tensors) {
    if (!IsOfServers(tensor)) gradients_[tensor.name] = SumOverReplicas(tensor.name);
  }
  if (table_pass_ != nullptr) {
    for (const Table table : {Table::kEmbedding, Table::kSoftmax}) {
      SumRowsOverReplicas(table);
    }
  }
  for (size_t i = 0; i < experts_.size(); ++i) {
    for (int32_t e = 0; e < experts_[i].experts(); ++e) {
      const std::vector<Tensor> gradients = experts_[i].WeightGradients(e);
      for (size_t j = 0; j < gradients.size(); ++j) {
        gradients_[ExpertName(mixtures_[i], e, j)] = Download(gradients[j]);
      }
    }
    if (gates_[i] == nullptr) continue;
    for (LocalSecondaryGates::GateTensor& tensor : gates_[i]->Tensors()) {
      tensor.gradient.resize(tensor.value.size());
      gradients_[tensor.name] = std::move(tensor.gradient);
    }
  }
  result->gradients = gradients_;
}

std::vector<float> LocalModel::SumOverReplicas(const std::string& name) {
  std::vector<float> sum;
  for (auto& replica : replicas_) {
    const Matrix gradient = replica->gradients().tensor(name);
    std::vector<float> values(gradient.size());
    backend_.Download(gradient.data, values.data(), values.size() * sizeof(float));
    if (sum.empty()) {
      sum = std::move(values);
    } else {
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
    }
  }
  return sum;
}

void LocalModel::SetTable(Table table) {
  const int64_t width = tables_.columns(table);
  std::vector<float> rows(job_.model().vocabulary() * width);
  for (const ShardSpec& shard : plan_.shards) {
    if (shard.kind != ShardKind::kTable || shard.table != table) continue;
    float* out = rows.data() + shard.first_row * width;
    for (const int64_t t : shard.tensors) {
      const TensorSpec& tensor = plan_.tensors[t];
      const std::vector<float>& values = of_tables_.at(tensor.name);
      for (int64_t r = 0; r < shard.rows; ++r) {
        std::copy_n(values.begin() + r * tensor.cols, tensor.cols, out + r * width);
      }
      out += tensor.cols;
    }
  }
  tables_.Set(table, std::move(rows));
}

void LocalModel::SumRowsOverReplicas(Table table) {
  SparseRows sum;
  for (const auto& replica : replicas_) {
    AddSum(table == Table::kEmbedding ? replica->EmbeddingGradients()
                                      : replica->SoftmaxGradients(),
           &sum);
  }
  touched_[table].assign(sum.row.begin(), sum.row.end());
  const int64_t width = tables_.columns(table);
  for (const ShardSpec& shard : plan_.shards) {
    if (shard.kind != ShardKind::kTable || shard.table != table) continue;
    int64_t column = 0;
    for (const int64_t t : shard.tensors) {
      const TensorSpec& tensor = plan_.tensors[t];
      std::vector<float>& gradient = gradients_[tensor.name];
      gradient.resize(tensor.size());
      for (size_t i = 0; i < sum.row.size(); ++i) {
        const int64_t row = sum.row[i] - shard.first_row;
        if (row < 0 || row >= shard.rows) continue;
        std::copy_n(sum.value.begin() + static_cast<int64_t>(i) * width + column,
                    tensor.cols, gradient.begin() + row * tensor.cols);
      }
      column += tensor.cols;
    }
  }
}

Tensor LocalModel::Upload(const TensorSpec& spec,
                          const std::vector<float>& values) const {
  Tensor tensor(backend_, spec.rows, spec.cols);
  tensor.Upload(values);
  return tensor;
}

void LocalModel::UpdateTensor(const OptimizerStep& step, const TensorSpec& tensor,
                              float* value, NamedTensors* m, NamedTensors* v) {
  const Tensor gradient = Upload(tensor, gradients_.at(tensor.name));
  const Tensor first = Upload(tensor, m->at(tensor.name));
  const Tensor second = Upload(tensor, v->at(tensor.name));
  OptimizerStep own = step;
  if (tensor.own_rate > 0) {
    own.kind = OptimizerStep::Kind::kSgd;
    own.adam.rate = tensor.own_rate;
  }
  backend_.OptimizerUpdate(own, gradient.view(), value, first.data(), second.data());
  (*m)[tensor.name] = Download(first);
  (*v)[tensor.name] = Download(second);
}

void LocalModel::UpdateTables(const OptimizerStep& step, NamedTensors* m,
                              NamedTensors* v) {
  for (const ShardSpec& shard : plan_.shards) {
    if (shard.kind != ShardKind::kTable) continue;
    std::vector<int32_t> rows;
    for (const int32_t word : touched_.at(shard.table)) {
      const int64_t row = word - shard.first_row;
      if (row >= 0 && row < shard.rows) rows.push_back(static_cast<int32_t>(row));
    }
    const std::vector<int64_t> count(rows.size(), step.adam.count);
    for (const int64_t t : shard.tensors) {
      const TensorSpec& tensor = plan_.tensors[t];
      const Tensor all = Upload(tensor, gradients_.at(tensor.name));
      const Tensor gradient(backend_, static_cast<int64_t>(rows.size()), tensor.cols);
      backend_.GatherRows(all.view(), rows, /*scale=*/nullptr, gradient.view());
      const Tensor value = Upload(tensor, of_tables_.at(tensor.name));
      const Tensor first = Upload(tensor, m->at(tensor.name));
      const Tensor second = Upload(tensor, v->at(tensor.name));
      backend_.UpdateRows(step, rows, count, gradient.view(), value.view(), first.view(),
                          second.view());
      of_tables_[tensor.name] = Download(value);
      (*m)[tensor.name] = Download(first);
      (*v)[tensor.name] = Download(second);
    }
  }
  for (const Table table : {Table::kEmbedding, Table::kSoftmax}) SetTable(table);
}

void LocalModel::Update(const OptimizerStep& step, NamedTensors* m, NamedTensors* v) {
  if (table_pass_ != nullptr) UpdateTables(step, m, v);
  std::map<std::string, const TensorSpec*> specs;
  for (const TensorSpec& tensor : plan_.tensors) {
    specs[tensor.name] = &tensor;
    if (IsOfServers(tensor)) continue;
    UpdateTensor(step, tensor, parameters_.tensor(tensor.name).data, m, v);
  }
  for (size_t i = 0; i < experts_.size(); ++i) {
    std::vector<LocalExperts::Moments> moments(experts_[i].experts());
    for (int32_t e = 0; e < experts_[i].experts(); ++e) {
      for (size_t j = 0; j < experts_[i].weights(e).size(); ++j) {
        const std::string name = ExpertName(mixtures_[i], e, j);
        moments[e].m.push_back(Upload(*specs.at(name), m->at(name)));
        moments[e].v.push_back(Upload(*specs.at(name), v->at(name)));
      }
    }
    experts_[i].Update(step, moments);
    for (int32_t e = 0; e < experts_[i].experts(); ++e) {
      for (size_t j = 0; j < moments[e].m.size(); ++j) {
        (*m)[ExpertName(mixtures_[i], e, j)] = Download(moments[e].m[j]);
        (*v)[ExpertName(mixtures_[i], e, j)] = Download(moments[e].v[j]);
      }
    }
    if (gates_[i] == nullptr) continue;
    for (const LocalSecondaryGates::GateTensor& tensor : gates_[i]->Tensors()) {
      if (tensor.gradient.empty()) continue;
      UpdateTensor(step, *specs.at(tensor.name), tensor.value.data, m, v);
    }
  }
}

}  // namespace moe::testing
