#include "client/remote_tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/tensor/bytes.h"
#include "glog/logging.h"

namespace moe {
namespace {

using Case = v1::ExchangeRequest;

std::vector<int32_t> ShardsOf(const ModelPlan& plan, Table table) {
  std::vector<int32_t> shards;
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    const ShardSpec& spec = plan.shards[i];
    if (spec.kind == ShardKind::kTable && spec.table == table) {
      shards.push_back(static_cast<int32_t>(i));
    }
  }
  return shards;
}

// Sums of e^logit over words, relative to the largest, and the target's logit.
struct TokenScore {
  double largest = -HUGE_VAL;
  double sum = 0;
  double target = 0;

  void Add(float shard_largest, double shard_sum) {
    const double most = std::max<double>(largest, shard_largest);
    const double before = sum == 0 ? 0 : sum * std::exp(largest - most);
    sum = before + shard_sum * std::exp(shard_largest - most);
    largest = most;
  }
  double loss() const { return largest + std::log(sum) - target; }
};

}  // namespace

RemoteTables::RemoteTables(const ServerSet& servers, const ModelPlan& plan,
                           int64_t d_model)
    : servers_(servers),
      plan_(plan),
      d_model_(d_model),
      embedding_(ShardsOf(plan, Table::kEmbedding)),
      softmax_(ShardsOf(plan, Table::kSoftmax)) {}

int64_t RemoteTables::columns(Table table) const {
  return table == Table::kEmbedding ? d_model_ : d_model_ + 1;
}

std::vector<RemoteTables::Run> RemoteTables::RunsOf(
    Table table, std::span<const int32_t> words) const {
  std::vector<Run> runs;
  size_t begin = 0;
  for (const int32_t shard : table == Table::kEmbedding ? embedding_ : softmax_) {
    const ShardSpec& spec = plan_.shards[shard];
    const auto end =
        std::lower_bound(words.begin(), words.end(), spec.first_row + spec.rows);
    const auto count = static_cast<size_t>(end - words.begin()) - begin;
    if (count > 0) runs.push_back({shard, begin, count});
    begin += count;
  }
  CHECK_EQ(begin, words.size()) << "words beyond the vocabulary";
  return runs;
}

absl::Status RemoteTables::SendPull(uint64_t version, Table table,
                                    std::span<const int32_t> words) {
  for (const Run& run : RunsOf(table, words)) {
    const ShardSpec& spec = plan_.shards[run.shard];
    std::vector<uint32_t> row;
    for (const int32_t word : words.subspan(run.begin, run.count)) {
      row.push_back(static_cast<uint32_t>(word - spec.first_row));
    }
    v1::ExchangeRequest request;
    request.mutable_pull()->set_version(version);
    v1::RowSet& rows = *request.mutable_pull()->add_rows();
    rows.set_shard(spec.id);
    PutArray(row, rows.mutable_row());
    RETURN_IF_ERROR(servers_.streams[servers_.map.server_of_shard[run.shard]]->Send(
        std::move(request)));
  }
  return absl::OkStatus();
}

absl::Status RemoteTables::AwaitPull(uint64_t version, Table table,
                                     std::span<const int32_t> words,
                                     std::span<float> out) {
  const int64_t width = columns(table);
  CHECK_EQ(out.size(), words.size() * width);
  const absl::Time deadline = servers_.Deadline();
  for (const Run& run : RunsOf(table, words)) {
    const ShardSpec& spec = plan_.shards[run.shard];
    const int32_t server = servers_.map.server_of_shard[run.shard];
    ExchangeKey key = StepKey(Case::kPull, version);
    key.shard = spec.id;
    ASSIGN_OR_RETURN(const v1::ExchangeResponse response,
                     servers_.Await(server, key, deadline));
    const size_t expected = run.count * width * sizeof(float);
    if (response.pull().shards_size() != 1 ||
        response.pull().shards(0).content().size() != expected) {
      return absl::InternalError(absl::StrFormat(
          "%s did not answer %s with %d bytes (%d rows of %d floats)",
          servers_.streams[server]->peer(), Describe(key), expected, run.count, width));
    }
    std::memcpy(out.data() + run.begin * width,
                response.pull().shards(0).content().data(), expected);
  }
  return absl::OkStatus();
}

absl::Status RemoteTables::SendScore(uint64_t batch, uint32_t wave, uint64_t version,
                                     std::span<const ScoreCall> calls) {
  std::vector<bool> sent(servers_.streams.size());
  for (const int32_t shard : softmax_) {
    const int32_t server = servers_.map.server_of_shard[shard];
    if (sent[server]) continue;
    sent[server] = true;
    v1::ExchangeRequest request;
    v1::ScoreRequest& score = *request.mutable_score();
    score.set_batch(batch);
    score.set_wave(wave);
    score.set_version(version);
    for (const ScoreCall& call : calls) {
      v1::ScoreFrame& frame = *score.add_frames();
      frame.set_replica(call.replica);
      frame.set_x(call.x, call.target.size() * d_model_ * sizeof(float));
      PutArray(call.target, frame.mutable_target());
    }
    RETURN_IF_ERROR(servers_.streams[server]->Send(std::move(request)));
  }
  return absl::OkStatus();
}

