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
#include "tests/server/made_step.h"
#include "tests/server/shard_host_fixture.h"

namespace moe {
namespace {

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

  void Forwards(uint64_t step) {
    for (uint32_t w = 0; w < kWaves; ++w) {
      SendAll([&](const auto& replicas) {
        return Made(testing::ForwardOf(step, w, replicas));
      });
    }
  }
};

TEST_F(HierarchicalHostTest, ArrivalOrderAndThreadsChangeNoBit) {
  for (uint64_t step = 0; step < 3; ++step) Step(step);
  const Digests digests = DigestsOf();
  EXPECT_EQ(digests.size(), plan_.tensors.size());
  Load(testing::MadeState(job_), 2);
  for (uint64_t step = 0; step < 3; ++step) Step(step, /*reversed=*/step != 1);
  EXPECT_EQ(DigestsOf(), digests);
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
  EXPECT_EQ(written_["1 layer1/group1"].tensors(0).name(), "layer1.moe.group1.wg");
  Step(1);
  const Digests undisturbed = DigestsOf();
  state.set_restore_from(folder + "/step-00000001");
  state.set_start_step(1);
  Load(state, 2);
  EXPECT_EQ(DigestsOf(), at_cut);
  Step(1);
  EXPECT_EQ(DigestsOf(), undisturbed);
}

TEST_F(HierarchicalHostTest, RepliesSayWhatWasChosen) {
  Forwards(0);
  for (uint32_t w = 0; w < kWaves; ++w) {
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
      ASSERT_EQ(product.size(), 2 * rows);
      for (size_t i = 0; i < rows; ++i) {
        EXPECT_NEAR(product[2 * i] + product[2 * i + 1], primary[i], 1e-6);
      }
      EXPECT_EQ(output.importance_size(), 0);
      EXPECT_EQ(output.load_size(), 0);
      EXPECT_GT(output.importance_spread().mean(), 0);
      EXPECT_GT(output.load_spread().mean(), 0);
      EXPECT_EQ(output.tokens(), 33 * (w + 1));
    }
  }
  // No totals in an evaluation.
  SendAll([&](const auto& replicas) {
    return Made(testing::ForwardOf(5, 0, replicas, v1::MODE_EVALUATE));
  });
  const v1::GroupOutput& output = Next("worker/w1").forward().replies(0).groups(0);
  EXPECT_FALSE(output.chosen().expert().empty());
  EXPECT_FALSE(output.has_importance_spread());
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
      {"NegativeLoad", "load -5 is negative",
       [](v1::GroupRouting* g) { g->set_load(0, -5); }},
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
      HasSubstr("mean nan and variance 0.25 of load are not numbers from 0 on"));
  EXPECT_THAT(
      refused(0,
              [](v1::BackwardFrame* f) { f->mutable_importance()->set_variance(-0.5); }),
      HasSubstr("mean 2 and variance -0.5 of importance are not numbers from 0"));
  EXPECT_THAT(refused(0, [](v1::BackwardFrame* f) { f->mutable_dy()->pop_back(); }),
              HasSubstr("dy has "));
  // Unlike those of the request's other frame; then those of another worker, and of
  // another wave.
  const auto other_mean = [](v1::BackwardFrame* f) { f->mutable_load()->set_mean(4); };
  const char* const differs =
      "mean 4 and variance 0.25 of load differ from 3 and 0.25 of another frame of the "
      "step";
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
  for (uint32_t answers = 0; answers < 2 * kWaves; ++answers) Next("worker/w0");
  EXPECT_EQ(Next("worker/w0").close().version(), 1u);
  EXPECT_EQ(DigestsOf(), expected);
}

// The balance's gradients are of the whole step.
TEST_F(HierarchicalHostTest, RefusesABackwardFrameBeforeTheLastForwardFrame) {
  SendAll([&](const auto& replicas) { return Made(testing::ForwardOf(0, 0, replicas)); });
  const absl::Status status = Send("worker/w0", Made(testing::BackwardOf(0, 0, {0, 1})));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(),
              HasSubstr("replica 0 did not send forward step 0 wave 1 layer 1 before"));
}

}  // namespace
}  // namespace moe
