// A JobController with a clock that the test turns, and members that it plays.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/protocol.h"
#include "common/checkpoint/manifest.h"
#include "common/io/file.h"
#include "common/io/sha256.h"
#include "common/job/model_plan.h"
#include "server/coordinator/file_store.h"
#include "server/coordinator/job_controller.h"
#include "tests/coordinator/small_job.h"

namespace moe {

class ControllerFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = absl::StrCat(
        testing::TempDir(), "/",
        testing::UnitTest::GetInstance()->current_test_info()->test_suite_name(), "_",
        testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    options_.job = SmallJob();
    options_.servers = 2;
    options_.workers = 2;
    options_.checkpoint_dir = dir_;
    options_.now = [this] {
      absl::MutexLock lock(&mutex_);
      return now_;
    };
    options_.print = [this](const std::string& line) {
      absl::MutexLock lock(&mutex_);
      lines_.push_back(line);
    };
  }

  // With options_ as they are.
  void Create() {
    auto controller = JobController::Create(options_, store_);
    ASSERT_TRUE(controller.ok()) << controller.status();
    controller_ = *std::move(controller);
  }

  void Advance(absl::Duration duration) {
    // In steps that the controller doesn't take for a pause of its own.
    const absl::Duration tick = options_.lease / 4;
    for (absl::Duration rest = duration; rest > absl::ZeroDuration(); rest -= tick) {
      {
        absl::MutexLock lock(&mutex_);
        now_ += std::min(rest, tick);
      }
      controller_->Tick();
    }
  }

  // All lines, joined by newlines.
  std::string Printed() {
    absl::MutexLock lock(&mutex_);
    std::string printed;
    for (const std::string& line : lines_) absl::StrAppend(&printed, line, "\n");
    return printed;
  }

  v1::RegisterRequest Registration(const std::string& id) {
    v1::RegisterRequest request;
    const bool server = id.starts_with("server/");
    request.set_kind(server ? v1::MEMBER_KIND_SERVER : v1::MEMBER_KIND_WORKER);
    request.set_name(id.substr(7));
    request.set_protocol_version(kProtocolVersion);
    request.set_numerics("0123456789abcdef");
    request.set_numerics_description("AVX2, OpenBLAS Zen");
    request.set_host("host");
    request.set_pid(123);
    if (server) {
      request.set_address(request.name() + ":1");
    } else {
      request.mutable_data()->set_sha256("da7a");
      request.mutable_data()->set_vocabulary(20);
      request.mutable_data()->set_train_tokens(300);
      request.mutable_data()->set_validation_tokens(validation_tokens_);
    }
    return request;
  }

  absl::Status Join(const std::string& id) { return Join(Registration(id)); }
  absl::Status Join(const v1::RegisterRequest& request) {
    auto response = controller_->Register(request);
    if (response.ok()) {
      incarnations_[response->member()] = response->incarnation();
      nonces_[response->member()] = request.nonce();
    }
    return response.status();
  }
  void JoinAll() {
    for (const char* id : {"server/a", "server/b", "worker/a", "worker/b"}) {
      ASSERT_TRUE(Join(id).ok()) << id;
    }
  }

  absl::StatusOr<v1::ClusterState> Beat(const std::string& id,
                                        uint64_t ready_generation = 0,
                                        const std::string& waiting_for = "",
                                        uint64_t seen_generation = 0) {
    v1::HeartbeatRequest request;
    request.set_member(id);
    request.set_nonce(nonces_[request.member()]);
    request.set_incarnation(incarnations_[id]);
    request.set_ready_generation(ready_generation);
    request.set_waiting_for(waiting_for);
    request.set_seen_generation(seen_generation);
    auto response = controller_->Heartbeat(request, NeverCancelled());
    if (!response.ok()) return response.status();
    return response->state();
  }
  void BeatAll() {
    for (const auto& [id, incarnation] : incarnations_) ASSERT_TRUE(Beat(id).ok()) << id;
  }
  v1::ClusterState State() { return controller_->GetClusterStatus().state(); }
  // Those that have shards.
  std::vector<std::string> Servers() {
    std::vector<std::string> servers;
    const v1::ClusterState state = State();
    for (const v1::ServerAddress& server : state.servers()) {
      servers.push_back(server.server());
    }
    return servers;
  }

  // Up to RUNNING.
  void StartJob() {
    Create();
    JoinAll();
    for (const char* id : {"server/a", "server/b"}) {
      ASSERT_TRUE(Beat(id, State().generation()).ok());
    }
    ASSERT_EQ(State().phase(), v1::PHASE_RUNNING);
  }

  static JobController::Cancelled NeverCancelled() {
    return [] { return false; };
  }

  void LeaveCluster(const std::string& id) {
    v1::LeaveRequest request;
    request.set_member(id);
    request.set_nonce(nonces_[request.member()]);
    request.set_incarnation(incarnations_[id]);
    controller_->Leave(request);
    incarnations_.erase(id);
  }

