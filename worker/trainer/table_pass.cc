#include "worker/trainer/table_pass.h"

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"

namespace moe {
namespace {

void Append(std::span<const int32_t> words, std::vector<int32_t>* all) {
  all->insert(all->end(), words.begin(), words.end());
}

}  // namespace

TablePass::TablePass(Backend& backend, const v1::Job& job, TableClient& tables,
                     ActivityClock& clock)
    : backend_(backend),
      job_(job),
      client_(tables),
      clock_(clock),
      waves_(job.training().waves()) {}

absl::StatusOr<std::span<const StepTables>> TablePass::Pull(
    uint64_t version, PassMode mode, uint64_t step, std::span<const MicroBatch> batches) {
  const size_t replicas = batches.size() / waves_;
  std::vector<std::vector<int32_t>> input(replicas);
  std::vector<std::vector<int32_t>> target(replicas);
  Pulled embedding;
  Pulled softmax;
  for (size_t i = 0; i < replicas; ++i) {
    for (size_t w = 0; w < waves_; ++w) {
      Append(batches[i * waves_ + w].input, &input[i]);
      Append(batches[i * waves_ + w].target, &target[i]);
    }
    input[i] = DistinctWords(std::move(input[i]));
    target[i] = DistinctWords(std::move(target[i]));
    Append(input[i], &embedding.words);
    Append(target[i], &softmax.words);
  }
  const bool training = mode == PassMode::kTrain;
  std::shared_ptr<StepCandidates> candidates;
  if (training) {
    const v1::Model& model = job_.model();
    candidates = std::make_shared<StepCandidates>();
    candidates->candidates = DrawCandidates(job_.seed(), step, model.vocabulary(),
                                            model.tables().candidates());
    Append(candidates->candidates.words, &softmax.words);
  }
  embedding.words = DistinctWords(std::move(embedding.words));
  softmax.words = DistinctWords(std::move(softmax.words));

  ActivityScope scope(clock_, Activity::kMoving);
  const PullFor purpose = training ? PullFor::kTraining : PullFor::kEvaluation;
  RETURN_IF_ERROR(client_.SendPull(version, purpose, Table::kEmbedding, embedding.words));
  if (training) {
    RETURN_IF_ERROR(client_.SendPull(version, purpose, Table::kSoftmax, softmax.words));
  }
  RETURN_IF_ERROR(Await(version, Table::kEmbedding, &embedding));
  if (training) RETURN_IF_ERROR(Await(version, Table::kSoftmax, &softmax));

  const int64_t columns = client_.columns(Table::kSoftmax);
  if (training) {
    const std::vector<int32_t>& words = candidates->candidates.words;
    candidates->rows = Pick(softmax, words, columns, &candidates->candidates);
    for (size_t c = 0; c < words.size(); ++c) {
      candidates->place.emplace(words[c], static_cast<int32_t>(c));
    }
  }
  tables_.clear();
  for (size_t i = 0; i < replicas; ++i) {
    StepTables& tables = tables_.emplace_back();
    tables.input = Pick(embedding, std::move(input[i]),
                        client_.columns(Table::kEmbedding), /*candidates=*/nullptr);
    if (!training) continue;
    tables.candidates = candidates;
    tables.target = Pick(softmax, std::move(target[i]), columns, &candidates->candidates);
  }
  return std::span<const StepTables>(tables_);
}

absl::Status TablePass::Await(uint64_t version, Table table, Pulled* pulled) {
  pulled->values.resize(pulled->words.size() * client_.columns(table));
  return client_.AwaitPull(version, table, pulled->words, pulled->values);
}

TableRows TablePass::Pick(const Pulled& from, std::vector<int32_t> words, int64_t columns,
                          const Candidates* candidates) {
  const int64_t d = job_.model().d_model();
  const auto rows = static_cast<int64_t>(words.size());
  std::vector<float> w(rows * d);
  std::vector<float> b;
  for (int64_t r = 0; r < rows; ++r) {
    const auto row = from.values.begin() + PlaceOf(from.words, words[r]) * columns;
    std::copy_n(row, d, w.begin() + r * d);
    if (candidates != nullptr) {
      b.push_back(row[d] - candidates->LogExpectedCount(words[r]));
    }
  }
  TableRows picked;
  picked.words = std::move(words);
  picked.w = Tensor(backend_, rows, d);
  picked.w.Upload(w);
  picked.b = Array<float>(backend_, static_cast<int64_t>(b.size()));
  picked.b.Upload(b);
  return picked;
}

absl::Status TablePass::Score(uint64_t batch, int32_t wave, uint64_t version,
                              std::span<const std::unique_ptr<ReplicaModel>> models,
                              std::span<const uint32_t> owned,
                              std::span<const MicroBatch> batches) {
  ActivityScope scope(clock_, Activity::kMoving);
  std::vector<ScoreCall> calls;
  for (size_t i = 0; i < owned.size(); ++i) {
    calls.push_back({.replica = owned[i],
                     .x = models[i]->softmax_input(wave).data(),
                     .target = batches[i * waves_ + wave].target});
  }
  ASSIGN_OR_RETURN(const std::vector<double> losses,
                   client_.Score(batch, wave, version, calls));
  for (size_t i = 0; i < owned.size(); ++i) models[i]->SetLossSum(wave, losses[i]);
  return absl::OkStatus();
}

}  // namespace moe
