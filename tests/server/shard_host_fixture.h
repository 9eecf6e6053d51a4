// A generation of a server without a network, and the steps that two workers take with it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "common/base/moments.h"
#include "common/checkpoint/manifest.h"
#include "common/job/model_plan.h"
#include "server/shard_host.h"
#include "tests/server/made_step.h"

namespace moe::testing {

using Digests = std::map<std::string, std::string>;

class ShardHostTest : public ::testing::Test {
 protected:
  // Of MadeJob().
  ShardHostTest() : ShardHostTest(MadeJob(), /*hierarchical=*/false) {}
  ShardHostTest(v1::Job job, bool hierarchical)
      : job_(std::move(job)), hierarchical_(hierarchical) {}

  void SetUp() override { Load(MadeState(job_), 1); }

  void Load(const v1::ClusterState& state, int threads,
            absl::Duration timeout = absl::Seconds(60)) {
    host_ = nullptr;
    {
      absl::MutexLock lock(&mutex_);
      written_.clear();
      waited_for_.clear();
    }
    home_ = nullptr;
    std::string error;
    backend_ = MakeCpuBackend(threads, &error);
    ASSERT_NE(backend_, nullptr) << error;
    home_ = *ShardHome::Create(*backend_, limits_);
    ShardStock none;
    LoadWith(state, none, timeout);
  }

  // On the same backend, with what the stock has.
  void LoadWith(const v1::ClusterState& state, ShardStock& stock,
                absl::Duration timeout = absl::Seconds(60)) {
    host_ = nullptr;
    plan_ = MakeModelPlan(state.job());
    ShardHost::Options options;
    options.server = "server/s0";
    options.state = state;
    options.rendezvous_timeout = timeout;
    options.incarnation = 9;
    options.trace = trace_;
    options.events.shard_written = [this, on_written = on_written_](
                                       uint64_t step, const v1::ShardFile& file) {
      {
        absl::MutexLock lock(&mutex_);
        written_[absl::StrCat(step, " ", file.shard())] = file;
      }
      if (on_written) on_written();
      return absl::OkStatus();
    };
    options.events.waiting = [this](const std::string& for_what) {
      absl::MutexLock lock(&mutex_);
      waited_for_.push_back(for_what);
    };
    options.events.failed = [this](const absl::Status& cause) {
      failure_ = cause;
      failed_.Notify();
    };
    options.events.idle = [](const std::string&, const v1::MemberTimes&) {};
    absl::StatusOr<std::unique_ptr<ShardHost>> host =
        ShardHost::Load(home_, std::move(options), stock);
    ASSERT_TRUE(host.ok()) << host.status();
    host_ = *std::move(host);
    sinks_.clear();
    for (const auto& [worker, replicas] : Workers()) {
      sinks_[worker] = std::make_shared<RecordingSink>();
    }
  }

  absl::Status Send(const std::string& worker, v1::ExchangeRequest request) {
    return host_->Handle(worker, std::move(request), sinks_[worker]);
  }
  v1::ExchangeResponse Next(const std::string& worker) { return sinks_[worker]->Next(); }

  // Sends what make(replicas) gives, in the workers' order or the other way round.
  template <typename Make>
  void SendAll(const Make& make, bool reversed = false) {
    std::vector<std::string> workers;
    for (const auto& [worker, replicas] : Workers()) workers.push_back(worker);
    if (reversed) std::reverse(workers.begin(), workers.end());
    for (const std::string& worker : workers) {
      const absl::Status status = Send(worker, make(Workers().at(worker)));
      EXPECT_TRUE(status.ok()) << status;
    }
  }

  // Frames as the job has them.
  v1::ExchangeRequest Made(v1::ExchangeRequest request) const {
    return hierarchical_ ? Hierarchical(std::move(request), moments_) : request;
  }

  // The forward frames of a step and their answers.
  void Forwards(uint64_t step, bool reversed = false) {
    for (uint32_t w = 0; w < kWaves; ++w) {
      SendAll([&](const auto& replicas) { return Made(ForwardOf(step, w, replicas)); },
              reversed);
    }
    for (const auto& [worker, replicas] : Workers()) {
      for (uint32_t w = 0; w < kWaves; ++w) {
        const v1::ForwardResponse response = Next(worker).forward();
        ASSERT_EQ(response.replies_size(), static_cast<int>(replicas.size()));
        if (hierarchical_) moments_ = MomentsOf(response.replies(0));
      }
    }
  }

  void Frames(uint64_t step, bool reversed = false) {
    Forwards(step, reversed);
    for (uint32_t w = 0; w < kWaves; ++w) {
      SendAll([&](const auto& replicas) { return Made(BackwardOf(step, w, replicas)); },
              reversed);
    }
    for (const auto& [worker, replicas] : Workers()) {
      for (uint32_t w = 0; w < kWaves; ++w) {
        EXPECT_EQ(Next(worker).backward().id().wave(), w);
      }
    }
  }

  // Of a hierarchical layer whose groups are all in the reply.
  static BalanceMoments MomentsOf(const v1::ForwardReply& reply) {
    Spread importance, load;
    const auto spread = [](const v1::Spread& message) {
      return Spread{kPerGroup, message.mean(), message.m2()};
    };
    for (const v1::GroupOutput& group : reply.groups()) {
      importance = Join(importance, spread(group.importance_spread()));
      load = Join(load, spread(group.load_spread()));
    }
    return {importance.moments(), load.moments()};
  }

  void Step(uint64_t step, bool reversed = false, bool cut = false) {
    Frames(step, reversed);
    SendAll([&](const auto& replicas) { return CloseOf(plan_, step, replicas, cut); },
            reversed);
    for (const auto& [worker, replicas] : Workers()) {
      EXPECT_EQ(Next(worker).close().version(), step + 1);
    }
  }

