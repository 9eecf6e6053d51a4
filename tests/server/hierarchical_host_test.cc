// Steps of a hierarchical layer through a whole server, and what is refused of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/moments.h"
#include "tests/server/made_step.h"
#include "tests/server/shard_host_fixture.h"

namespace moe {
namespace {

using ::testing::AllOf;
using testing::Digests;
using ::testing::HasSubstr;
using testing::kPerGroup;
using testing::kWaves;
using testing::SetFloat;
using testing::SetWord;

class HierarchicalHostTest : public testing::ShardHostTest {
 protected:
  HierarchicalHostTest()
      : ShardHostTest(testing::MadeHierarchicalJob(), /*hierarchical=*/true) {}
};

TEST_F(HierarchicalHostTest, ArrivalOrderAndThreadsChangeNoBit) {
  for (uint64_t step = 0; step < 3; ++step) Step(step);
  const Digests digests = DigestsOf();
  EXPECT_EQ(digests.size(), plan_.tensors.size());
  Load(testing::MadeState(job_), 2);
  for (uint64_t step = 0; step < 3; ++step) Step(step, /*reversed=*/step != 1);
  EXPECT_EQ(DigestsOf(), digests);
}

TEST_F(HierarchicalHostTest, GoesOnWithTheSameBitsAfterAHandover) {
  for (uint64_t step = 0; step < 4; ++step) Step(step);
  const Digests undisturbed = DigestsOf();
  Load(testing::MadeState(job_), 1);
  Step(0);
  MoveShardsDuringStep(1);
  Step(2);
  Step(3);
  EXPECT_EQ(DigestsOf(), undisturbed);
}

TEST_F(HierarchicalHostTest, TheGateIsPartOfItsShard) {
  const std::string folder = TempFolder("gate");
  v1::ClusterState state = testing::MadeState(job_);
  state.set_checkpoint_dir(folder);
  Load(state, 1);
  const Digests before = DigestsOf();
  Step(0, /*reversed=*/false, /*cut=*/true);
  const Digests at_cut = DigestsOf();
  for (const char* gate : {"layer1.moe.group0.wg", "layer1.moe.group0.wnoise",
                           "layer1.moe.group1.wg", "layer1.moe.group1.wnoise"}) {
    EXPECT_NE(at_cut.at(gate), before.at(gate)) << gate;
  }
  EXPECT_EQ(Written(1)["layer1/group1"].tensors(0).name(), "layer1.moe.group1.wg");
  Step(1);
  const Digests undisturbed = DigestsOf();
  state.set_restore_from(folder + "/step-00000001.generation-1");
  WriteManifestOf(1, state.restore_from());
  state.set_start_step(1);
  Load(state, 2);
  EXPECT_EQ(DigestsOf(), at_cut);
  Step(1);
  EXPECT_EQ(DigestsOf(), undisturbed);
}

TEST_F(HierarchicalHostTest, RepliesSayWhatWasChosen) {
  for (v1::Mode mode : {v1::MODE_TRAIN, v1::MODE_EVALUATE}) {
    const bool train = mode == v1::MODE_TRAIN;
    for (uint32_t w = 0; w < kWaves; ++w) {
      SendAll([&](const auto& replicas) {
        return Made(testing::ForwardOf(0, w, replicas, mode));
      });
      const v1::ForwardResponse response = Next("worker/w1").forward();
      const v1::ForwardFrame frame =
          Made(testing::ForwardOf(0, w, {2})).forward().frames(0);
      ASSERT_EQ(response.replies(0).groups_size(), 2);
      for (int g = 0; g < 2; ++g) {
        const v1::GroupOutput& output = response.replies(0).groups(g);
        const size_t rows = frame.groups(g).row().size() / sizeof(uint32_t);
        const std::vector<float> primary = testing::Floats(frame.groups(g).gate());
        const std::vector<float> product = testing::Floats(output.chosen().gate());
        EXPECT_EQ(output.chosen().group(), static_cast<uint32_t>(g));
        EXPECT_EQ(output.chosen().row().size(), 2 * rows * sizeof(uint32_t));
        EXPECT_EQ(output.chosen().expert().size(), 2 * rows * sizeof(uint32_t));
        // Gates only where somebody asks for them, totals only where they count.
        ASSERT_EQ(product.size(), train ? 0 : 2 * rows);
        for (size_t i = 0; i < product.size() / 2; ++i) {
          EXPECT_NEAR(product[2 * i] + product[2 * i + 1], primary[i], 1e-6);
        }
        EXPECT_EQ(output.importance_size(), 0);
        EXPECT_EQ(output.load_size(), 0);
        EXPECT_EQ(output.importance_spread().mean() > 0, train);
        EXPECT_EQ(output.load_spread().mean() > 0, train);
        EXPECT_EQ(output.has_importance_spread(), train);
        EXPECT_EQ(output.tokens(), train ? 33 * (w + 1) : 0);
      }
    }
  }
}

// ---------------------------------------------------------------- what is refused

struct Refusal {
  std::string name;
  std::string message;
  // Spoils the second frame's first group in worker/w0's first request.
  std::function<void(v1::GroupRouting*)> spoil;
};

class RefusedRows : public HierarchicalHostTest,
                    public ::testing::WithParamInterface<Refusal> {};

std::vector<Refusal> Refusals() {
  return {
      {"Expert",
       "expert has 4 bytes instead of none: the layer is hierarchical, and the server "
       "chooses",
       [](v1::GroupRouting* g) { g->set_expert("1234"); }},
      {"GatesMissing", "elements instead of equally many",
       [](v1::GroupRouting* g) { g->clear_gate(); }},
      {"OddBytes", "row has 5 bytes, which is no multiple of 4",
       [](v1::GroupRouting* g) { g->set_row("12345"); }},
      {"RowOutOfRange", "row 99 is out of range",
       [](v1::GroupRouting* g) { SetWord(g->mutable_row(), 0, 99); }},
      {"RowTwice", "rows must ascend",
       [](v1::GroupRouting* g) {
         uint32_t first;
         std::memcpy(&first, g->row().data(), sizeof(first));
         SetWord(g->mutable_row(), 1, first);
       }},
      {"NanGate", "gate nan is not between 0 and 1",
       [](v1::GroupRouting* g) {
         SetFloat(g->mutable_gate(), 0, std::numeric_limits<float>::quiet_NaN());
       }},
      {"NegativeGate", "gate -0.25 is not between 0 and 1",
       [](v1::GroupRouting* g) { SetFloat(g->mutable_gate(), 0, -0.25f); }},
      {"GateAboveOne", "gate 1.5 is not between 0 and 1",
       [](v1::GroupRouting* g) { SetFloat(g->mutable_gate(), 0, 1.5f); }},
      {"NegativeLoad", "load -5 is not between 0 and the number of tokens, 11",
       [](v1::GroupRouting* g) { g->set_load(0, -5); }},
      {"LoadAboveTokens", "load 11.5 is not between 0 and the number of tokens, 11",
       [](v1::GroupRouting* g) { g->set_load(0, 11.5); }},
      {"Importance", "importance has 1 values instead of 0",
       [](v1::GroupRouting* g) { g->add_importance(1); }},
      {"LoadMissing", "load has 0 values instead of 1",
       [](v1::GroupRouting* g) { g->clear_load(); }},
      {"LoadOfEachExpert", "load has 3 values instead of 1",
       [](v1::GroupRouting* g) {
         while (g->load_size() < kPerGroup) g->add_load(1);
       }},
      {"InfiniteLoad", "load has a NaN or an infinity",
       [](v1::GroupRouting* g) {
         g->set_load(0, std::numeric_limits<double>::infinity());
       }},
  };
}

TEST_P(RefusedRows, AreRefusedAndChangeNothing) {
  Step(0);
  const Digests expected = DigestsOf();
  Load(testing::MadeState(job_), 1);
  v1::ExchangeRequest request = Made(testing::ForwardOf(0, 0, {0, 1}));
  GetParam().spoil(request.mutable_forward()->mutable_frames(1)->mutable_groups(0));
  const absl::Status status = Send("worker/w0", std::move(request));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(),
              HasSubstr("forward step 0 wave 0 layer 1 of worker/w0: replica 1: group "
                        "0: "));
  EXPECT_THAT(status.message(), HasSubstr(GetParam().message));
  Step(0);
  EXPECT_EQ(DigestsOf(), expected);
}

INSTANTIATE_TEST_SUITE_P(All, RefusedRows, ::testing::ValuesIn(Refusals()),
                         [](const auto& info) { return info.param.name; });

TEST_F(HierarchicalHostTest, RefusesBackwardFramesWithWrongMoments) {
  Step(0);
  const Digests expected = DigestsOf();
  Load(testing::MadeState(job_), 1);
  Forwards(0);
  const auto refused = [&](uint32_t wave,
                           const std::function<void(v1::BackwardFrame*)>& spoil) {
    v1::ExchangeRequest request = Made(testing::BackwardOf(0, wave, {0, 1}));
    spoil(request.mutable_backward()->mutable_frames(1));
    const absl::Status status = Send("worker/w0", std::move(request));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(status.message(),
                HasSubstr(absl::StrCat("backward step 0 wave ", wave,
                                       " layer 1 of worker/w0: replica 1: ")));
    return std::string(status.message());
  };
  EXPECT_THAT(refused(0, [](v1::BackwardFrame* f) { f->clear_importance(); }),
              HasSubstr("the moments of importance are missing, but the layer is "
                        "hierarchical"));
  EXPECT_THAT(refused(0, [](v1::BackwardFrame* f) { f->clear_load(); }),
              HasSubstr("the moments of load are missing"));
  EXPECT_THAT(
      refused(0, [](v1::BackwardFrame* f) { f->mutable_load()->set_mean(std::nan("")); }),
      AllOf(HasSubstr("mean nan and variance "),
            HasSubstr(" of load are not numbers from 0 on")));
  EXPECT_THAT(
      refused(0,
              [](v1::BackwardFrame* f) { f->mutable_importance()->set_variance(-0.5); }),
      HasSubstr(" and variance -0.5 of importance are not numbers from 0"));
  EXPECT_THAT(refused(0, [](v1::BackwardFrame* f) { f->mutable_dy()->pop_back(); }),
              HasSubstr("dy has "));
  // Unlike those of the request's other frame; then those of another worker, and of
  // another wave.
  const auto other_mean = [](v1::BackwardFrame* f) { f->mutable_load()->set_mean(4); };
  const std::string differs = absl::StrFormat(
      "mean 4 and variance %.17g of load differ from %.17g and %.17g of another frame of "
      "the step",
      moments_.load.variance, moments_.load.mean, moments_.load.variance);
  EXPECT_THAT(refused(0, other_mean), HasSubstr(differs));
  ASSERT_TRUE(Send("worker/w1", Made(testing::BackwardOf(0, 0, {2}))).ok());
  const auto both = [&](v1::ExchangeRequest request) {
    for (int i = 0; i < 2; ++i) other_mean(request.mutable_backward()->mutable_frames(i));
    return std::string(Send("worker/w0", std::move(request)).message());
  };
  EXPECT_THAT(both(Made(testing::BackwardOf(0, 0, {0, 1}))), HasSubstr(differs));
  EXPECT_THAT(both(Made(testing::BackwardOf(0, 1, {0, 1}))), HasSubstr(differs));

  // None of it has left a trace.
  for (uint32_t w = 0; w < kWaves; ++w) {
    ASSERT_TRUE(Send("worker/w0", Made(testing::BackwardOf(0, w, {0, 1}))).ok());
  }
  ASSERT_TRUE(Send("worker/w1", Made(testing::BackwardOf(0, 1, {2}))).ok());
  SendAll([&](const auto& replicas) { return testing::CloseOf(plan_, 0, replicas); });
  for (uint32_t w = 0; w < kWaves; ++w) Next("worker/w0");
  EXPECT_EQ(Next("worker/w0").close().version(), 1u);
  EXPECT_EQ(DigestsOf(), expected);
}

// The server knows the numbers of its own experts.
TEST_F(HierarchicalHostTest, RefusesMomentsThatCannotBe) {
  Step(0);
  const Digests expected = DigestsOf();
  Load(testing::MadeState(job_), 1);
  Forwards(0);
  const auto refused = [&](const std::function<void(v1::BackwardFrame*)>& spoil) {
    v1::ExchangeRequest request = Made(testing::BackwardOf(0, 0, {0, 1}));
    for (int i = 0; i < 2; ++i) spoil(request.mutable_backward()->mutable_frames(i));
    const absl::Status status = Send("worker/w0", std::move(request));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(
        status.message(),
        HasSubstr("backward step 0 wave 0 layer 1 of worker/w0: replica 0: mean "));
    return std::string(status.message());
  };
  const auto impossible = [](const std::string& name) {
    return HasSubstr(absl::StrCat(" of ", name,
                                  " are impossible for the layer's 6 experts, of which "
                                  "the 6 that are here have the mean "));
  };
  const auto scaled = [](double factor) { return [=](double v) { return factor * v; }; };
  for (const auto& change : {scaled(0.999), scaled(1.001)}) {
    EXPECT_THAT(refused([&](v1::BackwardFrame* f) {
                  f->mutable_importance()->set_mean(change(f->importance().mean()));
                }),
                impossible("importance"));
    EXPECT_THAT(
        refused([&](v1::BackwardFrame* f) {
          f->mutable_importance()->set_variance(change(f->importance().variance()));
        }),
        impossible("importance"));
    EXPECT_THAT(refused([&](v1::BackwardFrame* f) {
                  f->mutable_load()->set_mean(change(f->load().mean()));
                }),
                impossible("load"));
    EXPECT_THAT(refused([&](v1::BackwardFrame* f) {
                  f->mutable_load()->set_variance(change(f->load().variance()));
                }),
                impossible("load"));
  }
  SendAll(
      [&](const auto& replicas) { return Made(testing::BackwardOf(0, 0, replicas)); });
  SendAll(
      [&](const auto& replicas) { return Made(testing::BackwardOf(0, 1, replicas)); });
  SendAll([&](const auto& replicas) { return testing::CloseOf(plan_, 0, replicas); });
  for (uint32_t w = 0; w < kWaves; ++w) Next("worker/w0");
  EXPECT_EQ(Next("worker/w0").close().version(), 1u);
  EXPECT_EQ(DigestsOf(), expected);
}

TEST_F(HierarchicalHostTest, MomentsMayHoldGroupsThatAreElsewhere) {
  v1::ClusterState state = testing::MadeState(job_);
  for (v1::ShardPlacement& shard : *state.mutable_placement()->mutable_shards()) {
    if (shard.shard() == "layer1/group1") shard.set_server("server/s1");
  }
  Load(state, 1);
  v1::GroupOutput here;
  for (uint32_t w = 0; w < kWaves; ++w) {
    SendAll([&](const auto& replicas) {
      v1::ExchangeRequest request = Made(testing::ForwardOf(0, w, replicas));
      for (v1::ForwardFrame& frame : *request.mutable_forward()->mutable_frames()) {
        frame.mutable_groups()->RemoveLast();
      }
      return request;
    });
    here = Next("worker/w0").forward().replies(0).groups(0);
  }
  const auto joined = [](const v1::Spread& mine, const std::vector<double>& others) {
    return Join({kPerGroup, mine.mean(), mine.m2()}, SpreadOf(others)).moments();
  };
  const auto send = [&](const BalanceMoments& moments) {
    moments_ = moments;
    return Send("worker/w0", Made(testing::BackwardOf(0, 0, {0, 1})));
  };
  const BalanceMoments possible = {joined(here.importance_spread(), {3, 0.5, 1}),
                                   joined(here.load_spread(), {0, 7, 2})};
  BalanceMoments spoiled = possible;
  // As if the three other experts were all alike, and closer than that.
  spoiled.load = joined(here.load_spread(), {3, 3, 3});
  spoiled.load.variance *= 0.99;
  EXPECT_THAT(
      send(spoiled).message(),
      HasSubstr(" of load are impossible for the layer's 6 experts, of which the 3 "
                "that are here have the mean "));
  spoiled = possible;
  spoiled.importance.mean = here.importance_spread().mean() * 0.49;
  EXPECT_THAT(send(spoiled).message(), HasSubstr(" of importance are impossible"));
  const absl::Status status = send(possible);
  EXPECT_TRUE(status.ok()) << status;
}

// The balance's gradients are of the whole step.
TEST_F(HierarchicalHostTest, RefusesABackwardFrameBeforeTheLastForwardFrame) {
  SendAll([&](const auto& replicas) { return Made(testing::ForwardOf(0, 0, replicas)); });
  const absl::Status status = Send("worker/w0", Made(testing::BackwardOf(0, 0, {0, 1})));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(),
              HasSubstr("replica 0 did not send forward step 0 wave 1 layer 1 before"));
}

TEST_F(HierarchicalHostTest, RefusesABackwardFrameBeforeTheLastForwardAnswer) {
  for (uint32_t w = 0; w < kWaves; ++w) {
    ASSERT_TRUE(Send("worker/w0", Made(testing::ForwardOf(0, w, {0, 1}))).ok());
  }
  const absl::Status status = Send("worker/w0", Made(testing::BackwardOf(0, 0, {0, 1})));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(),
              HasSubstr("comes before the answer to forward step 0 wave 1 layer 1"));
}

}  // namespace
}  // namespace moe
