// A recurrent MoE on a server: calls in their order, answers that are asked for again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/job/job_file.h"
#include "glog/logging.h"
#include "tests/server/made_step.h"
#include "tests/server/shard_host_fixture.h"

namespace moe::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kInput = 0;
constexpr uint32_t kRecurrent = 1;
constexpr uint32_t kCalls = 3;

// Layer 1 of MadeJob becomes a recurrent MoE with equal mixtures of linear experts.
v1::Job RecurrentJob() {
  v1::Job job = MadeJob();
  v1::Layer& layer = *job.mutable_model()->mutable_layers(kLayer);
  v1::Moe moe = layer.moe();
  moe.clear_hidden();
  v1::RecurrentMoe& recurrent = *layer.mutable_recurrent_moe();
  recurrent.set_hidden(kWidth);
  *recurrent.mutable_input() = moe;
  *recurrent.mutable_recurrent() = moe;
  CHECK(ValidateJob(job).ok()) << ValidateJob(job);
  return job;
}

struct At {
  uint32_t mixture = 0;
  uint32_t call = 0;
  uint32_t wave = 0;

  // Made frames differ from call to call.
  uint32_t made_wave() const { return wave + kWaves * (call + kCalls * mixture); }
  void Name(v1::FrameId* id) const {
    id->set_wave(wave);
    id->set_mixture(mixture);
    id->set_call(call);
  }
};

v1::ExchangeRequest RecurrentForward(uint64_t step, const At& at,
                                     const std::vector<uint32_t>& replicas,
                                     v1::Mode mode = v1::MODE_TRAIN) {
  v1::ExchangeRequest request = ForwardOf(step, at.made_wave(), replicas, mode);
  at.Name(request.mutable_forward()->mutable_id());
  return request;
}

// dy has 4 * d numbers in a row.
v1::ExchangeRequest RecurrentBackward(uint64_t step, const At& at,
                                      const std::vector<uint32_t>& replicas) {
  v1::ExchangeRequest request = BackwardOf(step, at.made_wave(), replicas);
  at.Name(request.mutable_backward()->mutable_id());
  for (v1::BackwardFrame& frame : *request.mutable_backward()->mutable_frames()) {
    const std::string dy = frame.dy();
    for (int i = 1; i < 4; ++i) frame.mutable_dy()->append(dy);
  }
  return request;
}

// All but the id and the replicas left out.
v1::ExchangeRequest Again(v1::ExchangeRequest request) {
  for (v1::ForwardFrame& frame : *request.mutable_forward()->mutable_frames()) {
    const uint32_t replica = frame.replica();
    frame.Clear();
    frame.set_replica(replica);
  }
  return request;
}

std::vector<At> AllCalls() {
  std::vector<At> all;
  for (uint32_t wave = 0; wave < kWaves; ++wave) all.push_back({kInput, 0, wave});
  for (uint32_t call = 0; call < kCalls; ++call) {
    for (uint32_t wave = 0; wave < kWaves; ++wave)
      all.push_back({kRecurrent, call, wave});
  }
  return all;
}

class RecurrentHostTest : public ShardHostTest {
 protected:
  RecurrentHostTest() : ShardHostTest(RecurrentJob(), /*hierarchical=*/false) {}

  // Returns worker/w0's answers.
  std::vector<v1::ForwardResponse> RunForwards(uint64_t step) {
    std::vector<v1::ForwardResponse> answers;
    for (const At& at : AllCalls()) {
      SendAll([&](const auto& replicas) { return RecurrentForward(step, at, replicas); });
      answers.push_back(Next("worker/w0").forward());
      EXPECT_EQ(Next("worker/w1").forward().id().call(), at.call);
    }
    return answers;
  }

  void RunBackward(uint64_t step, const At& at) {
    SendAll([&](const auto& replicas) { return RecurrentBackward(step, at, replicas); });
    for (const auto& [worker, replicas] : Workers()) {
      const v1::BackwardResponse response = Next(worker).backward();
      EXPECT_EQ(response.id().mixture(), at.mixture);
      EXPECT_EQ(response.id().call(), at.call);
    }
  }

  void RunClose(uint64_t step) {
    SendAll([&](const auto& replicas) { return CloseOf(plan_, step, replicas); });
    for (const auto& [worker, replicas] : Workers()) {
      EXPECT_EQ(Next(worker).close().version(), step + 1);
    }
  }
};

TEST_F(RecurrentHostTest, TotalsAreThoseOfAllCallsOfAMixture) {
  const std::vector<v1::ForwardResponse> answers = RunForwards(0);
  const std::vector<At> calls = AllCalls();
  for (const uint32_t mixture : {kInput, kRecurrent}) {
    std::vector<double> load(kExperts);
    uint64_t tokens = 0;
    for (size_t i = 0; i < calls.size(); ++i) {
      if (calls[i].mixture != mixture) continue;
      for (uint32_t r = 0; r < kReplicas; ++r) {
        const MadeFrame frame = MakeFrame(0, r, calls[i].made_wave());
        tokens += frame.tokens;
        for (int e = 0; e < kExperts; ++e) load[e] += frame.load[e];
      }
      const v1::ForwardReply& reply = answers[i].replies(0);
      for (int e = 0; e < kExperts; ++e) {
        EXPECT_NEAR(reply.groups(e / kPerGroup).load(e % kPerGroup), load[e], 1e-9);
      }
      EXPECT_EQ(reply.groups(0).tokens(), tokens);
      // Rows of 4 * d numbers come back.
      const MadeFrame frame = MakeFrame(0, 0, calls[i].made_wave());
      size_t rows = 0;
      for (int64_t row = 0; row < frame.rows(); ++row) {
        for (int g = 0; g < kGroups; ++g) {
          for (const MadeFrame::Pair& pair : frame.PairsOf(g)) {
            if (pair.row != row) continue;
            ++rows;
            break;
          }
        }
      }
      EXPECT_EQ(reply.groups(0).y().size() + reply.groups(1).y().size(),
                rows * 4 * kWidth * sizeof(float));
    }
  }
}

