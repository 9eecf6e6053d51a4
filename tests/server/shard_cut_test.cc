// A shard's file that is written while steps go on: the bytes of the cut, within the budget.
#include "server/shard_cut.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/io/file.h"
#include "common/random/random.h"
#include "server/dense_shard.h"
#include "server/parameter_block.h"
#include "server/replica_shard.h"
#include "server/table_shard.h"
#include "tests/server/made_step.h"
#include "tests/server/write_now.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

absl::Status GoOn() { return absl::OkStatus(); }

class ShardCutTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = MakeCpuBackend(1, &error);
    ASSERT_NE(backend_, nullptr) << error;
    for (size_t i = 0; i < memory_.size(); ++i) memory_[i] = static_cast<char>(i % 251);
    for (const char* folder : {"/cut_a", "/cut_b"}) {
      std::filesystem::remove_all(::testing::TempDir() + folder);
      std::filesystem::create_directories(::testing::TempDir() + folder);
    }
  }

  static Cut To(const std::string& folder) {
    return {.folder = ::testing::TempDir() + folder, .job = "made", .step = 2};
  }
  static std::string Contents(const std::string& folder, const v1::ShardFile& file) {
    const auto contents = ReadFile(::testing::TempDir() + folder + "/" + file.file());
    EXPECT_TRUE(contents.ok()) << contents.status();
    return *contents;
  }

  // ---- of two entries, in memory_: 20 chunks, and 10 rows of 3 bytes that are copied by 2
  static constexpr int64_t kLarge = 20 * kCutChunk - 5;
  static constexpr int64_t kRows = 30;
  std::unique_ptr<ShardCut> MakeCut(CopyBudget& copies) {
    std::vector<ShardCut::Entry> entries(2);
    entries[0] = {"large", "U8", {kLarge}, memory_.data(), kLarge};
    entries[1] = {"rows", "U8", {10, 3}, memory_.data() + kLarge, kRows};
    entries[1].unit = 6;
    entries[1].on_host = true;
    return std::make_unique<ShardCut>(*backend_, copies, "dense/0", std::move(entries));
  }
  // Changes some of what lies in memory_, as a step does.
  void Change(ShardCut& cut, size_t entry, int64_t begin, int64_t end) {
    cut.Keep(entry, begin, end);
    char* const at = memory_.data() + (entry == 0 ? 0 : kLarge);
    for (int64_t i = begin; i < end; ++i) at[i] = static_cast<char>(at[i] + 1);
  }
  std::string ExpectedFile() {
    CopyBudget none(0);
    const auto written = MakeCut(none)->Write(To("/cut_b"), GoOn);
    EXPECT_TRUE(written.ok()) << written.status();
    return Contents("/cut_b", *written);
  }

  // ---- of shards that exist twice: `a` is changed before and while its cut is written, `b` is
  // written as it was
  template <typename Shard>
  void ExpectCutIsKept(Shard& a, Shard& b, int64_t limit,
                       const std::function<void(Shard&, uint64_t step)>& step) {
    const auto expected = testing::WriteNow(b, To("/cut_b"));
    ASSERT_TRUE(expected.ok()) << expected.status();
    CopyBudget copies(limit);
    const std::shared_ptr<ShardCut> cut = a.BeginCut(copies);
    uint64_t taken = 0;
    step(a, taken++);
    const int64_t used = copies.used();
    const auto written = cut->Write(To("/cut_a"), [&] {
      if (taken < 4) step(a, taken++);
      return absl::OkStatus();
    });
    ASSERT_TRUE(written.ok()) << written.status();
    EXPECT_EQ(written->DebugString(), expected->DebugString());
    EXPECT_EQ(Contents("/cut_a", *written), Contents("/cut_b", *expected));
    EXPECT_EQ(copies.used(), 0);
    EXPECT_LE(used, limit);
    EXPECT_GE(taken, 2u);
    // It isn't that nothing has changed.
    const auto after = testing::WriteNow(a, To("/cut_a"));
    ASSERT_TRUE(after.ok()) << after.status();
    EXPECT_NE(after->sha256(), expected->sha256());
  }
  static const ShardSpec& SpecOf(const ModelPlan& plan, const std::string& shard) {
    return *std::find_if(plan.shards.begin(), plan.shards.end(),
                         [&](const ShardSpec& spec) { return spec.id == shard; });
  }
  // Fills what the block has of its tensors i, i + 2, ... with what isn't there yet.
  void UpdateSome(ParameterBlock& block, uint64_t step) {
    for (int i = static_cast<int>(step % 2); i < block.tensors(); i += 2) {
      ASSERT_TRUE(block.Touch(i).ok());
      block.NextUpdate(i, 0.1, 1);
      const RandomKey key = MakeKey(step, Purpose::kProbe, {});
      std::vector<float> values(block.tensor(i).size());
      FillUniform(key, i, values);
      std::vector<Bfloat16> halves;
      for (float value : values) halves.push_back(ToBfloat16(value));
      if (block.w(i) != nullptr) {
        backend_->Upload(values.data(), block.w(i), values.size() * sizeof(float));
      } else {
        backend_->Upload(halves.data(), block.w16(i), halves.size() * sizeof(Bfloat16));
      }
      if (block.m(i) != nullptr) {
        backend_->Upload(values.data(), block.m(i), values.size() * sizeof(float));
      }
      if (block.v(i) != nullptr) {
        backend_->Upload(values.data(), block.v(i), block.tensor(i).rows * sizeof(float));
      }
    }
  }
  void ExpectBlockIsKept(const v1::Job& job, const std::string& shard, bool tiered) {
    const ModelPlan plan = MakeModelPlan(job);
    const ShardSpec& spec = SpecOf(plan, shard);
    const int64_t bytes = ParameterBlock::AddressBytes(plan, spec, job);
    std::vector<std::unique_ptr<CapacityTier>> tiers(2);
    std::vector<std::unique_ptr<ParameterBlock>> blocks;
    for (auto& tier : tiers) {
      if (tiered) {
        auto made = CapacityTier::Create(
            {.folder = ::testing::TempDir(), .disk_bytes = bytes}, bytes);
        ASSERT_TRUE(made.ok()) << made.status();
        tier = *std::move(made);
      }
      blocks.push_back(
          std::make_unique<ParameterBlock>(*backend_, plan, spec, job, tier.get()));
      blocks.back()->Initialize();
      // Some tensors are still untouched at the cut.
      UpdateSome(*blocks.back(), 0);
    }
    ExpectCutIsKept<ParameterBlock>(
        *blocks[0], *blocks[1], /*limit=*/1 << 20,
        [&](ParameterBlock& block, uint64_t step) { UpdateSome(block, step); });
  }

  std::unique_ptr<Backend> backend_;
  std::vector<char> memory_ = std::vector<char>(kLarge + kRows);
};

