#include "client/remote_tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/protocol.h"
#include "common/tensor/bytes.h"
#include "tests/job/job_of.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kVocabulary = 13;
constexpr int64_t kWidth = 3;

// Two servers: s0 has the first and the last third of each table, s1 the second. Word w has the
// embedding (w, w + .25, w + .5) and the softmax's row (sin(w + 1), sin(w + 2), sin(w + 3), w / 10).
float Embedding(int64_t word, int64_t c) {
  return static_cast<float>(word) + 0.25f * static_cast<float>(c);
}
float Softmax(int64_t word, int64_t c) {
  return c == kWidth ? 0.1f * static_cast<float>(word)
                     : std::sin(static_cast<float>(word + c + 1));
}

class FakeStream final : public ShardStream {
 public:
  using Answer = std::function<v1::ExchangeResponse(const v1::ExchangeRequest&)>;
  FakeStream(std::string peer, Answer answer)
      : peer_(std::move(peer)), answer_(std::move(answer)) {}

  const std::string& peer() const override { return peer_; }
  absl::Status Send(v1::ExchangeRequest request) override {
    responses_[KeyOf(request)] = answer_(request);
    return absl::OkStatus();
  }
  absl::StatusOr<Received<v1::ExchangeResponse>> Await(const ExchangeKey& key,
                                                       absl::Time deadline) override {
    patience = deadline - absl::Now();
    auto found = responses_.extract(key);
    if (found.empty()) return absl::DeadlineExceededError(Describe(key));
    return std::move(found.mapped());
  }
  void Cancel(const absl::Status&) override {}

  // Of the last wait.
  absl::Duration patience;

 private:
  const std::string peer_;
  const Answer answer_;
  std::map<ExchangeKey, v1::ExchangeResponse> responses_;
};

class RemoteTablesTest : public ::testing::Test {
 protected:
  RemoteTablesTest() {
    const v1::Job job = JobOf(
        "d_model: 3 vocabulary: 13 layers { lstm { hidden: 3 } }"
        " tables { shards: 3 candidates: 2 }",
        "replicas: 3");
    plan_ = MakeModelPlan(job);
    for (int s = 0; s < 2; ++s) {
      servers_.map.servers.emplace_back().id = "s" + std::to_string(s);
      servers_.streams.push_back(std::make_unique<FakeStream>(
          "server s" + std::to_string(s),
          [this](const v1::ExchangeRequest& request) { return Answer(request); }));
    }
    for (const ShardSpec& spec : plan_.shards) {
      servers_.map.server_of_shard.push_back(spec.id.ends_with("rows1") ? 1 : 0);
    }
    servers_.timeout = absl::Seconds(100);
    servers_.map.workers = 3;
  }

  const ShardSpec& Spec(const std::string& id) const {
    for (const ShardSpec& spec : plan_.shards) {
      if (spec.id == id) return spec;
    }
    ADD_FAILURE() << id;
    return plan_.shards[0];
  }

  v1::ExchangeResponse Answer(const v1::ExchangeRequest& request) {
    v1::ExchangeResponse response;
    if (request.has_pull()) {
      response.mutable_pull()->set_version(request.pull().version());
      for (const v1::RowSet& rows : request.pull().rows()) {
        const ShardSpec& spec = Spec(rows.shard());
        std::vector<float> values;
        const auto index = GetArray<uint32_t>("row", rows.row());
        for (const uint32_t row : *index) {
          EXPECT_LT(row, spec.rows);
          const int64_t word = spec.first_row + row;
          const bool embedding = spec.table == Table::kEmbedding;
          for (int64_t c = 0; c < kWidth + (embedding ? 0 : 1); ++c) {
            values.push_back(embedding ? Embedding(word, c) : Softmax(word, c));
          }
        }
        v1::ShardContent& content = *response.mutable_pull()->add_shards();
        content.set_shard(rows.shard());
        PutArray(values, content.mutable_content());
      }
    } else {
      AnswerScore(request.score(), response.mutable_score());
    }
    if (spoil_) spoil_(&response);
    return response;
  }