  v1::FailJobRequest Failure(const std::string& member, const std::string& cause,
                             bool peer_lost = false) {
    v1::FailJobRequest request;
    request.set_member(member);
    request.set_nonce(nonces_[request.member()]);
    request.set_cause(cause);
    request.set_generation(State().generation());
    request.set_peer_lost(peer_lost);
    return request;
  }

  // Losses of 2 per token, 10 tokens a replica.
  template <typename Report>
  Report WithLosses(const std::string& worker, uint64_t step) {
    Report report;
    report.set_member(worker);
    report.set_nonce(nonces_[report.member()]);
    report.set_step(step);
    report.set_generation(State().generation());
    v1::LayerBalance* layer = report.add_balance();
    layer->set_layer(1);
    for (int e = 0; e < 4; ++e) layer->add_assigned(e == 0 ? 8 : 4);
    const v1::ClusterState state = State();
    for (const v1::ReplicaAssignment& assignment : state.replicas()) {
      if (assignment.worker() != worker) continue;
      v1::ReplicaLoss* loss = report.add_losses();
      loss->set_replica(assignment.replica());
      loss->set_loss_sum(20);
      loss->set_tokens(10);
    }
    return report;
  }
  v1::ReportStepRequest StepReport(const std::string& worker, uint64_t step) {
    auto report = WithLosses<v1::ReportStepRequest>(worker, step);
    report.set_total_steps(4);
    report.set_learning_rate(0.5);
    report.mutable_balance(0)->set_cv_importance(0.25);
    report.mutable_balance(0)->set_cv_load(0.5);
    return report;
  }
  // Both workers have closed a step with a cut, after which so many are taken.
  void BeginCut(uint64_t steps) {
    for (const char* worker : {"worker/a", "worker/b"}) ReportCut(worker, steps);
  }
  v1::ReportStepResponse ReportCut(const std::string& worker, uint64_t steps) {
    v1::ReportStepRequest report = StepReport(worker, steps - 1);
    report.set_last_cut(steps);
    const auto response = controller_->ReportStep(report);
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? *response : v1::ReportStepResponse();
  }
  v1::ReportEvaluationRequest EvaluationReport(const std::string& worker, uint64_t step,
                                               v1::Split split) {
    auto report = WithLosses<v1::ReportEvaluationRequest>(worker, step);
    report.set_split(split);
    for (int e = 0; e < 4; ++e) report.mutable_balance(0)->add_importance(1);
    return report;
  }
  v1::AwaitCheckpointRequest Await(const std::string& worker, uint64_t step) {
    v1::AwaitCheckpointRequest request;
    request.set_member(worker);
    request.set_nonce(nonces_[request.member()]);
    request.set_step(step);
    request.set_generation(State().generation());
    return request;
  }
  v1::FinishWorkRequest Finish(const std::string& worker) {
    v1::FinishWorkRequest request;
    request.set_member(worker);
    request.set_nonce(nonces_[request.member()]);
    request.set_generation(State().generation());
    return request;
  }

  // Writes the file of each shard, and returns what its server reports.
  std::vector<v1::ReportShardFileRequest> WriteShards(uint64_t step) {
    const v1::ClusterState state = State();
    const ModelPlan plan = MakeModelPlan(state.job());
    const std::string folder = absl::StrCat(state.checkpoint_dir(), "/",
                                            CutFolderName(step, state.generation()));
    EXPECT_TRUE(MakeDirs(folder).ok());
    std::vector<v1::ReportShardFileRequest> reports;
    for (size_t i = 0; i < plan.shards.size(); ++i) {
      const std::string contents = absl::StrCat(plan.shards[i].id, " of step ", step);
      v1::ReportShardFileRequest& report = reports.emplace_back();
      report.set_member(state.placement().shards(i).server());
      report.set_nonce(nonces_[report.member()]);
      report.set_step(step);
      report.set_generation(state.generation());
      v1::ShardFile* file = report.mutable_file();
      file->set_shard(plan.shards[i].id);
      file->set_file(ShardFileName(plan.shards[i].id));
      file->set_bytes(contents.size());
      file->set_sha256(Sha256Hex(contents));
      EXPECT_TRUE(
          WriteFileAtomically(absl::StrCat(folder, "/", file->file()), contents).ok());
      for (int64_t t : plan.shards[i].tensors) {
        v1::TensorDigest* tensor = file->add_tensors();
        tensor->set_tensor(t);
        tensor->set_name(plan.tensors[t].name);
        tensor->set_sha256(Sha256Hex(absl::StrCat(plan.tensors[t].name, step)));
      }
    }
    return reports;
  }

  std::string dir_;
  absl::Mutex mutex_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::vector<std::string> lines_;
  MemoryStore store_;
  RunOptions options_;
  // Of the text of all workers.
  int64_t validation_tokens_ = 0;
  // By member.
  std::map<std::string, uint64_t> incarnations_;
  std::map<std::string, uint64_t> nonces_;
  std::unique_ptr<JobController> controller_;
};

}  // namespace moe