TEST_F(ShardCutTest, WritesWhatWasThereAtTheCut) {
  const std::string expected = ExpectedFile();
  CopyBudget copies(4 * kCutChunk);
  const auto cut = MakeCut(copies);
  // Within the first unit and beyond it, the last, shorter one, and rows.
  Change(*cut, 0, 7, kCutChunk + 9);
  Change(*cut, 0, kLarge - 3, kLarge);
  Change(*cut, 0, 0, 3);
  Change(*cut, 1, 5, 7);
  EXPECT_EQ(copies.used(), 2 * kCutChunk + kCutChunk - 5 + 2 * 6);
  const auto written = cut->Write(To("/cut_a"), GoOn);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(Contents("/cut_a", *written), expected);
  EXPECT_EQ(copies.used(), 0);
  // Nobody needs copies any more.
  Change(*cut, 0, 0, kLarge);
  EXPECT_EQ(copies.used(), 0);
}

TEST_F(ShardCutTest, OnlyWhatIsStillToBeWrittenIsCopied) {
  const std::string expected = ExpectedFile();
  CopyBudget copies(kLarge);
  const auto cut = MakeCut(copies);
  int64_t pieces = 0;
  const auto written = cut->Write(To("/cut_a"), [&] {
    ++pieces;
    if (pieces > 20) return absl::OkStatus();
    // All of it, again and again.
    Change(*cut, 0, 0, kLarge);
    Change(*cut, 1, 0, kRows);
    EXPECT_EQ(copies.used(), std::max<int64_t>(kLarge - pieces * kCutChunk, 0) + kRows);
    return absl::OkStatus();
  });
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(pieces, 21);
  EXPECT_EQ(Contents("/cut_a", *written), expected);
}

TEST_F(ShardCutTest, AStepWaitsForTheWriterWhenThereIsNoRoom) {
  const std::string expected = ExpectedFile();
  CopyBudget copies(2 * kCutChunk);
  std::vector<bool> waits;
  copies.OnWait([&](bool waiting) { waits.push_back(waiting); });
  const auto cut = MakeCut(copies);
  std::thread step([&] {
    for (int64_t c = 0; c < kLarge; c += kCutChunk) {
      Change(*cut, 0, c, std::min(c + kCutChunk, kLarge));
    }
    Change(*cut, 1, 0, kRows);
  });
  while (!copies.waiting_since().has_value()) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(copies.used(), 2 * kCutChunk);
  const auto written = cut->Write(To("/cut_a"), [&] {
    EXPECT_LE(copies.used(), 2 * kCutChunk);
    return absl::OkStatus();
  });
  step.join();
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(Contents("/cut_a", *written), expected);
  EXPECT_EQ(copies.used(), 0);
  ASSERT_FALSE(waits.empty());
  EXPECT_TRUE(waits.front());
  EXPECT_FALSE(waits.back());
}

TEST_F(ShardCutTest, ABudgetOfNothingIsEnough) {
  const std::string expected = ExpectedFile();
  CopyBudget copies(0);
  const auto cut = MakeCut(copies);
  std::thread step([&] { Change(*cut, 0, 0, kLarge); });
  const auto written = cut->Write(To("/cut_a"), GoOn);
  step.join();
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(Contents("/cut_a", *written), expected);
}