absl::Status RemoteTables::AwaitScore(uint64_t batch, uint32_t wave,
                                      std::span<ScoreResult> results) {
  const ExchangeKey key = ScoreKey(batch, wave);
  const absl::Time deadline = servers_.Deadline();
  std::map<int32_t, v1::ExchangeResponse> answers;
  std::vector<std::vector<TokenScore>> scores;
  for (const ScoreResult& result : results) scores.emplace_back(result.target.size());

  // By rows, whoever hosts them: in this order the sums are joined.
  std::map<int32_t, int> next_of_server;
  for (const int32_t shard : softmax_) {
    const int32_t server = servers_.map.server_of_shard[shard];
    const std::string& peer = servers_.streams[server]->peer();
    if (!answers.contains(server)) {
      ASSIGN_OR_RETURN(answers[server], servers_.Await(server, key, deadline));
    }
    const v1::ScoreResponse& answer = answers[server].score();
    if (answer.replies_size() != static_cast<int>(results.size())) {
      return absl::InternalError(absl::StrFormat("%s answered %s with %d replies, not %d",
                                                 peer, Describe(key),
                                                 answer.replies_size(), results.size()));
    }
    const ShardSpec& spec = plan_.shards[shard];
    const int position = next_of_server[server]++;
    for (size_t i = 0; i < results.size(); ++i) {
      const v1::ScoreReply& reply = answer.replies(static_cast<int>(i));
      const size_t tokens = results[i].target.size();
      const bool is_there = reply.replica() == results[i].replica &&
                            position < reply.shards_size() &&
                            reply.shards(position).shard() == spec.id;
      if (!is_there) {
        return absl::InternalError(
            absl::StrFormat("%s answered %s without %s of replica %d", peer,
                            Describe(key), spec.id, results[i].replica));
      }
      const v1::ShardScore& score = reply.shards(position);
      ASSIGN_OR_RETURN(const std::vector<float> largest,
                       GetArray<float>("largest", score.largest()));
      ASSIGN_OR_RETURN(const std::vector<double> sum,
                       GetArray<double>("sum", score.sum()));
      ASSIGN_OR_RETURN(const std::vector<float> target,
                       GetArray<float>("target", score.target()));
      if (largest.size() != tokens || sum.size() != tokens || target.size() != tokens) {
        return absl::InternalError(absl::StrFormat(
            "%s answered %s with %d, %d and %d numbers for %d tokens", peer,
            Describe(key), largest.size(), sum.size(), target.size(), tokens));
      }
      for (size_t t = 0; t < tokens; ++t) {
        scores[i][t].Add(largest[t], sum[t]);
        scores[i][t].target += target[t];
      }
    }
  }
  for (size_t i = 0; i < results.size(); ++i) {
    results[i].loss_sum = 0;
    for (size_t t = 0; t < scores[i].size(); ++t) {
      if (results[i].target[t] >= 0) results[i].loss_sum += scores[i][t].loss();
    }
  }
  return absl::OkStatus();
}

void AddRowGradients(const ServerSet& servers, const ModelPlan& plan, Table table,
                     uint32_t replicas, const std::map<uint32_t, SparseRows>& gradients,
                     std::span<v1::CloseRequest> requests) {
  for (const int32_t shard : ShardsOf(plan, table)) {
    const ShardSpec& spec = plan.shards[shard];
    ReplicaTree<SparseRows> tree(replicas);
    for (const auto& [replica, all] : gradients) {
      const auto begin = std::lower_bound(all.row.begin(), all.row.end(), spec.first_row);
      const auto end = std::lower_bound(begin, all.row.end(), spec.first_row + spec.rows);
      SparseRows part;
      for (auto word = begin; word != end; ++word) {
        part.row.push_back(static_cast<uint32_t>(*word - spec.first_row));
      }
      if (begin != end) {
        const auto width = static_cast<int64_t>(all.value.size() / all.row.size());
        part.value.assign(all.value.begin() + (begin - all.row.begin()) * width,
                          all.value.begin() + (end - all.row.begin()) * width);
      }
      const absl::Status added = tree.Add({0, replica}, std::move(part));
      CHECK(added.ok()) << spec.id << ": " << added;
    }
    for (const auto& [node, sum] : tree.TakeNodes()) {
      v1::RowGradientNode& gradient =
          *requests[servers.map.server_of_shard[shard]].add_row_gradients();
      gradient.set_shard(spec.id);
      gradient.set_level(node.level);
      gradient.set_index(node.index);
      PutArray(sum.row, gradient.mutable_row());
      PutArray(sum.value, gradient.mutable_gradient());
    }
  }
}

}  // namespace moe
