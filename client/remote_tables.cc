#include "client/remote_tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/log_sum.h"
#include "common/base/protocol.h"
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
  LogSum words;
  double target = 0;

  double loss() const { return words.Log() - target; }
};

// Tokens of a call that make a frame.
struct ScoredTokens {
  const ScoreCall* call;
  std::vector<size_t> place;  // in call->target
};

// The tokens that count, as the frames of requests with at most kMaxScoreTokens each. A replica's
// tokens are cut in one way whichever replicas the worker owns: the bits of a logit depend on how
// many tokens a product has.
std::vector<std::vector<ScoredTokens>> CutIntoRequests(std::span<const ScoreCall> calls) {
  std::vector<std::vector<ScoredTokens>> requests;
  size_t tokens = kMaxScoreTokens;  // of the last request
  const auto add = [&](ScoredTokens frame) {
    if (frame.place.empty()) return;
    if (tokens + frame.place.size() > kMaxScoreTokens) {
      requests.emplace_back();
      tokens = 0;
    }
    tokens += frame.place.size();
    requests.back().push_back(std::move(frame));
  };
  for (const ScoreCall& call : calls) {
    ScoredTokens frame{&call, {}};
    for (size_t t = 0; t < call.target.size(); ++t) {
      if (call.target[t] < 0) continue;
      frame.place.push_back(t);
      if (frame.place.size() < kMaxScoreTokens) continue;
      add(std::exchange(frame, {&call, {}}));
    }
    add(std::move(frame));
  }
  return requests;
}

// Adds what the reply has at `position`, which must be the shard's, to the tokens' scores.
absl::Status Join(const v1::ScoreReply& reply, int position, const std::string& shard,
                  uint32_t replica, std::span<TokenScore> scores) {
  if (reply.replica() != replica || position >= reply.shards_size() ||
      reply.shards(position).shard() != shard) {
    return absl::InternalError(
        absl::StrFormat("without %s of replica %d", shard, replica));
  }
  const v1::ShardScore& score = reply.shards(position);
  ASSIGN_OR_RETURN(const std::vector<float> largest,
                   GetArray<float>("largest", score.largest()));
  ASSIGN_OR_RETURN(const std::vector<double> sum, GetArray<double>("sum", score.sum()));
  ASSIGN_OR_RETURN(const std::vector<float> target,
                   GetArray<float>("target", score.target()));
  if (largest.size() != scores.size() || sum.size() != scores.size() ||
      target.size() != scores.size()) {
    return absl::InternalError(absl::StrFormat("with %d, %d and %d numbers for %d tokens",
                                               largest.size(), sum.size(), target.size(),
                                               scores.size()));
  }
  for (size_t t = 0; t < scores.size(); ++t) {
    scores[t].words.Add(largest[t], sum[t]);
    scores[t].target += target[t];
  }
  return absl::OkStatus();
}

}  // namespace

RemoteTables::RemoteTables(ServerSet& servers, const ModelPlan& plan, int64_t d_model)
    : servers_(servers),
      plan_(plan),
      d_model_(d_model),
      embedding_(ShardsOf(plan, Table::kEmbedding)),
      softmax_(ShardsOf(plan, Table::kSoftmax)) {
  for (const int32_t shard : softmax_) {
    for (const int32_t host : servers.HostsOf(shard)) softmax_servers_.insert(host);
  }
}

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

absl::Status RemoteTables::SendPull(uint64_t version, PullFor purpose, Table table,
                                    std::span<const int32_t> words) {
  for (const Run& run : RunsOf(table, words)) {
    RETURN_IF_ERROR(SendPull(version, purpose, run, words));
  }
  return absl::OkStatus();
}

absl::Status RemoteTables::SendPull(uint64_t version, PullFor purpose, const Run& run,
                                    std::span<const int32_t> words) {
  const ShardSpec& spec = plan_.shards[run.shard];
  std::vector<uint32_t> row;
  for (const int32_t word : words.subspan(run.begin, run.count)) {
    row.push_back(static_cast<uint32_t>(word - spec.first_row));
  }
  v1::ExchangeRequest request;
  request.mutable_pull()->set_version(version);
  request.mutable_pull()->set_evaluation(purpose == PullFor::kEvaluation);
  v1::RowSet& rows = *request.mutable_pull()->add_rows();
  rows.set_shard(spec.id);
  PutArray(row, rows.mutable_row());
  Asked& asked = asked_[run.shard];
  asked.purpose = purpose;
  return servers_.SendToOne(run.shard, request, &asked.server);
}