TEST_F(ShardCutTest, NobodyWaitsForACutThatIsOver) {
  CopyBudget copies(kCutChunk);
  auto cut = MakeCut(copies);
  std::thread step([&] { Change(*cut, 0, 0, kLarge); });
  while (!copies.waiting_since().has_value()) absl::SleepFor(absl::Milliseconds(1));
  copies.Cancel();
  step.join();
  EXPECT_EQ(copies.used(), kCutChunk);
  // What is there isn't what was there at the cut.
  EXPECT_EQ(cut->Write(To("/cut_a"), GoOn).status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(::testing::TempDir() + "/cut_a"));
  cut = nullptr;
  EXPECT_EQ(copies.used(), 0);
}

TEST_F(ShardCutTest, AnErrorEndsTheWritingAndLeavesNoFile) {
  CopyBudget copies(kLarge);
  auto cut = MakeCut(copies);
  Change(*cut, 0, 0, kLarge);
  int pieces = 0;
  const auto ended = cut->Write(To("/cut_a"), [&] {
    return ++pieces < 3 ? absl::OkStatus() : absl::CancelledError("the cut is over");
  });
  EXPECT_EQ(ended.status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(::testing::TempDir() + "/cut_a"));
  const auto nowhere = MakeCut(copies)->Write(To("/nowhere"), GoOn);
  EXPECT_THAT(std::string(nowhere.status().message()),
              HasSubstr("/nowhere/dense-0.safetensors"));
  cut = nullptr;
  EXPECT_EQ(copies.used(), 0);
}

TEST_F(ShardCutTest, OfADenseShard) {
  const v1::Job job = testing::MadeJob();
  const ModelPlan plan = MakeModelPlan(job);
  DenseShard a(*backend_, plan, plan.shards[0], job);
  DenseShard b(*backend_, plan, plan.shards[0], job);
  for (DenseShard* shard : {&a, &b}) shard->Initialize();
  ExpectCutIsKept<DenseShard>(
      a, b, /*limit=*/1 << 20, [](DenseShard& shard, uint64_t step) {
        for (uint32_t r = 0; r < testing::kReplicas; ++r) {
          ASSERT_TRUE(shard
                          .AddGradient({0, r}, testing::MakeGradient(step, "dense/0",
                                                                     shard.size(), r))
                          .ok());
        }
        shard.Apply(0.1, 1);
      });
}

TEST_F(ShardCutTest, OfAnExpertShard) {
  ExpectBlockIsKept(testing::MadeJob(), "layer1/group0", /*tiered=*/false);
}

TEST_F(ShardCutTest, OfExpertsInHalvesWithFactoredMoments) {
  v1::Job job = testing::MadeJob(
      "adam {} experts { beta1: 0 second_moment: SECOND_MOMENT_FACTORED }");
  job.mutable_model()
      ->mutable_layers(testing::kLayer)
      ->mutable_moe()
      ->set_parameters(v1::PARAMETERS_BFLOAT16);
  ExpectBlockIsKept(job, "layer1/group0", /*tiered=*/false);
}

TEST_F(ShardCutTest, OfExpertsInACapacityTier) {
  ExpectBlockIsKept(testing::MadeHierarchicalJob(), "layer1/group1", /*tiered=*/true);
}

TEST_F(ShardCutTest, OfATableShard) {
  v1::Job job = testing::MadeJob();
  job.mutable_model()->set_vocabulary(9000);
  job.mutable_model()->mutable_tables()->set_shards(2);
  job.mutable_model()->mutable_tables()->set_candidates(3);
  const ModelPlan plan = MakeModelPlan(job);
  const ShardSpec& spec = SpecOf(plan, "softmax/rows1");
  TableShard a(*backend_, plan, spec, job);
  TableShard b(*backend_, plan, spec, job);
  const auto step = [](TableShard& shard, uint64_t step) {
    for (uint32_t r = 0; r < testing::kReplicas; ++r) {
      SparseRows rows;
      for (uint32_t row = r; row < 4500; row += 300 + 7 * step) {
        rows.row.push_back(row);
        rows.value.insert(rows.value.end(), shard.columns(), 1.5f);
      }
      ASSERT_TRUE(shard.AddGradient({0, r}, std::move(rows)).ok());
    }
    shard.Apply(0.1, 1);
  };
  for (TableShard* shard : {&a, &b}) {
    shard->Initialize();
    step(*shard, 9);
  }
  // Not all of it: a fifth of the rows, or what lies beside them.
  ExpectCutIsKept<TableShard>(a, b, /*limit=*/1 << 20, step);
}

TEST_F(ShardCutTest, OfAReplicaShard) {
  const ModelPlan plan = MakeModelPlan(testing::MadeJob());
  const ShardSpec& spec = SpecOf(plan, "replica/1");
  ReplicaShard a(*backend_, spec);
  ReplicaShard b(*backend_, spec);
  const auto step = [](ReplicaShard& shard, uint64_t step) {
    shard.Push("state after step " + std::to_string(step));
    shard.Apply();
  };
  for (ReplicaShard* shard : {&a, &b}) {
    shard->Initialize();
    step(*shard, 10);
  }
  ExpectCutIsKept<ReplicaShard>(a, b, /*limit=*/0, step);
}

}  // namespace
}  // namespace moe
