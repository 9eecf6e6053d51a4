// The life of a job: WAITING -> LOADING -> RUNNING -> FINISHED | FAILED.
//
//   WAITING   members register. One that leaves or is lost is forgotten.
//   LOADING   all are there; placement and assignment are fixed; servers make their
//             shards.
//   RUNNING   all servers have reported this generation's shards; workers train.
//   FINISHED  all workers have finished their work.
//   FAILED    a member was lost, left or reported that it can't go on, or nobody reported
//             anything for too long; the first cause stands.
//
// The methods are the RPCs of CoordinatorService without gRPC. All are thread-safe; those
// that wait return CANCELLED when `cancelled` turns true, and ABORTED with the cause when
// the job fails.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/coordinator/checkpoint_keeper.h"
#include "server/coordinator/evaluations.h"
#include "server/coordinator/member_table.h"
#include "server/coordinator/progress.h"
#include "server/coordinator/replica_join.h"
#include "server/coordinator/restore.h"
#include "server/coordinator/run_summary.h"
#include "server/coordinator/store.h"

namespace moe {

class JobController {
 public:
  struct Options {
    v1::Job job;
    int servers = 1;
    int workers = 1;
    v1::RunMode mode = v1::RUN_MODE_TRAIN;
    v1::Split evaluate_split = v1::SPLIT_TEST;
    std::optional<RestorePoint> restore;
    std::string checkpoint_dir;
    absl::Duration heartbeat = absl::Milliseconds(500);
    absl::Duration lease = absl::Seconds(5);
    // How long the first worker to report an evaluation or to await a checkpoint waits
    // for the rest, and how long a job may run without any report.
    absl::Duration report_timeout = absl::Minutes(10);
    std::function<absl::Time()> now;
    std::function<void(const std::string&)> print;
  };
  using Cancelled = std::function<bool()>;

  // store outlives this object. Opens a new generation.
  static absl::StatusOr<std::unique_ptr<JobController>> Create(Options options,
                                                               Store& store);

  absl::StatusOr<v1::RegisterResponse> Register(const v1::RegisterRequest& request);
  absl::StatusOr<v1::HeartbeatResponse> Heartbeat(const v1::HeartbeatRequest& request,
                                                  const Cancelled& cancelled);
  void Leave(const v1::LeaveRequest& request);
  void FailJob(const v1::FailJobRequest& request);
  absl::Status ReportStep(const v1::ReportStepRequest& request);
  absl::StatusOr<v1::ReportEvaluationResponse> ReportEvaluation(
      const v1::ReportEvaluationRequest& request, const Cancelled& cancelled);
  absl::Status ReportShardFile(const v1::ReportShardFileRequest& request);
  absl::StatusOr<v1::AwaitCheckpointResponse> AwaitCheckpoint(
      const v1::AwaitCheckpointRequest& request, const Cancelled& cancelled);
  absl::Status FinishWork(const v1::FinishWorkRequest& request);
  v1::GetClusterStatusResponse GetClusterStatus();

  // Looks for expired leases and overdue reports; to be called several times a lease.
  void Tick();
  // Somebody wants no more of it: fails the job, unless it is over, but doesn't call it a
  // failure.
  void Stop(const std::string& cause);
  // Waits until the job is over and all members that live have been told so, or a lease
  // has passed since. Then OK, or ABORTED with the cause.
  absl::Status WaitUntilOver();
  RunSummary summary();

 private:
  JobController(Options options, Store& store);

  bool over() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return phase_ == v1::PHASE_FINISHED || phase_ == v1::PHASE_FAILED;
  }
  // How each report begins: OK if `member` is one of that kind and the job is running.
  absl::Status TakeReport(const std::string& member, v1::MemberKind kind)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits until done() or the job is over or `cancelled`.
  absl::Status Hold(const Cancelled& cancelled, const std::function<bool()>& done)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void EnterPhase(v1::Phase phase) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Fail(const std::string& cause) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The job is FAILED from here on; people read "<how>: <cause>".
  void End(const char* how, const std::string& cause)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartLoading() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LoseMember(const std::string& id, const std::string& how)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CommitReady() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string WaitingFor() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // "worker/w0 is computing, worker/w1 is waiting for ..."
  std::string WhatWorkersDo() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::ClusterState State() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PrintWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  RunSummary Summary() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Put(const std::string& key, const std::string& value);

  const Options options_;
  Store& store_;

  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  v1::Job job_ ABSL_GUARDED_BY(mutex_);
  v1::Phase phase_ ABSL_GUARDED_BY(mutex_) = v1::PHASE_WAITING;
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string failure_ ABSL_GUARDED_BY(mutex_);
  MemberTable members_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_tick_ ABSL_GUARDED_BY(mutex_);
  // The last report, or sign of work on one, since RUNNING began.
  absl::Time last_progress_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Time running_since_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Time over_since_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();

  // Fixed from LOADING on.
  v1::Placement placement_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::ReplicaAssignment> assignments_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> addresses_ ABSL_GUARDED_BY(mutex_);  // by server
  v1::DataDescription data_ ABSL_GUARDED_BY(mutex_);

  std::map<uint64_t, ReplicaJoin> steps_ ABSL_GUARDED_BY(mutex_);  // incomplete ones
  uint64_t steps_taken_ ABSL_GUARDED_BY(mutex_) = 0;
  Evaluations evaluations_ ABSL_GUARDED_BY(mutex_);
  CheckpointKeeper checkpoint_keeper_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::CheckpointStatus> checkpoints_ ABSL_GUARDED_BY(mutex_);
  ProgressReporter progress_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::BalanceStatus> balance_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe
