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
    std::string error;
    backend_ = MakeCpuBackend(threads, &error);
    ASSERT_NE(backend_, nullptr) << error;
    plan_ = MakeModelPlan(state.job());
    ShardHost::Options options;
    options.server = "server/s0";
    options.state = state;
    options.rendezvous_timeout = timeout;
    options.events.shard_written = [this, on_written = on_written_](
                                       uint64_t step, const v1::ShardFile& file) {
      {
        absl::MutexLock lock(&mutex_);
        written_[absl::StrCat(step, " ", file.shard())] = file;
      }
      if (on_written) on_written();
      return absl::OkStatus();
    };
    options.limits = limits_;
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
        ShardHost::Load(*backend_, std::move(options));
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

  Digests DigestsOf() {
    absl::StatusOr<v1::GetTensorDigestsResponse> response = host_->Digests();
    EXPECT_TRUE(response.ok()) << response.status();
    Digests digests;
    for (const v1::TensorDigest& digest : response->tensors()) {
      digests[digest.name()] = digest.sha256();
    }
    return digests;
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
  ShardSet::Limits limits_;
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
  std::unique_ptr<Backend> backend_;
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
