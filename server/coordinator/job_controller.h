// The RPCs of CoordinatorService without gRPC, over the parts of a coordinator, which it
// guards by one lock: the life of the job, the run's record and its checkpoints.
//
// The methods are thread-safe; those that wait return CANCELLED when `cancelled` turns
// true, and ABORTED with the cause when the job fails. The parts know no locks and no
// waits: each call changes them and returns, and who waits does so on a condition over
// them, which the mutex evaluates anew whenever it is released.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/operator.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/coordinator/checkpoint_keeper.h"
#include "server/coordinator/job_lifecycle.h"
#include "server/coordinator/progress.h"
#include "server/coordinator/run_options.h"
#include "server/coordinator/run_record.h"
#include "server/coordinator/run_summary.h"
#include "server/coordinator/store.h"

namespace moe {

class JobController {
 public:
  // Whether the caller has given up.
  using Cancelled = std::function<bool()>;

  // store outlives this object. Opens a new generation, or goes on with that of options.adoption.
  static absl::StatusOr<std::unique_ptr<JobController>> Create(RunOptions options,
                                                               Store& store);

  ~JobController();

  absl::StatusOr<v1::RegisterResponse> Register(const v1::RegisterRequest& request);
  absl::StatusOr<v1::HeartbeatResponse> Heartbeat(const v1::HeartbeatRequest& request,
                                                  const Cancelled& cancelled);
  void Leave(const v1::LeaveRequest& request);
  v1::FailJobResponse FailJob(const v1::FailJobRequest& request);
  absl::StatusOr<v1::ReportStepResponse> ReportStep(const v1::ReportStepRequest& request);
  absl::StatusOr<v1::ReportEvaluationResponse> ReportEvaluation(
      const v1::ReportEvaluationRequest& request, const Cancelled& cancelled);
  absl::Status ReportShardFile(const v1::ReportShardFileRequest& request);
  absl::StatusOr<v1::AwaitCheckpointResponse> AwaitCheckpoint(
      const v1::AwaitCheckpointRequest& request, const Cancelled& cancelled);
  absl::StatusOr<v1::AwaitHandoverResponse> AwaitHandover(
      const v1::AwaitHandoverRequest& request, const Cancelled& cancelled);
  absl::Status FinishWork(const v1::FinishWorkRequest& request);
  v1::GetClusterStatusResponse GetClusterStatus();
  absl::StatusOr<v1::TakeCheckpointResponse> TakeCheckpoint(const Cancelled& cancelled);
  absl::StatusOr<v1::ScaleResponse> Scale(const v1::ScaleRequest& request);

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
  JobController(RunOptions options, Store& store);

  // Null if it has left in good order; NOT_FOUND if it is a stranger, or was replaced.
  absl::StatusOr<MemberRecord*> Sender(const v1::HeartbeatRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // A worker's part of the job is done.
  void NoteFinished(const std::string& worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t CheckpointStep() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // How each report begins: OK if it is from a member of that kind and of the generation that runs.
  template <typename Report>
  absl::Status TakeReport(const Report& report, v1::MemberKind kind)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits until done(), or `deadline`, or the caller gives up.
  absl::Status Hold(const Cancelled& cancelled, absl::Time deadline,
                    const std::function<bool()>& done)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits until done(), or the job or the generation is over or the caller gives up. Doesn't call
  // done() in another generation than the present one.
  absl::Status HoldReport(const Cancelled& cancelled, const std::function<bool()>& done)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What those hear who wait in a generation that is over.
  absl::Status IsOver(uint64_t generation) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Lets the job go on to the next phase, if it can, or to other members, and starts the run with
  // RUNNING. Forgets what was reported in a generation that is over.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetIfOver() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Finds where the generation begins. Releases the lock while the disk works.
  void FindRestorePointOfGeneration() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Asks the workers for a checkpoint if it is time, or somebody wants one; not while one is under way.
  void RequestCutIfDue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Somebody has said that a cut was taken after so many steps.
  void NoteCut(uint64_t steps) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The committer's thread: commits what is ready, so that no member waits for the disk.
  void Commit() ABSL_LOCKS_EXCLUDED(mutex_);
  // Releases the lock while the disk works.
  void CommitReady() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  RunSummary Summary() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const RunOptions options_;

  mutable absl::Mutex mutex_;
  ProgressReporter progress_ ABSL_GUARDED_BY(mutex_);
  JobLifecycle life_ ABSL_GUARDED_BY(mutex_);
  RunRecord record_ ABSL_GUARDED_BY(mutex_);
  CheckpointKeeper checkpoints_ ABSL_GUARDED_BY(mutex_);
  // The generation that record_ and checkpoints_ are of; 0 if of none.
  uint64_t recorded_generation_ ABSL_GUARDED_BY(mutex_) = 0;
  // A checkpoint is being committed, without the lock.
  bool committing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time last_tick_ ABSL_GUARDED_BY(mutex_);
  // When the last cut began, or the generation, if that is later.
  absl::Time last_cut_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  bool ends_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread committer_;
};

}  // namespace moe