  // Takes step 0 with a cut, of which the first file is written; the others when disk_ is notified.
  v1::ClusterState BeginSlowCut(const std::string& folder, int64_t copy_bytes) {
    v1::ClusterState state = MadeState(job_);
    state.set_checkpoint_dir(TempFolder(folder));
    limits_.copy_bytes = copy_bytes;
    auto written = std::make_shared<absl::Notification>();
    on_written_ = [this, written] {
      if (!written->HasBeenNotified()) written->Notify();
      disk_.WaitForNotification();
    };
    Load(state, 1);
    Step(0, /*reversed=*/false, /*cut=*/true);
    written->WaitForNotification();
    return state;
  }
  // Waits until a step waits for that.
  void AwaitTheDisk() {
    const auto waits = [&] {
      return !waited_for_.empty() && !waited_for_.back().empty();
    };
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&waits), absl::Seconds(30)));
  }
  // The files of a cut that was begun, by shard, once they are all there.
  std::map<std::string, v1::ShardFile> Written(uint64_t step) {
    std::map<std::string, v1::ShardFile> files;
    const std::string prefix = absl::StrCat(step, " ");
    const auto all = [&] {
      files.clear();
      for (const auto& [key, file] : written_) {
        if (key.starts_with(prefix)) files[file.shard()] = file;
      }
      return files.size() == plan_.shards.size();
    };
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&all), absl::Seconds(30));
    EXPECT_EQ(files.size(), plan_.shards.size());
    return files;
  }
  // Gives a cut the manifest with which it can be restored.
  void WriteManifestOf(uint64_t step, const std::string& folder) {
    v1::Manifest manifest;
    manifest.set_format_version(kManifestVersion);
    manifest.set_step(step);
    for (const auto& [shard, file] : Written(step)) *manifest.add_shards() = file;
    ASSERT_TRUE(WriteManifest(folder, manifest).ok());
  }

  Digests DigestsOf() {
    absl::StatusOr<v1::GetTensorDigestsResponse> response = host_->Digests();
    EXPECT_TRUE(response.ok()) << response.status();
    Digests digests;
    for (const v1::TensorDigest& digest : response->tensors()) {
      digests[digest.name()] = digest.sha256();
    }
    return digests;
  }

  // A copy of each second shard fetches all it can between two steps, and after the next step the rest;
  // those and the kept others make the next generation, which `step` begins.
  void MoveShardsDuringStep(uint64_t step) {
    ShardStock copies;
    for (size_t i = 0; i < plan_.shards.size(); i += 2) {
      std::unique_ptr<Shard> copy = *home_->Make(plan_, plan_.shards[i], job_);
      copy->Initialize();
      const absl::StatusOr<PieceBatch> all =
          host_->ReadPiecesOf(copy->spec().id, PieceVersions(*copy), 0, size_t{1} << 30);
      ASSERT_TRUE(all.ok()) << all.status();
      Write(*all, *copy);
      copies[copy->spec().id] = std::move(copy);
    }
    Step(step);
    ShardStock stock = host_->Release();
    for (auto& [id, copy] : copies) {
      // A few at a time.
      for (int64_t next = 0; next < copy->pieces();) {
        const absl::StatusOr<PieceBatch> rest =
            ReadPieces(*stock.at(id), PieceVersions(*copy), next, 1);
        ASSERT_TRUE(rest.ok()) << rest.status();
        EXPECT_LE(rest->pieces.size(), 1);
        Write(*rest, *copy);
        next = rest->next;
      }
      stock[id] = std::move(copy);
    }
    v1::ClusterState state = MadeState(job_);
    state.mutable_handover()->set_step(step + 1);
    state.set_start_step(step + 1);
    LoadWith(state, stock);
    EXPECT_TRUE(stock.empty());
  }
  static void Write(const PieceBatch& batch, Shard& shard) {
    PieceWriter writer(shard);
    for (const v1::ShardPiece& piece : batch.pieces) {
      const absl::Status written = writer.Add(piece);
      EXPECT_TRUE(written.ok()) << written;
    }
    EXPECT_TRUE(writer.Finish().ok());
  }

  std::string TempFolder(const std::string& name) {
    const std::string folder = ::testing::TempDir() + "/shard_host_" + name;
    std::filesystem::remove_all(folder);
    return folder;
  }

  const v1::Job job_;
  const bool hierarchical_;
  // Of the hierarchical layer in the step in progress.
  BalanceMoments moments_;
  ShardHome::Limits limits_;
  absl::Mutex mutex_;
  // By step and shard.
  std::map<std::string, v1::ShardFile> written_ ABSL_GUARDED_BY(mutex_);
  // What a step waited for, and "" when it didn't any more.
  std::vector<std::string> waited_for_ ABSL_GUARDED_BY(mutex_);
  // Of the next Load: on the thread that writes, after each file.
  std::function<void()> on_written_;
  absl::Notification disk_;
  absl::Status failure_;
  absl::Notification failed_;
  // Of hosts that are loaded from here on.
  TraceWriter* trace_ = nullptr;
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<ShardHome> home_;
  ModelPlan plan_;
  std::unique_ptr<ShardHost> host_;
  std::map<std::string, std::shared_ptr<RecordingSink>> sinks_;
};

inline void SetFloat(std::string* bytes, size_t at, float value) {
  std::memcpy(bytes->data() + at * sizeof(float), &value, sizeof(value));
}
inline void SetWord(std::string* bytes, size_t at, uint32_t value) {
  std::memcpy(bytes->data() + at * sizeof(value), &value, sizeof(value));
}

}  // namespace moe::testing