  void AnswerScore(const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    response->set_batch(request.batch());
    response->set_wave(request.wave());
    response->set_part(request.part());
    // The server is known by who asks in turn: s0 first.
    const std::vector<std::string> hosted =
        scores_++ % 2 == 0 ? std::vector<std::string>{"softmax/rows0", "softmax/rows2"}
                           : std::vector<std::string>{"softmax/rows1"};
    std::vector<std::pair<uint32_t, int>>& frames = requests_.emplace_back();
    for (const v1::ScoreFrame& frame : request.frames()) {
      v1::ScoreReply& reply = *response->add_replies();
      reply.set_replica(frame.replica());
      const auto x = GetArray<float>("x", frame.x());
      const auto target = GetArray<int32_t>("target", frame.target());
      frames.emplace_back(frame.replica(), static_cast<int>(target->size()));
      for (const std::string& id : hosted) {
        const ShardSpec& spec = Spec(id);
        std::vector<float> largest, chosen;
        std::vector<double> sum;
        for (size_t t = 0; t < target->size(); ++t) {
          std::vector<double> logit;
          for (int64_t row = 0; row < spec.rows; ++row) {
            logit.push_back(Logit(*x, t, spec.first_row + row));
          }
          largest.push_back(
              static_cast<float>(*std::max_element(logit.begin(), logit.end())));
          sum.push_back(0);
          for (double l : logit) sum.back() += std::exp(l - largest.back());
          const int64_t local = (*target)[t] - spec.first_row;
          chosen.push_back(
              local >= 0 && local < spec.rows ? static_cast<float>(logit[local]) : 0);
        }
        v1::ShardScore& score = *reply.add_shards();
        score.set_shard(id);
        PutArray(largest, score.mutable_largest());
        PutArray(sum, score.mutable_sum());
        PutArray(chosen, score.mutable_target());
      }
    }
  }

  static double Logit(const std::vector<float>& x, size_t token, int64_t word) {
    double sum = Softmax(word, kWidth);
    for (int64_t c = 0; c < kWidth; ++c)
      sum += double{x[token * kWidth + c]} * Softmax(word, c);
    return sum;
  }

  ModelPlan plan_;
  ServerSet servers_;
  int scores_ = 0;
  // Replica and tokens of each frame, by score.
  std::vector<std::vector<std::pair<uint32_t, int>>> requests_;
  std::function<void(v1::ExchangeResponse*)> spoil_;
};

TEST_F(RemoteTablesTest, RowsComeInTheOrderOfTheWords) {
  RemoteTables tables(servers_, plan_, kWidth);
  ASSERT_EQ(tables.columns(Table::kSoftmax), kWidth + 1);
  // The thirds begin at 0, 4 and 8.
  for (const std::vector<int32_t>& words :
       {std::vector<int32_t>{0, 3, 4, 7, 8, 12}, {5}, {0, 12}, {}}) {
    ASSERT_TRUE(tables.SendPull(5, PullFor::kTraining, Table::kEmbedding, words).ok());
    ASSERT_TRUE(tables.SendPull(5, PullFor::kTraining, Table::kSoftmax, words).ok());
    std::vector<float> rows(words.size() * kWidth);
    ASSERT_TRUE(tables.AwaitPull(5, Table::kEmbedding, words, rows).ok());
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(rows[i], Embedding(words[i / kWidth], static_cast<int64_t>(i) % kWidth));
    }
    rows.resize(words.size() * (kWidth + 1));
    ASSERT_TRUE(tables.AwaitPull(5, Table::kSoftmax, words, rows).ok());
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(rows[i],
                Softmax(words[i / (kWidth + 1)], static_cast<int64_t>(i) % (kWidth + 1)));
    }
  }
}

