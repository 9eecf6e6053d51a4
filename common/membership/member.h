// A process's membership of the cluster: registration with the coordinator and the heartbeat that
// keeps it. Servers and workers alike own one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/coordinator.pb.h"

namespace moe {

// Whether the cause is a peer that is gone or doesn't answer.
bool IsLostPeer(const absl::Status& cause);

class Member {
 public:
  struct Options {
    // host:port of the coordinator, or of several of which one leads: "a:1,b:2".
    std::string coordinator;
    // Join fills in the nonce, and where they are not set this process's host and pid and the
    // memory that its machine has available.
    v1::RegisterRequest registration;
    // Null: plaintext.
    std::shared_ptr<const TlsCredentials> tls = nullptr;
    // How long to wait for a coordinator that isn't there yet.
    absl::Duration join_timeout = absl::Seconds(60);
    // How long a member goes on without its coordinator, which may be started again meanwhile.
    absl::Duration coordinator_timeout = absl::Minutes(2);
    // For heartbeats: steps that the process knows to have been taken; any thread. Null: those that it
    // has reported.
    std::function<uint64_t()> step;
    // Asked about once a second while Join waits; true ends it with CANCELLED.
    std::function<bool()> cancelled;
  };

  // Registers (retrying while the coordinator is unavailable, and saying so once a few seconds) and
  // starts the heartbeat thread. A refusal by the coordinator, or of one's certificate by the other,
  // comes back with its message.
  static absl::StatusOr<std::unique_ptr<Member>> Join(Options options);
  virtual ~Member() = default;

  // "server/<name>" or "worker/<name>".
  virtual const std::string& id() const = 0;
  // Counts the processes, and the registrations, that the member of this id has been.
  virtual uint64_t incarnation() const = 0;

  // Waits until the state satisfies `ready`, the cluster fails or finishes, or the member loses the
  // coordinator. A failed cluster: ABORTED with the cause. `reason` is shown in status meanwhile.
  // Doesn't end with the generation.
  virtual absl::StatusOr<v1::ClusterState> WaitFor(
      const std::string& reason, absl::Duration timeout,
      const std::function<bool(const v1::ClusterState&)>& ready) = 0;

  // The process works in this generation from here on; its reports are of it.
  virtual void Enter(uint64_t generation) = 0;

  // OK, or why the job is over: ABORTED with the cluster's cause, UNAVAILABLE if the coordinator
  // can't be reached for longer than coordinator_timeout, CANCELLED after Cancel().
  virtual absl::Status health() const = 0;
  // The same, and ABORTED with the cause if the cluster has left the generation that the process
  // entered.
  virtual absl::Status generation_health() const = 0;
  // Called once, from the heartbeat thread (or at once if it is already so), when
  // generation_health() turns bad. For waking up whoever waits elsewhere.
  virtual void OnTrouble(std::function<void(const absl::Status&)> callback) = 0;

  // Called from the heartbeat thread with each state that an answer brings, as long as it is of the
  // generation that the process entered last, and that runs.
  virtual void OnState(std::function<void(const v1::ClusterState&)> callback) = 0;
  // The process goes on without the server in the generation that it entered. The coordinator hears of it
  // with the heartbeats; doesn't wait for that. why: for people.
  virtual void GoOnWithout(const std::string& server, const std::string& why) = 0;

  // In a line, for people: the generation, how far it is, and whom the process waits for.
  virtual std::string Describe() const = 0;

  virtual void SetReady(uint64_t generation) = 0;
  // The shards of the upcoming placement of this version have been fetched in advance.
  virtual void SetArrived(uint64_t version) = 0;
  // What this process waits for at present; empty if it computes. Cheap; any thread.
  virtual void SetWaitingFor(const std::string& reason) = 0;
  virtual void SetTimes(const v1::MemberTimes& times) = 0;

  // Tells the coordinator that the generation can't go on, nor, unless IsLostPeer(cause), the job.
  // Tries until it knows or generation_health() is bad.
  virtual void Fail(const absl::Status& cause) = 0;
  // Makes every wait return CANCELLED; safe from any thread. For a signal.
  virtual void Cancel() = 0;

  // These three are sent in their order. While the coordinator is away they are kept, up to a bound on
  // their bytes, and sent later. One thread at a time.
  // Waits as long as the coordinator gives answers; none if it is away.
  virtual absl::StatusOr<std::optional<v1::ReportStepResponse>> ReportStep(
      v1::ReportStepRequest request) = 0;
  // These two don't wait.
  virtual absl::Status ReportEvaluation(v1::ReportEvaluationRequest request) = 0;
  virtual absl::Status ReportShardFile(v1::ReportShardFileRequest request) = 0;
  // The others wait, also for a coordinator that is away, as long as generation_health() is OK.
  // These two come after all that was reported before.
  virtual absl::StatusOr<v1::AwaitCheckpointResponse> AwaitCheckpoint(uint64_t step) = 0;
  // OK: training goes on as it is. ABORTED: the next generation has begun.
  virtual absl::Status AwaitHandover(uint64_t step) = 0;
  virtual absl::Status FinishWork() = 0;
  // Says goodbye and stops the heartbeat.
  virtual void Leave() = 0;
};

}  // namespace moe
