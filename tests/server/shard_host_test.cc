// A generation of a server without a network: whole steps, what is refused, cuts.
#include "server/shard_host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/io/file.h"
#include "common/job/describe.h"
#include "common/job/model_plan.h"
#include "tests/server/made_step.h"
#include "tests/server/shard_host_fixture.h"

namespace moe {
namespace {

using ::testing::AllOf;
using testing::Digests;
using ::testing::HasSubstr;
using testing::kLayer;
using testing::kWaves;
using ::testing::MatchesRegex;
using testing::RecordingSink;
using testing::SetFloat;
using testing::SetWord;
using testing::ShardHostTest;
using testing::Workers;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kPrecondition = absl::StatusCode::kFailedPrecondition;

TEST_F(ShardHostTest, ArrivalOrderAndThreadsChangeNoBit) {
  for (uint64_t step = 0; step < 3; ++step) Step(step);
  const Digests digests = DigestsOf();
  // But for both matrices of the expert without rows.
  EXPECT_EQ(digests.size(), plan_.tensors.size() - 2);
  Load(testing::MadeState(testing::MadeJob()), 2);
  for (uint64_t step = 0; step < 3; ++step) Step(step, /*reversed=*/step != 1);
  EXPECT_EQ(DigestsOf(), digests);
}

TEST_F(ShardHostTest, DigestsEndWhenTheirCallerIsGone) {
  int asked = 0;
  const auto gone = host_->Digests([&] { return ++asked == 3; });
  EXPECT_EQ(gone.status().code(), absl::StatusCode::kCancelled);
  // Of two shards, and no more.
  EXPECT_EQ(asked, 3);
  const auto all = host_->Digests([] { return false; });
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_GT(all->tensors_size(), 0);
}

TEST_F(ShardHostTest, PullsWaitForTheirVersion) {
  ASSERT_TRUE(Send("worker/w0", testing::PullOf({"dense/0", "dense/1"}, 0)).ok());
  const v1::ExchangeResponse initial = Next("worker/w0");
  ASSERT_EQ(initial.pull().shards_size(), 2);
  EXPECT_EQ(initial.pull().shards(1).shard(), "dense/1");
  std::vector<float> expected(plan_.SizeOf(plan_.shards[0]));
  int64_t at = 0;
  for (int64_t t : plan_.shards[0].tensors) {
    FillInitialValues(5, plan_.tensors[t], expected.data() + at);
    at += plan_.tensors[t].size();
  }
  EXPECT_EQ(testing::Floats(initial.pull().shards(0).content()), expected);

  Frames(0);
  ASSERT_TRUE(Send("worker/w0", testing::PullOf({"replica/1"}, 1)).ok());
  EXPECT_EQ(sinks_["worker/w0"]->waiting(), 0u);
  SendAll([&](const auto& replicas) { return testing::CloseOf(plan_, 0, replicas); });
  EXPECT_EQ(Next("worker/w0").close().version(), 1u);
  const v1::ExchangeResponse state = Next("worker/w0");
  EXPECT_EQ(state.pull().version(), 1u);
  EXPECT_EQ(state.pull().shards(0).content(), "state of replica/1 after step 0");

  EXPECT_THAT(
      Send("worker/w0", testing::PullOf({"dense/0"}, 0)).message(),
      HasSubstr("version 0 is not to be had: the shards of server/s0 have version 1"));
  EXPECT_THAT(Send("worker/w0", testing::PullOf({"dense/7"}, 1)).message(),
              HasSubstr("no dense or replica shard dense/7 is on server/s0"));
}

TEST_F(ShardHostTest, APullThatAStepOvertakesIsRefused) {
  BeginSlowCut("overtaken", /*copy_bytes=*/1);
  Frames(1);
  SendAll([&](const auto& replicas) { return testing::CloseOf(plan_, 1, replicas); });
  AwaitTheDisk();
  // The step is being applied.
  const auto late = std::make_shared<RecordingSink>();
  EXPECT_TRUE(host_->Handle("worker/w0", testing::PullOf({"dense/0"}, 1), late).ok());
  disk_.Notify();
  const v1::ExchangeResponse response = late->Next();
  EXPECT_EQ(response.failure().code(), static_cast<int>(kPrecondition));
  EXPECT_THAT(response.failure().message(),
              HasSubstr("version 1 is not to be had: the shards of server/s0 have "
                        "version 2"));
}

TEST_F(ShardHostTest, WhatComesAgainIsAnsweredAgainAndCountsOnce) {
  Step(0);
  const Digests once = DigestsOf();
  Load(testing::MadeState(testing::MadeJob()), 1);

  // Before the rendezvous is complete, and after.
  ASSERT_TRUE(Send("worker/w0", testing::ForwardOf(0, 0, {0, 1})).ok());
  ASSERT_TRUE(Send("worker/w0", testing::ForwardOf(0, 0, {0, 1})).ok());
  ASSERT_TRUE(Send("worker/w1", testing::ForwardOf(0, 0, {2})).ok());
  const v1::ExchangeResponse first = Next("worker/w0");
  ASSERT_TRUE(Send("worker/w0", testing::ForwardOf(0, 0, {0, 1})).ok());
  EXPECT_EQ(Next("worker/w0").SerializeAsString(), first.SerializeAsString());
  Next("worker/w1");
  EXPECT_THAT(Send("worker/w0", testing::ForwardOf(0, 0, {0})).message(),
              HasSubstr("comes again with other replicas"));

  // Each message twice, the second time when all is done.
  const auto send_twice = [&](const auto& make) {
    for (int time = 0; time < 2; ++time) {
      SendAll(make);
      for (const auto& [worker, replicas] : Workers()) Next(worker);
    }
  };
  send_twice([](const auto& replicas) { return testing::ForwardOf(0, 1, replicas); });
  for (uint32_t w = 0; w < kWaves; ++w) {
    send_twice([&](const auto& replicas) { return testing::BackwardOf(0, w, replicas); });
  }
  send_twice([&](const auto& replicas) { return testing::CloseOf(plan_, 0, replicas); });
  EXPECT_EQ(DigestsOf(), once);
}

TEST_F(ShardHostTest, WhatComesAgainIsCheckedAsWell) {
  ASSERT_TRUE(Send("worker/w0", testing::ForwardOf(0, 0, {0, 1})).ok());
  const auto again = [&](const v1::ExchangeRequest& request) {
    return std::string(
        host_->Handle("worker/w0", request, sinks_["worker/w0"], /*again=*/true)
            .message());
  };
  v1::ExchangeRequest request = testing::ForwardOf(0, 0, {0, 1});
  request.mutable_forward()->mutable_frames(1)->set_replica(1u << 31);
  EXPECT_THAT(again(request), HasSubstr("replica 2147483648 is out of range"));
  EXPECT_THAT(again(testing::ForwardOf(0, 0, {2})), HasSubstr("is worker/w1's"));
  EXPECT_THAT(again(testing::ForwardOf(0, 0, {0})),
              HasSubstr("comes again with other replicas"));
  EXPECT_EQ(again(testing::ForwardOf(0, 0, {0, 1})), "");
}

TEST_F(ShardHostTest, EvaluationReadsTheCurrentVersion) {
  Step(0);
  const auto evaluate = [&](uint64_t batch, uint32_t wave) {
    SendAll([&](const auto& replicas) {
      return testing::ForwardOf(batch, wave, replicas, v1::MODE_EVALUATE);
    });
    EXPECT_EQ(Next("worker/w0").forward().id().step(), batch);
    EXPECT_EQ(Next("worker/w1").forward().id().mode(), v1::MODE_EVALUATE);
  };
  for (uint64_t batch : {0, 1}) {
    for (uint32_t wave = 0; wave < kWaves; ++wave) evaluate(batch, wave);
  }
  // Training doesn't start the numbers over.
  Step(1);
  evaluate(2, 0);
  evaluate(2, 1);
}

TEST_F(ShardHostTest, EvaluationBatchesComeInTheirOrder) {
  const auto send = [&](const std::string& worker, uint64_t batch, uint32_t wave) {
    return Send(worker,
                testing::ForwardOf(batch, wave, Workers().at(worker), v1::MODE_EVALUATE));
  };
  const auto refused = [&](const std::string& worker, uint64_t batch, uint32_t wave) {
    const absl::Status status = send(worker, batch, wave);
    EXPECT_EQ(status.code(), kPrecondition);
    return std::string(status.message());
  };
  EXPECT_THAT(refused("worker/w0", 7, 0),
              HasSubstr("forward evaluation 7 wave 0 layer 1 of worker/w0: evaluation 7 "
                        "is out of turn: evaluation 1 comes before it"));
  EXPECT_THAT(refused("worker/w0", 1, 0),
              HasSubstr("replica 0 did not send forward evaluation 0 wave 0 layer 1 "
                        "before"));
  ASSERT_TRUE(send("worker/w0", 0, 0).ok());
  ASSERT_TRUE(send("worker/w1", 0, 0).ok());
  Next("worker/w0");
  EXPECT_THAT(refused("worker/w0", 1, 0),
              HasSubstr("replica 0 did not send forward evaluation 0 wave 1 layer 1 "
                        "before"));
  ASSERT_TRUE(send("worker/w0", 0, 1).ok());
  ASSERT_TRUE(send("worker/w1", 0, 1).ok());
  Next("worker/w0");

  // One worker is ahead; the other may still ask for its answers.
  ASSERT_TRUE(send("worker/w0", 1, 0).ok());
  EXPECT_THAT(refused("worker/w0", 2, 0), HasSubstr("evaluation 2 is out of turn"));
  ASSERT_TRUE(send("worker/w1", 0, 1).ok());
  for (uint32_t wave : {0, 1, 1}) {
    EXPECT_EQ(Next("worker/w1").forward().id().wave(), wave);
  }
  ASSERT_TRUE(send("worker/w1", 1, 0).ok());
  EXPECT_EQ(Next("worker/w0").forward().id().step(), 1u);
  EXPECT_EQ(Next("worker/w1").forward().id().step(), 1u);
  // A batch that is over is nobody's business any more.
  EXPECT_TRUE(send("worker/w0", 0, 0).ok());
  EXPECT_EQ(sinks_["worker/w0"]->waiting(), 0u);
  EXPECT_THAT(refused("worker/w0", 2, 0), HasSubstr("forward evaluation 1 wave 1"));
}

TEST_F(ShardHostTest, ClipsByTheScaleThatAllWorkersName) {
  const v1::ClusterState state =
      testing::MadeState(testing::MadeJob("sgd {} clip_norm: 0.5"));
  Load(state, 1);
  EXPECT_THAT(Send("worker/w0", testing::ApplyOf(0, 1)).message(),
              HasSubstr("apply step 0 of worker/w0: that step does not await a scale"));
  Frames(0);
  SendAll([&](const auto& replicas) { return testing::CloseOf(plan_, 0, replicas); });
  const v1::ExchangeResponse closed = Next("worker/w0");
  EXPECT_EQ(closed.close().version(), 0u);
  // Every tensor but those of the expert without rows.
  EXPECT_EQ(closed.close().square_sums_size(),
            static_cast<int>(plan_.tensors.size()) - 2);
  Next("worker/w1");
  const Digests before = DigestsOf();

  EXPECT_THAT(Send("worker/w0", testing::ForwardOf(0, 0, {0, 1})).message(),
              ::testing::IsEmpty());  // the kept answer
  Next("worker/w0");
  ASSERT_TRUE(Send("worker/w0", testing::ApplyOf(0, 0.25)).ok());
  EXPECT_THAT(Send("worker/w1", testing::ApplyOf(0, 0.5)).message(),
              HasSubstr("scale 0.5 differs from 0.25 of another worker"));
  EXPECT_EQ(DigestsOf(), before);
  ASSERT_TRUE(Send("worker/w1", testing::ApplyOf(0, 0.25)).ok());
  EXPECT_EQ(Next("worker/w0").apply().version(), 1u);
  EXPECT_EQ(Next("worker/w1").apply().version(), 1u);
  EXPECT_NE(DigestsOf(), before);
}

TEST_F(ShardHostTest, CutRestoresToTheSameBits) {
  const std::string folder = TempFolder("cut");
  v1::ClusterState state = testing::MadeState(testing::MadeJob());
  state.set_checkpoint_dir(folder);
  Load(state, 1);
  Step(0);
  Step(1, /*reversed=*/false, /*cut=*/true);
  const Digests at_cut = DigestsOf();
  const v1::ShardFile file = Written(2)["layer1/group0"];
  EXPECT_EQ(file.file(), "layer1-group0.safetensors");
  EXPECT_EQ(file.sha256().size(), 64u);
  ASSERT_EQ(file.tensors_size(), 6);
  EXPECT_EQ(file.tensors(0).sha256(), at_cut.at("layer1.moe.expert0.w1"));
  Step(2);
  const Digests undisturbed = DigestsOf();

  state.set_restore_from(folder + "/step-00000002.generation-1");
  WriteManifestOf(2, state.restore_from());
  state.set_start_step(2);
  Load(state, 2);
  EXPECT_EQ(DigestsOf(), at_cut);
  ASSERT_TRUE(Send("worker/w1", testing::PullOf({"replica/2"}, 2)).ok());
  EXPECT_EQ(Next("worker/w1").pull().shards(0).content(),
            "state of replica/2 after step 1");
  Step(2);
  EXPECT_EQ(DigestsOf(), undisturbed);
}

TEST_F(ShardHostTest, GoesOnWithTheSameBitsAfterAHandover) {
  for (uint64_t step = 0; step < 4; ++step) Step(step);
  const Digests undisturbed = DigestsOf();
  Load(testing::MadeState(job_), 1);
  Step(0);
  MoveShardsDuringStep(1);
  ASSERT_TRUE(Send("worker/w1", testing::PullOf({"replica/2"}, 2)).ok());
  EXPECT_EQ(Next("worker/w1").pull().shards(0).content(),
            "state of replica/2 after step 1");
  Step(2);
  Step(3);
  EXPECT_EQ(DigestsOf(), undisturbed);
}

TEST_F(ShardHostTest, ExpertsOnDiskAreHandedOverToo) {
  for (uint64_t step = 0; step < 4; ++step) Step(step);
  const Digests undisturbed = DigestsOf();
  host_ = nullptr;
  home_ = *ShardHome::Create(
      *backend_, {.tier = CapacityTier::Options{.folder = ::testing::TempDir(),
                                                .disk_bytes = int64_t{1} << 24}});
  ShardStock none;
  LoadWith(testing::MadeState(job_), none);
  Step(0);
  const int64_t allocated = home_->tier()->allocated();
  EXPECT_GT(allocated, 0);
  MoveShardsDuringStep(1);
  Step(2);
  Step(3);
  EXPECT_EQ(DigestsOf(), undisturbed);
  host_ = nullptr;
  EXPECT_EQ(home_->tier()->allocated(), 0);
}

TEST_F(ShardHostTest, AHandoverNeverMakesAShardAnew) {
  v1::ClusterState state = testing::MadeState(job_);
  state.mutable_handover()->set_step(7);
  ShardStock stock = host_->Release();
  stock.erase("replica/1");
  ShardHost::Options options;
  options.server = "server/s0";
  options.state = state;
  const absl::Status status = ShardHost::Load(home_, std::move(options), stock).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("replica/1, which the generation before this "
                                          "one had at step 7, isn't here"));
}

TEST_F(ShardHostTest, RefusesPiecesThatAreNone) {
  const std::vector<uint64_t> too_few(1);
  EXPECT_THAT(host_->ReadPiecesOf("layer1/group0", too_few, 0, 1).status().message(),
              HasSubstr("layer1/group0 has 6 pieces, not 1"));
  EXPECT_TRUE(absl::IsNotFound(host_->ReadPiecesOf("other", too_few, 0, 1).status()));
  ShardStock stock = host_->Release();
  PieceWriter writer(*stock.at("layer1/group0"));
  v1::ShardPiece piece;
  piece.set_piece(6);
  EXPECT_THAT(writer.Add(piece).message(), HasSubstr("has no piece 6"));
  piece.set_piece(0);
  piece.set_version(1);
  piece.set_content("short");
  EXPECT_THAT(writer.Add(piece).message(),
              HasSubstr("piece 0 of layer1/group0 has 5 bytes instead of "));
  piece.set_more(true);
  EXPECT_TRUE(writer.Add(piece).ok());
  EXPECT_TRUE(absl::IsDataLoss(writer.Finish()));
}

// A worker that the coordinator's request didn't reach says nothing of it.
TEST_F(ShardHostTest, ThereIsNoCutUnlessAllWorkersWantIt) {
  v1::ClusterState state = testing::MadeState(testing::MadeJob());
  state.set_checkpoint_dir(TempFolder("wanted"));
  Load(state, 1);
  for (const bool all : {false, true}) {
    const uint64_t step = all ? 1 : 0;
    Frames(step);
    SendAll([&](const auto& replicas) {
      return testing::CloseOf(plan_, step, replicas, all || replicas.front() == 0);
    });
    for (const auto& [worker, replicas] : Workers()) {
      const v1::CloseResponse response = Next(worker).close();
      EXPECT_EQ(response.version(), step + 1);
      EXPECT_EQ(response.cut(), all) << worker;
    }
    if (all) {
      Written(step + 1);
    } else {
      EXPECT_EQ(host_->Status().writing(), "");
    }
  }
}

TEST_F(ShardHostTest, StepsGoOnWhileACutIsWritten) {
  v1::ClusterState state = testing::MadeState(testing::MadeJob());
  state.set_checkpoint_dir(TempFolder("at_rest"));
  Load(state, 1);
  Step(0, /*reversed=*/false, /*cut=*/true);
  const Digests at_cut = DigestsOf();
  const std::map<std::string, v1::ShardFile> at_rest = Written(1);

  state = BeginSlowCut("slow", /*copy_bytes=*/0);
  for (uint64_t step : {1, 2, 3}) Step(step);
  const Digests undisturbed = DigestsOf();
  EXPECT_NE(undisturbed, at_cut);
  v1::GetServerStatusResponse status = host_->Status();
  EXPECT_EQ(status.writing(), "the checkpoint of step 1 (dense/1)");
  EXPECT_EQ(status.waiting_for(), "");
  EXPECT_GT(status.copied_bytes(), 0u);
  // Of all that steps may change there is room for a copy.
  EXPECT_LE(status.copied_bytes(), status.copy_limit_bytes());
  disk_.Notify();
  const std::map<std::string, v1::ShardFile> files = Written(1);
  for (const auto& [shard, file] : files) {
    EXPECT_EQ(file.DebugString(), at_rest.at(shard).DebugString()) << shard;
  }
  status = host_->Status();
  EXPECT_EQ(status.copied_bytes(), 0u);

  state.set_restore_from(state.checkpoint_dir() + "/step-00000001.generation-1");
  WriteManifestOf(1, state.restore_from());
  state.set_start_step(1);
  Load(state, 2);
  EXPECT_EQ(DigestsOf(), at_cut);
  for (uint64_t step : {1, 2, 3}) Step(step);
  EXPECT_EQ(DigestsOf(), undisturbed);
}

TEST_F(ShardHostTest, AStepForWhoseCopiesThereIsNoRoomWaitsForTheDisk) {
  const v1::ClusterState state = BeginSlowCut("full", /*copy_bytes=*/100);
  Frames(1);
  SendAll([&](const auto& replicas) { return testing::CloseOf(plan_, 1, replicas); });
  AwaitTheDisk();
  const v1::GetServerStatusResponse status = host_->Status();
  EXPECT_THAT(status.waiting_for(),
              AllOf(HasSubstr("the disk to take the checkpoint of step 1 (dense/1)"),
                    HasSubstr("--copy_gib")));
  EXPECT_EQ(status.copy_limit_bytes(), 100u);
  EXPECT_LE(status.copied_bytes(), 100u);
  EXPECT_EQ(sinks_["worker/w0"]->waiting(), 0u);
  disk_.Notify();
  for (const auto& [worker, replicas] : Workers()) {
    EXPECT_EQ(Next(worker).close().version(), 2u);
  }
  Written(1);
  EXPECT_EQ(host_->Status().waiting_for(), "");
  absl::MutexLock lock(&mutex_);
  EXPECT_EQ(waited_for_.back(), "");
}

TEST_F(ShardHostTest, ASecondCutWaitsForTheFirst) {
  BeginSlowCut("second", /*copy_bytes=*/0);
  Frames(1);
  SendAll([&](const auto& replicas) {
    return testing::CloseOf(plan_, 1, replicas, /*cut=*/true);
  });
  AwaitTheDisk();
  EXPECT_EQ(sinks_["worker/w0"]->waiting(), 0u);
  disk_.Notify();
  for (const auto& [worker, replicas] : Workers()) {
    EXPECT_EQ(Next(worker).close().version(), 2u);
  }
  const Digests at_cut = DigestsOf();
  Written(1);
  const v1::ShardFile file = Written(2)["layer1/group0"];
  EXPECT_EQ(file.tensors(0).sha256(), at_cut.at("layer1.moe.expert0.w1"));
}

TEST_F(ShardHostTest, AStepThatWaitsForTheDiskEndsWithItsGeneration) {
  BeginSlowCut("given_up", /*copy_bytes=*/1);
  Frames(1);
  SendAll([&](const auto& replicas) { return testing::CloseOf(plan_, 1, replicas); });
  AwaitTheDisk();
  std::thread disk([&] {
    absl::SleepFor(absl::Milliseconds(50));
    disk_.Notify();
  });
  host_ = nullptr;
  disk.join();
  absl::MutexLock lock(&mutex_);
  // The file that was under way, and no other.
  EXPECT_EQ(written_.size(), 1u);
  EXPECT_FALSE(failed_.HasBeenNotified());
}

TEST_F(ShardHostTest, RefusesFilesThatDoNotFit) {
  const std::string folder = TempFolder("misfit");
  v1::ClusterState state = testing::MadeState(testing::MadeJob());
  state.set_checkpoint_dir(folder);
  Load(state, 1);
  Step(0, /*reversed=*/false, /*cut=*/true);
  Written(1);
  const auto load = [&](const v1::ClusterState& other) {
    ShardHost::Options options;
    options.server = "server/s0";
    options.state = other;
    ShardStock none;
    return ShardHost::Load(home_, std::move(options), none).status();
  };
  state.set_restore_from(folder + "/step-00000001.generation-1");
  WriteManifestOf(1, state.restore_from());
  state.set_start_step(3);
  EXPECT_THAT(load(state).message(), HasSubstr("its step is 1 instead of 3"));
  state.set_start_step(1);
  v1::ClusterState wider = state;
  wider.mutable_job()->mutable_model()->mutable_layers(1)->mutable_moe()->set_hidden(0,
                                                                                     8);
  EXPECT_THAT(load(wider).message(), HasSubstr("is F32 [5, 7] instead of F32 [5, 8]"));
  v1::ClusterState plain = state;
  plain.mutable_job()->mutable_optimizer()->mutable_sgd();
  EXPECT_THAT(load(plain).message(),
              HasSubstr("has an entry \"embedding#m\", for which this job has no use"));
  for (const char* shard : {"dense-1", "layer1-group1", "replica-1"}) {
    const std::string path =
        absl::StrCat(state.restore_from(), "/", shard, ".safetensors");
    const std::string good = *ReadFile(path);
    std::string bad = good;
    bad.back() ^= 1;
    ASSERT_TRUE(WriteFileAtomically(path, bad).ok());
    EXPECT_THAT(load(state).message(), HasSubstr(path + ": is damaged: its SHA-256 is "));
    ASSERT_TRUE(WriteFileAtomically(path, good).ok());
  }
  EXPECT_TRUE(load(state).ok());
  std::filesystem::remove(state.restore_from() + "/replica-1.safetensors");
  EXPECT_THAT(load(state).message(), HasSubstr("replica-1.safetensors"));
  std::filesystem::remove(ManifestPath(state.restore_from()));
  EXPECT_THAT(load(state).message(), HasSubstr("manifest.json"));
}

TEST_F(ShardHostTest, FailsTheJobWhenACutCannotBeWritten) {
  const std::string folder = TempFolder("unwritable");
  std::filesystem::create_directories(folder +
                                      "/step-00000001.generation-1/dense-0.safetensors");
  v1::ClusterState state = testing::MadeState(testing::MadeJob());
  state.set_checkpoint_dir(folder);
  Load(state, 1);
  Frames(0);
  SendAll(
      [&](const auto& replicas) { return testing::CloseOf(plan_, 0, replicas, true); });
  failed_.WaitForNotification();
  EXPECT_THAT(failure_.message(),
              AllOf(HasSubstr("dense-0.safetensors"), HasSubstr("regular file")));
  EXPECT_FALSE(Send("worker/w0", testing::ForwardOf(1, 0, {0, 1})).ok());
}

TEST_F(ShardHostTest, SaysWhomItWaitsForAndGivesUp) {
  Load(testing::MadeState(testing::MadeJob()), 1, absl::Milliseconds(300));
  ASSERT_TRUE(Send("worker/w1", testing::ForwardOf(0, 0, {2})).ok());
  EXPECT_EQ(host_->Status().waiting_for(),
            "replicas 0,1 (worker/w0) in forward step 0 wave 0 layer 1");
  EXPECT_GT(host_->Status().waiting_seconds(), 0);
  failed_.WaitForNotification();
  EXPECT_THAT(std::string(failure_.message()),
              MatchesRegex("waited [0-9.]+ s for replicas 0,1 \\(worker/w0\\) in forward "
                           "step 0 wave 0 layer 1"));
  EXPECT_EQ(Send("worker/w0", testing::ForwardOf(0, 0, {0, 1})), failure_);
}

TEST_F(ShardHostTest, ReportsItsShards) {
  Step(0);
  const v1::GetServerStatusResponse status = host_->Status();
  EXPECT_EQ(status.server(), "server/s0");
  EXPECT_EQ(status.generation(), 1u);
  EXPECT_EQ(status.waiting_for(), "");
  ASSERT_EQ(status.shards_size(), static_cast<int>(plan_.shards.size()));
  const v1::ShardStatus& group = status.shards(2);
  EXPECT_EQ(group.shard(), "layer1/group0");
  EXPECT_EQ(group.version(), 1u);
  EXPECT_EQ(group.parameter_bytes(), 3 * 2 * 35 * 4u);
  EXPECT_EQ(group.optimizer_bytes(), 2 * group.parameter_bytes());
  ASSERT_EQ(group.experts_size(), 3);
  EXPECT_GT(group.experts(0).last_rows(), 0u);
  EXPECT_GT(status.times().computing(), 0);
}

// What moectl describe says of the job is what the servers say of their shards.
TEST_F(ShardHostTest, MemoryIsAsDescribed) {
  for (const char* optimizer :
       {"sgd {}", "adam {}", "adam { beta1: 0 second_moment: SECOND_MOMENT_PER_ROW }",
        "adam { second_moment: SECOND_MOMENT_FACTORED }",
        "adam {} experts { beta1: 0 second_moment: SECOND_MOMENT_FACTORED }"}) {
    for (v1::Parameters parameters : {v1::PARAMETERS_FLOAT32, v1::PARAMETERS_BFLOAT16}) {
      for (v1::Gating gating : {v1::GATING_NOISY_TOP_K, v1::GATING_STRICTLY_BALANCED}) {
        v1::Job job = testing::MadeJob(optimizer);
        v1::Moe& moe = *job.mutable_model()->mutable_layers(kLayer)->mutable_moe();
        moe.set_parameters(parameters);
        moe.set_gating(gating);
        Load(testing::MadeState(job), 1);
        StoredCount dense, experts;
        const v1::GetServerStatusResponse status = host_->Status();
        for (const v1::ShardStatus& shard : status.shards()) {
          if (shard.shard().starts_with("replica/")) continue;
          StoredCount& count = shard.experts_size() > 0 ? experts : dense;
          count.parameter_bytes += static_cast<int64_t>(shard.parameter_bytes());
          count.optimizer_bytes += static_cast<int64_t>(shard.optimizer_bytes());
        }
        const ModelStored stored = CountStored(job);
        EXPECT_EQ(dense.parameter_bytes, stored.dense.parameter_bytes);
        EXPECT_EQ(dense.optimizer_bytes, stored.dense.optimizer_bytes) << optimizer;
        EXPECT_EQ(experts.parameter_bytes, stored.experts.parameter_bytes);
        EXPECT_EQ(experts.optimizer_bytes, stored.experts.optimizer_bytes) << optimizer;
      }
    }
  }
}

// ---------------------------------------------------------------- what is refused

struct Refusal {
  std::string name;
  absl::StatusCode code;
  std::string message;
  // Spoils worker/w0's first forward request.
  std::function<void(v1::ForwardRequest*)> spoil;
};

class RefusedFrame : public ShardHostTest,
                     public ::testing::WithParamInterface<Refusal> {};

constexpr char kWhere[] = "forward step 0 wave 0 layer 1 of worker/w0: replica 1: ";

std::vector<Refusal> Refusals() {
  return {
      {"WrongStep", kPrecondition,
       "forward step 9 wave 0 layer 1 of worker/w0: step 9 is not the current one: the "
       "shards of server/s0 have version 0",
       [](v1::ForwardRequest* f) { f->mutable_id()->set_step(9); }},
      {"UnknownLayer", kInvalid,
       "layer 0 of worker/w0: no expert of layer 0 is on server/s0",
       [](v1::ForwardRequest* f) { f->mutable_id()->set_layer(0); }},
      {"WaveOutOfRange", kInvalid, "wave 2 is out of range: the job has 2",
       [](v1::ForwardRequest* f) { f->mutable_id()->set_wave(2); }},
      {"WaveTooEarly", kPrecondition, "replica 0 did not send wave 0 before",
       [](v1::ForwardRequest* f) { f->mutable_id()->set_wave(1); }},
      {"NoMode", kInvalid, "mode 0 is unknown",
       [](v1::ForwardRequest* f) { f->mutable_id()->set_mode(v1::MODE_UNSPECIFIED); }},
      {"NoFrames", kInvalid, "names no replica",
       [](v1::ForwardRequest* f) { f->clear_frames(); }},
      {"ReplicaOutOfRange", kInvalid, "replica 3 is out of range: the job has 3",
       [](v1::ForwardRequest* f) { f->mutable_frames(1)->set_replica(3); }},
      {"ReplicaOfAnother", kPrecondition, "replica 2 is worker/w1's, not worker/w0's",
       [](v1::ForwardRequest* f) { f->mutable_frames(1)->set_replica(2); }},
      {"ReplicaTwice", kInvalid, "replica 0 comes after replica 0; replicas must ascend",
       [](v1::ForwardRequest* f) { f->mutable_frames(1)->set_replica(0); }},
      {"GroupMissing", kInvalid, "has 1 groups; groups 0,1 are hosted here",
       [](v1::ForwardRequest* f) {
         f->mutable_frames(1)->mutable_groups()->RemoveLast();
       }},
      {"UnknownGroup", kInvalid, "group 5 in place 1; groups 0,1 are hosted here",
       [](v1::ForwardRequest* f) {
         f->mutable_frames(1)->mutable_groups(1)->set_group(5);
       }},
      {"OddBytes", kInvalid, "token has 5 bytes, which is no multiple of 4",
       [](v1::ForwardRequest* f) { f->mutable_frames(1)->set_token("12345"); }},
      {"WrongWidth", kInvalid, "x has ",
       [](v1::ForwardRequest* f) { f->mutable_frames(1)->mutable_x()->append("1234"); }},
      {"TokenOutOfRange", kInvalid, "is out of range: there are 3",
       [](v1::ForwardRequest* f) { f->mutable_frames(1)->set_tokens(3); }},
      {"TokensDescend", kInvalid, "tokens must ascend",
       [](v1::ForwardRequest* f) {
         SetWord(f->mutable_frames(1)->mutable_token(), 0, 10);
       }},
      {"RowOutOfRange", kInvalid, "group 0: row 99 is out of range",
       [](v1::ForwardRequest* f) {
         SetWord(f->mutable_frames(1)->mutable_groups(0)->mutable_row(), 0, 99);
       }},
      {"ExpertOutOfRange", kInvalid, "group 0: expert 3 is out of range: the group has 3",
       [](v1::ForwardRequest* f) {
         SetWord(f->mutable_frames(1)->mutable_groups(0)->mutable_expert(), 0, 3);
       }},
      {"PairsDescend", kInvalid, "does not come after the one before it",
       [](v1::ForwardRequest* f) {
         auto* group = f->mutable_frames(1)->mutable_groups(0);
         uint32_t second;
         std::memcpy(&second, group->row().data() + 4, 4);
         SetWord(group->mutable_row(), 0, second);
         SetWord(group->mutable_expert(), 0, 2);
         SetWord(group->mutable_expert(), 1, 0);
       }},
      {"GatesMissing", kInvalid, "elements instead of equally many",
       [](v1::ForwardRequest* f) {
         f->mutable_frames(1)->mutable_groups(0)->clear_gate();
       }},
      {"TotalsMissing", kInvalid, "load has 0 values instead of 3",
       [](v1::ForwardRequest* f) {
         f->mutable_frames(1)->mutable_groups(0)->clear_load();
       }},
      {"NanImportance", kInvalid, "importance has a NaN or an infinity",
       [](v1::ForwardRequest* f) {
         f->mutable_frames(1)->mutable_groups(0)->set_importance(0, std::nan(""));
       }},
      {"NanX", kInvalid, absl::StrCat(kWhere, "x has a NaN or an infinity"),
       [](v1::ForwardRequest* f) {
         SetFloat(f->mutable_frames(1)->mutable_x(), 3,
                  std::numeric_limits<float>::quiet_NaN());
       }},
      {"InfiniteGate", kInvalid,
       absl::StrCat(kWhere, "group 1: gate inf is not between 0 and 1"),
       [](v1::ForwardRequest* f) {
         SetFloat(f->mutable_frames(1)->mutable_groups(1)->mutable_gate(), 0,
                  std::numeric_limits<float>::infinity());
       }},
      {"NanGate", kInvalid, "group 1: gate nan is not between 0 and 1",
       [](v1::ForwardRequest* f) {
         SetFloat(f->mutable_frames(1)->mutable_groups(1)->mutable_gate(), 0,
                  std::numeric_limits<float>::quiet_NaN());
       }},
      {"NegativeGate", kInvalid, "group 1: gate -0.25 is not between 0 and 1",
       [](v1::ForwardRequest* f) {
         SetFloat(f->mutable_frames(1)->mutable_groups(1)->mutable_gate(), 0, -0.25f);
       }},
      {"GateAboveOne", kInvalid, "group 1: gate 1.001 is not between 0 and 1",
       [](v1::ForwardRequest* f) {
         SetFloat(f->mutable_frames(1)->mutable_groups(1)->mutable_gate(), 0, 1.001f);
       }},
      {"NegativeImportance", kInvalid,
       "group 0: importance -0.5 is not between 0 and the number of tokens, 11",
       [](v1::ForwardRequest* f) {
         f->mutable_frames(1)->mutable_groups(0)->set_importance(1, -0.5);
       }},
      {"ImportanceAboveTokens", kInvalid,
       "group 0: importance 11.5 is not between 0 and the number of tokens, 11",
       [](v1::ForwardRequest* f) {
         f->mutable_frames(1)->mutable_groups(0)->set_importance(1, 11.5);
       }},
      {"NegativeLoad", kInvalid,
       "group 0: load -1 is not between 0 and the number of tokens, 11",
       [](v1::ForwardRequest* f) {
         f->mutable_frames(1)->mutable_groups(0)->set_load(1, -1);
       }},
      {"LoadAboveTokens", kInvalid,
       "group 0: load 12 is not between 0 and the number of tokens, 11",
       [](v1::ForwardRequest* f) {
         f->mutable_frames(1)->mutable_groups(0)->set_load(1, 12);
       }},
  };
}

TEST_P(RefusedFrame, IsRefusedAndChangesNothing) {
  Step(0);
  const Digests expected = DigestsOf();
  Load(testing::MadeState(testing::MadeJob()), 1);
  v1::ExchangeRequest request = testing::ForwardOf(0, 0, {0, 1});
  GetParam().spoil(request.mutable_forward());
  const absl::Status status = Send("worker/w0", std::move(request));
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(status.message(), HasSubstr(GetParam().message));
  Step(0);
  EXPECT_EQ(DigestsOf(), expected);
}

INSTANTIATE_TEST_SUITE_P(All, RefusedFrame, ::testing::ValuesIn(Refusals()),
                         [](const auto& info) { return info.param.name; });

TEST_F(ShardHostTest, RefusesAnotherGeneration) {
  v1::ExchangeRequest request = testing::ForwardOf(0, 0, {0, 1});
  request.set_generation(0);
  const absl::Status status = Send("worker/w0", std::move(request));
  EXPECT_EQ(status.code(), kPrecondition);
  EXPECT_EQ(status.message(),
            "worker/w0 sent a message of generation 0; the current one is 1");
}

TEST_F(ShardHostTest, RefusesBadBackwardFrames) {
  EXPECT_THAT(Send("worker/w1", testing::BackwardOf(0, 0, {2})).message(),
              HasSubstr("replica 2 did not send forward step 0 wave 1 layer 1 before"));
  SendAll([](const auto& replicas) { return testing::ForwardOf(0, 0, replicas); });
  EXPECT_THAT(Send("worker/w1", testing::BackwardOf(0, 0, {2})).message(),
              HasSubstr("replica 2 did not send forward step 0 wave 1 layer 1 before"));
  SendAll([](const auto& replicas) { return testing::ForwardOf(0, 1, replicas); });
  v1::ExchangeRequest request = testing::BackwardOf(0, 0, {2});
  request.mutable_backward()->mutable_frames(0)->mutable_dy()->pop_back();
  EXPECT_THAT(
      Send("worker/w1", request).message(),
      HasSubstr("backward step 0 wave 0 layer 1 of worker/w1: replica 2: dy has "));
  request = testing::BackwardOf(0, 0, {2});
  SetFloat(request.mutable_backward()->mutable_frames(0)->mutable_dy(), 0, -INFINITY);
  EXPECT_THAT(
      Send("worker/w1", request).message(),
      HasSubstr("backward step 0 wave 0 layer 1 of worker/w1: replica 2: dy has a "
                "NaN or an infinity"));
  request = testing::BackwardOf(0, 0, {2});
  request.mutable_backward()->mutable_id()->set_mode(v1::MODE_EVALUATE);
  EXPECT_THAT(Send("worker/w1", request).message(),
              HasSubstr("an evaluation has no backward pass"));
  EXPECT_THAT(
      Send("worker/w1", testing::Hierarchical(testing::BackwardOf(0, 0, {2}))).message(),
      HasSubstr("replica 2: has moments, but the layer is flat"));
}

TEST_F(ShardHostTest, RefusesBadCloses) {
  EXPECT_THAT(
      Send("worker/w1", testing::CloseOf(plan_, 0, {2})).message(),
      HasSubstr(
          "close step 0 of worker/w1: replica 2 did not send backward step 0 wave 0 "
          "layer 1 before"));
  Frames(0);
  const auto refused = [&](const std::function<void(v1::CloseRequest*)>& spoil) {
    v1::ExchangeRequest request = testing::CloseOf(plan_, 0, {2});
    spoil(request.mutable_close());
    return std::string(Send("worker/w1", std::move(request)).message());
  };
  EXPECT_THAT(refused([](v1::CloseRequest* c) { c->mutable_gradients()->RemoveLast(); }),
              HasSubstr("gradients of dense/1 are not the maximal nodes of replicas 2"));
  EXPECT_THAT(refused([](v1::CloseRequest* c) { *c->add_gradients() = c->gradients(0); }),
              HasSubstr("gradient of dense/0 node (1, 1) comes twice"));
  EXPECT_THAT(refused([](v1::CloseRequest* c) { c->mutable_gradients(0)->set_level(0); }),
              HasSubstr("gradients of dense/0 are not the maximal nodes"));
  EXPECT_THAT(
      refused([](v1::CloseRequest* c) { c->mutable_gradients(0)->set_gradient("1234"); }),
      HasSubstr("gradient of dense/0 node (1, 1) has 1 values instead of "));
  EXPECT_THAT(refused([](v1::CloseRequest* c) {
                SetFloat(c->mutable_gradients(0)->mutable_gradient(), 0, NAN);
              }),
              HasSubstr("has a NaN or an infinity"));
  EXPECT_THAT(
      refused([](v1::CloseRequest* c) { c->mutable_gradients(0)->set_shard("dense/9"); }),
      HasSubstr("no such dense shard here"));
  EXPECT_THAT(refused([](v1::CloseRequest* c) { c->clear_replica_states(); }),
              HasSubstr("no state of replica/2"));
  EXPECT_THAT(refused([](v1::CloseRequest* c) {
                c->mutable_replica_states(0)->set_shard("replica/0");
              }),
              HasSubstr("state of replica/0: not a shard of the sender here"));
  EXPECT_THAT(refused([](v1::CloseRequest* c) { c->set_learning_rate(NAN); }),
              HasSubstr("learning rate"));
  EXPECT_THAT(refused([](v1::CloseRequest* c) { c->set_step(1); }),
              HasSubstr("step 1 is not the current one"));

  ASSERT_TRUE(Send("worker/w0", testing::CloseOf(plan_, 0, {0, 1})).ok());
  EXPECT_THAT(refused([](v1::CloseRequest* c) { c->set_learning_rate(0.25); }),
              HasSubstr("differs from 0.1"));
  EXPECT_THAT(Send("worker/w0", testing::ForwardOf(0, 1, {0, 1})).message(),
              ::testing::IsEmpty());  // the kept answer
  ASSERT_TRUE(Send("worker/w1", testing::CloseOf(plan_, 0, {2})).ok());
  EXPECT_EQ(Next("worker/w1").close().version(), 1u);
}

}  // namespace
}  // namespace moe