TEST_F(RemoteTablesTest, AnAnswerOfAnotherSizeNamesTheServer) {
  spoil_ = [](v1::ExchangeResponse* response) {
    response->mutable_pull()->mutable_shards(0)->mutable_content()->pop_back();
  };
  RemoteTables tables(servers_, plan_, kWidth);
  const std::vector<int32_t> words = {4, 5};
  ASSERT_TRUE(tables.SendPull(5, PullFor::kTraining, Table::kEmbedding, words).ok());
  std::vector<float> rows(words.size() * kWidth);
  const absl::Status status = tables.AwaitPull(5, Table::kEmbedding, words, rows);
  EXPECT_THAT(std::string(status.message()), HasSubstr("server s1"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("24 bytes (2 rows of 3 floats)"));
}

TEST_F(RemoteTablesTest, ScoreIsTheSoftmaxOverAllShards) {
  RemoteTables tables(servers_, plan_, kWidth);
  // The second is far out, where sums must be taken relative to the largest logit; the third
  // takes several requests; the fourth has nothing that counts.
  std::vector<std::vector<float>> x = {{0.5f, -1, 2, 1, 1, 1, 0, 0, 3},
                                       {300, -200, 100, -500, 80, 0, 0, 0, 0},
                                       {},
                                       {1, 2, 3}};
  std::vector<std::vector<int32_t>> target = {{12, -1, 4}, {0, 7, 8}, {}, {-1}};
  for (int t = 0; t < 4 * kMaxScoreTokens + 100; ++t) {
    target[2].push_back(t % 14 - 1);
    for (int64_t c = 0; c < kWidth; ++c) {
      x[2].push_back(2 * std::sin(static_cast<float>(3 * t + c)));
    }
  }
  std::vector<ScoreCall> calls;
  for (uint32_t r = 0; r < x.size(); ++r) {
    calls.push_back({.replica = r, .x = x[r].data(), .target = target[r]});
  }
  const auto losses = tables.Score(9, 1, 5, calls);
  ASSERT_TRUE(losses.ok()) << losses.status();
  ASSERT_EQ(losses->size(), calls.size());
  for (size_t r = 0; r < calls.size(); ++r) {
    double expected = 0;
    for (size_t t = 0; t < target[r].size(); ++t) {
      if (target[r][t] < 0) continue;
      double most = -HUGE_VAL, sum = 0;
      for (int64_t w = 0; w < kVocabulary; ++w) most = std::max(most, Logit(x[r], t, w));
      for (int64_t w = 0; w < kVocabulary; ++w) sum += std::exp(Logit(x[r], t, w) - most);
      expected += most + std::log(sum) - Logit(x[r], t, target[r][t]);
    }
    EXPECT_NEAR((*losses)[r], expected, 1e-4 * (1 + expected)) << r;
  }
}

// The first and the third have more than a request may; whoever owns them, a replica's tokens are cut
// from its own first one.
TEST_F(RemoteTablesTest, ARequestHasFewTokensHoweverManyReplicas) {
  RemoteTables tables(servers_, plan_, kWidth);
  const std::vector<int> tokens = {
      kMaxScoreTokens + 300, 100, 2 * kMaxScoreTokens, 12, 0, 7};
  std::vector<std::vector<float>> x;
  std::vector<std::vector<int32_t>> target;
  std::vector<ScoreCall> calls;
  for (const int count : tokens) {
    target.emplace_back(count, 5);
    target.back().insert(target.back().begin(), 3, -1);
    x.emplace_back(target.back().size() * kWidth, 1.0f);
  }
  for (uint32_t r = 0; r < tokens.size(); ++r) {
    calls.push_back({.replica = r, .x = x[r].data(), .target = target[r]});
  }
  ASSERT_TRUE(tables.Score(9, 1, 5, calls).ok());
  using Frames = std::vector<std::pair<uint32_t, int>>;
  const std::vector<Frames> expected = {{{0, kMaxScoreTokens}},
                                        {{0, 300}, {1, 100}},
                                        {{2, kMaxScoreTokens}},
                                        {{2, kMaxScoreTokens}},
                                        {{3, 12}, {5, 7}}};
  ASSERT_EQ(requests_.size(), 2 * expected.size());
  for (size_t i = 0; i < requests_.size(); ++i) {
    EXPECT_EQ(requests_[i], expected[i / 2]) << i;  // two servers
  }
}

// A server works on the scores of all workers in turn, and answers the rest before.
TEST_F(RemoteTablesTest, AScoreMayWaitForThoseOfOtherWorkers) {
  RemoteTables tables(servers_, plan_, kWidth);
  const auto patience = [&] {
    return static_cast<FakeStream&>(*servers_.streams[1]).patience;
  };
  const std::vector<int32_t> words = {4};
  std::vector<float> row(kWidth);
  ASSERT_TRUE(tables.SendPull(5, PullFor::kTraining, Table::kEmbedding, words).ok());
  ASSERT_TRUE(tables.AwaitPull(5, Table::kEmbedding, words, row).ok());
  EXPECT_LE(patience(), absl::Seconds(100));
  const std::vector<ScoreCall> calls = {{.replica = 0, .x = row.data(), .target = words}};
  ASSERT_TRUE(tables.Score(9, 1, 5, calls).ok());
  EXPECT_GT(patience(), absl::Seconds(200));
  EXPECT_LE(patience(), absl::Seconds(300));
}

TEST_F(RemoteTablesTest, AScoreWithoutAShardNamesIt) {
  spoil_ = [](v1::ExchangeResponse* response) {
    if (response->score().replies(0).shards_size() > 1) {
      response->mutable_score()->mutable_replies(0)->mutable_shards()->RemoveLast();
    }
  };
  RemoteTables tables(servers_, plan_, kWidth);
  const std::vector<float> x = {1, 2, 3};
  const std::vector<int32_t> target = {2};
  const std::vector<ScoreCall> calls = {{.replica = 2, .x = x.data(), .target = target}};
  const std::string error(tables.Score(9, 1, 5, calls).status().message());
  EXPECT_THAT(error, HasSubstr("server s0"));
  EXPECT_THAT(error, HasSubstr("without softmax/rows2 of replica 2"));
}

// Rows go to the servers of their shards, joined over the replicas that the worker owns.
TEST_F(RemoteTablesTest, GradientsAreCutByShard) {
  std::map<uint32_t, SparseRows> gradients;
  gradients[0] = {{3, 4}, {1, 1, 1, 2, 2, 2}};
  gradients[1] = {{4, 12}, {3, 3, 3, 4, 4, 4}};
  std::vector<v1::CloseRequest> requests(2);
  AddRowGradients(servers_, plan_, Table::kEmbedding, 3, gradients, requests);
  ASSERT_EQ(requests[0].row_gradients_size(), 2);
  ASSERT_EQ(requests[1].row_gradients_size(), 1);
  const auto expect = [](const v1::RowGradientNode& node, const std::string& shard,
                         std::vector<uint32_t> row, std::vector<float> value) {
    EXPECT_EQ(node.shard(), shard);
    // Replicas 0 and 1 make a node of two.
    EXPECT_EQ(node.level(), 1u);
    EXPECT_EQ(node.index(), 0u);
    EXPECT_EQ(*GetArray<uint32_t>("row", node.row()), row);
    EXPECT_EQ(*GetArray<float>("gradient", node.gradient()), value);
  };
  expect(requests[0].row_gradients(0), "embedding/rows0", {3}, {1, 1, 1});
  expect(requests[1].row_gradients(0), "embedding/rows1", {0}, {5, 5, 5});
  expect(requests[0].row_gradients(1), "embedding/rows2", {4}, {4, 4, 4});
}

}  // namespace
}  // namespace moe
