// The life of a job: WAITING -> LOADING -> RUNNING -> FINISHED | FAILED.
//
//   WAITING   members join. One that leaves or is lost is forgotten.
//   LOADING   all are there; the layout is fixed; servers make their shards.
//   RUNNING   all servers have reported this generation's shards; workers train.
//   FINISHED  all workers have finished their work.
//   FAILED    a member reported that it can't go on, nobody reported anything for too long, or
//             too many generations in a row got nowhere; the first cause stands.
//
// A member that is lost in LOADING or RUNNING ends the generation: the next begins with WAITING
// and goes on from the last checkpoint. Not so a server that is lost in RUNNING while others have copies
// of all its shards: the generation goes on without it. One that changes over to other members begins with LOADING
// and goes on where the workers of the one before have stopped.
//
// What must outlive the coordinator is in the store before anybody can see it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/operator.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/coordinator/handover.h"
#include "server/coordinator/layout.h"
#include "server/coordinator/member_table.h"
#include "server/coordinator/progress.h"
#include "server/coordinator/run_options.h"
#include "server/coordinator/store.h"

namespace moe {

// Not thread-safe.
class JobLifecycle {
 public:
  // options: complete. All outlive this object.
  JobLifecycle(const RunOptions& options, Store& store, ProgressReporter& progress);

  // To be called first: opens a new generation, or goes on with that of options.adoption.
  absl::Status Begin();
  // Every heartbeat of a member: one that is awaited is back, or lost if what it has isn't what the
  // generation has. checkpoint_step: steps of the last checkpoint.
  void Welcome(const v1::HeartbeatRequest& request, uint64_t checkpoint_step);
  // What must be known of evaluations after this coordinator.
  void Keep(const v1::StoredEvaluations& evaluations);
  // The coordinator was suspended for so long.
  void Excuse(absl::Duration pause);
  // Why a generation that nobody comes back to can't go on; empty as long as it may.
  std::string Overdue() const;
  // Nothing has happened for too long; cause: what is known of it.
  void Stall(const std::string& cause) { Recover(cause); }
  // Whether a generation waits to be told where it begins.
  bool NeedsRestorePoint() const { return needs_restore_point_; }
  // None: with initial values.
  void SetRestorePoint(std::optional<RestorePoint> restore);
  // So many steps have been taken.
  void NoteStep(uint64_t step);

  // Makes the process a member, or says why it can't be one. A repetition of the request
  // changes nothing.
  absl::StatusOr<const MemberRecord*> Join(const v1::RegisterRequest& request);
  // How many members the job is to have, and who leaves: "3 servers and 2 workers ...". Changes nothing
  // and says why if that makes no sense, or those that stay don't have the memory. The job changes over
  // to them at the end of a step, once all are there.
  absl::StatusOr<std::string> Scale(const v1::ScaleRequest& request);
  // Whether the workers should stop after a step, to change over.
  bool ReadyToHandOver() const;
  // The worker has stopped after so many steps, as it was asked to.
  void AwaitHandover(const std::string& worker, uint64_t steps);
  // If all workers have stopped, the next generation goes on from there, once no cut is under way. If
  // there is nobody to change over to they may go on instead, and this returns true.
  bool TryHandOver(bool cut_under_way);
  // Lets those go on that wait in vain for the others to stop. Whether there were such.
  bool EndVainHandover();
  // Whether a worker that has stopped may go on in this generation.
  bool MayGoOn(uint64_t steps) const { return handover_.MayGoOn(steps); }
  // Version of the placement to come; 0: none.
  uint64_t upcoming() const { return handover_.version(); }
  // A member has left or was lost.
  void Lose(std::string id, const std::string& how);
  // A worker goes on without the server in that generation; cause: what it knows of it.
  void LoseServer(const std::string& server, const std::string& worker,
                  const std::string& cause, uint64_t generation);
  // Enters the phases whose conditions are met: LOADING when the members are complete, or have
  // been waited for long enough; RUNNING when all servers are ready.
  void Advance();
  // A worker's work is done. FINISHED when that of all is.
  void FinishWork(const std::string& worker);
  void Fail(const std::string& cause);
  // A member can't go on; the cause that stands names it.
  // peer_lost: it might in a new generation.
  void FailBy(const std::string& member, const std::string& cause, bool peer_lost);
  // Fails the job, but doesn't call it a failure.
  void Stop(const std::string& cause);
  // OK if the sender of a report is a member of that kind and the job is running; ABORTED with the
  // cause if it has failed, or the generation of the report is over. member: who it says it is;
  // record: null if it isn't.
  absl::Status CheckReporter(const MemberRecord* record, const std::string& member,
                             v1::MemberKind kind, uint64_t generation) const;
  // Says to people whom the job waits for, if it waits.
  void PrintWaiting();