TEST_F(RecurrentHostTest, WhatIsAskedForAgainIsTheSameAndCountsOnce) {
  std::vector<Digests> digests;
  for (const bool again : {false, true}) {
    Load(MadeState(job_), 1);
    for (uint64_t step = 0; step < 2; ++step) {
      const std::vector<v1::ForwardResponse> answers = RunForwards(step);
      const std::vector<At> calls = AllCalls();
      for (size_t i = calls.size(); i-- > 0;) {
        RunBackward(step, calls[i]);
        for (size_t j = 0; again && j < calls.size(); ++j) {
          const auto request =
              Again(RecurrentForward(step, calls[j], Workers().at("worker/w0")));
          EXPECT_LT(request.ByteSizeLong(), 40u);
          ASSERT_TRUE(Send("worker/w0", request).ok());
          EXPECT_EQ(Next("worker/w0").forward().SerializeAsString(),
                    answers[j].SerializeAsString());
        }
      }
      RunClose(step);
    }
    digests.push_back(DigestsOf());
  }
  EXPECT_EQ(digests[0], digests[1]);
}

TEST_F(RecurrentHostTest, CallsComeInTheirOrder) {
  const std::vector<uint32_t>& mine = Workers().at("worker/w0");
  const auto refused = [&](v1::ExchangeRequest request) {
    const absl::Status status = Send("worker/w0", std::move(request));
    EXPECT_FALSE(status.ok());
    return std::string(status.message());
  };
  EXPECT_THAT(refused(RecurrentForward(0, {kRecurrent, 0, 1}, mine)),
              HasSubstr("forward step 0 wave 1 layer 1 time step 0 of worker/w0: replica "
                        "0 did not send wave 0 before"));
  EXPECT_THAT(
      refused(RecurrentForward(0, {kRecurrent, 1, 0}, mine)),
      HasSubstr("replica 0 did not send forward step 0 wave 1 layer 1 time step 0 "
                "before"));
  EXPECT_THAT(refused(RecurrentForward(0, {kRecurrent, kCalls, 0}, mine)),
              HasSubstr("call 3 is out of range: the mixture has 3 in each wave"));
  EXPECT_THAT(refused(RecurrentForward(0, {kInput, 1, 0}, mine)),
              HasSubstr("call 1 is out of range: the mixture has 1 in each wave"));
  EXPECT_THAT(refused(RecurrentForward(0, {2, 0, 0}, mine)),
              HasSubstr("no expert of layer 1 mixture 2 is on server/s0"));
  EXPECT_THAT(refused(Again(RecurrentForward(0, {kRecurrent, 0, 0}, mine))),
              HasSubstr("replica 0: has 0 groups; groups 0,1 are hosted here"));
  EXPECT_THAT(
      refused(RecurrentBackward(0, {kRecurrent, 2, 1}, mine)),
      HasSubstr("replica 0 did not send forward step 0 wave 1 layer 1 time step 2 "
                "before"));

  RunForwards(0);
  v1::ExchangeRequest narrow = RecurrentBackward(0, {kRecurrent, 2, 0}, mine);
  narrow.mutable_backward()->mutable_frames(0)->mutable_dy()->resize(
      MakeFrame(0, 0, At{kRecurrent, 2, 0}.made_wave()).x.size() * sizeof(float));
  EXPECT_THAT(refused(std::move(narrow)), HasSubstr("replica 0: dy has"));
  for (const At& at : AllCalls()) {
    if (at.mixture == kRecurrent && at.call == 1 && at.wave == 1) continue;
    RunBackward(0, at);
  }
  EXPECT_THAT(
      refused(CloseOf(plan_, 0, mine)),
      HasSubstr("replica 0 did not send backward step 0 wave 1 layer 1 time step 1 "
                "before"));
}

TEST_F(RecurrentHostTest, AnEvaluationBatchEndsWithItsLastCall) {
  const auto run = [&](uint64_t batch, const At& at) {
    SendAll([&](const auto& replicas) {
      return RecurrentForward(batch, at, replicas, v1::MODE_EVALUATE);
    });
    for (const auto& [worker, replicas] : Workers()) {
      EXPECT_EQ(Next(worker).forward().replies(0).groups(0).load_size(), 0);
    }
  };
  std::vector<At> calls = AllCalls();
  const At last = calls.back();
  calls.pop_back();
  for (const At& at : calls) run(0, at);
  const absl::Status early =
      Send("worker/w1", RecurrentForward(1, {kInput, 0, 0}, {2}, v1::MODE_EVALUATE));
  EXPECT_THAT(std::string(early.message()),
              HasSubstr("replica 2 did not send forward evaluation 0 wave 1 layer 1 time "
                        "step 2 before"));
  run(0, last);
  run(1, {kInput, 0, 0});
}

}  // namespace
}  // namespace moe::testing