absl::Status RemoteTables::AwaitPull(uint64_t version, Table table,
                                     std::span<const int32_t> words,
                                     std::span<float> out) {
  const int64_t width = columns(table);
  CHECK_EQ(out.size(), words.size() * width);
  absl::Time deadline = servers_.Deadline();
  for (const Run& run : RunsOf(table, words)) {
    const ShardSpec& spec = plan_.shards[run.shard];
    const Asked& asked = asked_.at(run.shard);
    ExchangeKey key = StepKey(Case::kPull, version);
    key.shard = spec.id;
    std::optional<Received<v1::ExchangeResponse>> received;
    while (true) {
      ASSIGN_OR_RETURN(received, servers_.Await(asked.server, key, deadline));
      if (received.has_value()) break;
      RETURN_IF_ERROR(SendPull(version, asked.purpose, run, words));
      deadline = servers_.Deadline();
    }
    const v1::ExchangeResponse& response = received->message;
    const size_t expected = run.count * width * sizeof(float);
    if (response.pull().shards_size() != 1 ||
        response.pull().shards(0).content().size() != expected) {
      return absl::InternalError(
          absl::StrFormat("%s did not answer %s with %d bytes (%d rows of %d floats)",
                          servers_.streams[asked.server]->peer(), Describe(key), expected,
                          run.count, width));
    }
    std::memcpy(out.data() + run.begin * width,
                response.pull().shards(0).content().data(), expected);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> RemoteTables::Score(
    uint64_t batch, uint32_t wave, uint64_t version, std::span<const ScoreCall> calls) {
  const std::vector<std::vector<ScoredTokens>> requests = CutIntoRequests(calls);
  const auto part_of = [&](size_t part) {
    v1::ScoreRequest score;
    score.set_batch(batch);
    score.set_wave(wave);
    score.set_part(static_cast<uint32_t>(part));
    score.set_version(version);
    for (const ScoredTokens& tokens : requests[part]) {
      const ScoreCall& call = *tokens.call;
      v1::ScoreFrame& frame = *score.add_frames();
      frame.set_replica(call.replica);
      std::vector<int32_t> target;
      std::vector<float> x;
      for (const size_t t : tokens.place) {
        target.push_back(call.target[t]);
        x.insert(x.end(), call.x + t * d_model_, call.x + (t + 1) * d_model_);
      }
      PutArray(x, frame.mutable_x());
      PutArray(target, frame.mutable_target());
    }
    return score;
  };

  std::map<uint32_t, double> sums;  // by replica
  std::deque<v1::ScoreRequest> under_way;
  for (size_t next = 0; next < requests.size() || !under_way.empty();) {
    if (next < requests.size() && under_way.size() < kMaxScoresUnderWay) {
      const v1::ScoreRequest& score = under_way.emplace_back(part_of(next++));
      for (const int32_t server : softmax_servers_) {
        v1::ExchangeRequest request;
        *request.mutable_score() = score;
        RETURN_IF_ERROR(servers_.Send(server, std::move(request)));
      }
      continue;
    }
    const v1::ScoreRequest& score = under_way.front();
    ASSIGN_OR_RETURN(const std::vector<std::vector<double>> losses, AwaitScore(score));
    for (int f = 0; f < score.frames_size(); ++f) {
      for (const double loss : losses[f]) sums[score.frames(f).replica()] += loss;
    }
    under_way.pop_front();
  }
  std::vector<double> result;
  for (const ScoreCall& call : calls) result.push_back(sums[call.replica]);
  return result;
}

absl::StatusOr<std::vector<std::vector<double>>> RemoteTables::AwaitScore(
    const v1::ScoreRequest& score) {
  const ExchangeKey key = ScoreKey(score.batch(), score.wave(), score.part());
  // Every answer begins it anew. A server works on the requests of all workers in turn.
  const absl::Time deadline =
      absl::Now() + static_cast<double>(servers_.map.workers) * servers_.timeout;
  std::map<int32_t, v1::ExchangeResponse> answers;
  for (const int32_t server : softmax_servers_) {
    ASSIGN_OR_RETURN(std::optional<Received<v1::ExchangeResponse>> answer,
                     servers_.Await(server, key, deadline));
    if (!answer.has_value()) continue;
    const int replies = answer->message.score().replies_size();
    answers[server] = std::move(answer->message);
    if (replies == score.frames_size()) continue;
    return absl::InternalError(absl::StrFormat(
        "%s answered %s with %d replies, not %d", servers_.streams[server]->peer(),
        Describe(key), replies, score.frames_size()));
  }

  std::vector<std::vector<double>> losses;
  for (int f = 0; f < score.frames_size(); ++f) {
    const v1::ScoreFrame& frame = score.frames(f);
    std::vector<TokenScore> scores(frame.target().size() / sizeof(int32_t));
    // By rows, whoever hosts them: in this order the sums are joined.
    std::map<int32_t, int> next_of_server;
    for (const int32_t shard : softmax_) {
      int32_t server = ShardMap::kNone;
      int position = 0;
      for (const int32_t host : servers_.map.CopiesOf(shard)) {
        const int next = next_of_server[host]++;
        if (server != ShardMap::kNone || !answers.contains(host)) continue;
        server = host;
        position = next;
      }
      RETURN_IF_ERROR(Annotate(
          Join(answers.at(server).score().replies(f), position, plan_.shards[shard].id,
               frame.replica(), scores),
          absl::StrCat(servers_.streams[server]->peer(), " answered ", Describe(key))));
    }
    std::vector<double>& of_frame = losses.emplace_back();
    for (const TokenScore& of_token : scores) of_frame.push_back(of_token.loss());
  }
  return losses;
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
      for (const int32_t server : servers.HostsOf(shard)) {
        v1::RowGradientNode& gradient = *requests[server].add_row_gradients();
        gradient.set_shard(spec.id);
        gradient.set_level(node.level);
        gradient.set_index(node.index);
        PutArray(sum.row, gradient.mutable_row());
        PutArray(sum.value, gradient.mutable_gradient());
      }
    }
  }
}

}  // namespace moe