  v1::Phase phase() const { return phase_; }
  bool over() const { return phase_ == v1::PHASE_FINISHED || phase_ == v1::PHASE_FAILED; }
  uint64_t generation() const { return generation_; }
  // Which coordinator of its store this is, from 1.
  uint64_t coordinator() const { return coordinator_; }
  // Why the generation before this one ended; empty in the run's first.
  const std::string& recovery() const { return recovery_; }
  // The checkpoint that the last generation which began with one began with.
  const std::optional<RestorePoint>& restore() const { return restore_; }
  // Why the phase is FAILED.
  const std::string& failure() const { return failure_; }
  MemberTable& members() { return members_; }
  const MemberTable& members() const { return members_; }
  // From LOADING on; stays where it is until the next generation.
  const Layout& layout() const { return *layout_; }
  // What status shows of each member.
  std::vector<v1::MemberStatus> MemberStatuses() const;
  // Steps taken before this generation.
  uint64_t start_step() const;
  // When it first was RUNNING, and when it ended; InfiniteFuture before.
  absl::Time running_since() const { return running_since_; }
  absl::Time over_since() const { return over_since_; }
  v1::ClusterState State() const;
  // The phase as a member is told it.
  v1::Phase PhaseFor(const std::string& member) const;
  // What a member gets as the answer to a heartbeat.
  v1::ClusterState StateFor(const std::string& member) const;
  // A member that has left in good order gets this.
  v1::ClusterState Farewell() const;

 private:
  absl::Status OpenGeneration();
  absl::Status Adopt(const v1::RunningGeneration& running);
  // How many members the job is to have, in the store.
  absl::Status LoadSize();
  absl::Status SaveSize(int servers, int workers);
  // Whether the generation goes on without the server, of whose shards others must have copies. cause:
  // names it.
  bool GoOnWithout(const std::string& server, const std::string& cause);
  // The generation can't go on: opens the next one, if the job may have another.
  void Recover(const std::string& cause);
  // Takes one more member of that kind, if the process would be one too many.
  void Grow(const std::string& id, v1::MemberKind kind);
  // All that were awaited may be back.
  void NoteBack();
  // Goes over to a new generation; cause: why.
  void Reopen(const std::string& cause);
  // Whether the members that are there are those that the generation is for.
  bool HasMembers();
  // Whether the member has a part in this generation.
  bool TakesPart(const std::string& id) const;
  // Whether the members that the job is to have are there, and are others than those that take part.
  bool WaitsToScale() const;
  // Plans the handover for which it waits, or gives up one for which it doesn't any more.
  void PlanHandover();
  // The next generation goes on with the shards as they are after so many steps.
  void HandOver(uint64_t steps);
  void Enter(v1::Phase phase);
  // What must outlive the coordinator can't be stored.
  void FailForStore(const absl::Status& status);
  // The job is FAILED from here on; people read "<how>: <cause>".
  void End(const char* how, const std::string& cause);
  void StartLoading(Layout layout);
  // What the next coordinator must know of the generation, with that layout.
  absl::Status SaveGeneration(const Layout& layout);
  void StartRunning();
  std::string WaitingFor() const;
  // As ClusterState.without_standby.
  std::string WithoutStandby() const;
  // What servers are told of the last handover and of the next.
  void AddHandover(v1::ClusterState* state) const;

  const RunOptions& options_;
  Store& store_;
  ProgressReporter& progress_;
  MemberTable members_;
  std::optional<Layout> layout_;
  v1::Phase phase_ = v1::PHASE_WAITING;
  uint64_t coordinator_ = 0;
  uint64_t generation_ = 0;
  // The highest that any process has named.
  uint64_t named_generation_ = 0;
  absl::Time generation_since_;
  std::string recovery_;
  Handover handover_;
  // What the generation took over; none: it began with restore_.
  std::optional<v1::Handover> taken_over_;
  std::optional<RestorePoint> restore_;
  bool needs_restore_point_ = false;
  // Some of its members haven't been heard yet.
  bool adopting_ = false;
  // Servers that it goes on without, each with the cause.
  std::vector<std::string> lost_;
  // The members that are there don't have the memory for second copies.
  bool no_room_for_standby_ = false;
  // The most that any generation has taken, and how many have ended since.
  uint64_t furthest_step_ = 0;
  int recoveries_ = 0;
  std::string failure_;
  absl::Time running_since_ = absl::InfiniteFuture();
  absl::Time over_since_ = absl::InfiniteFuture();
};

}  // namespace moe
