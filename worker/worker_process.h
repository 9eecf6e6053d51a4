// A worker as a library object: joins the cluster, waits for its replicas, trains or evaluates,
// leaves.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/shard_stream.h"
#include "common/kernels/backend.h"
#include "common/membership/member.h"
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "worker/data/token_dataset.h"
#include "worker/trainer/top_contexts.h"

namespace moe {

class Trainer;

class Worker {
 public:
  struct Options {
    std::string name;
    // host:port.
    std::string coordinator;
    // Null: plaintext.
    std::shared_ptr<const TlsCredentials> tls = nullptr;
    // Folder that prepare_text wrote.
    std::string data;
    int threads = 1;
    // Bytes that it may use; 0: what the machine has available.
    uint64_t memory = 0;
    absl::Duration join_timeout = absl::Seconds(60);
    absl::Duration coordinator_timeout = absl::Minutes(2);
    // How long any wait for a server may take.
    absl::Duration step_timeout = absl::Seconds(60);
    // How long to try to take up a stream to a server that broke.
    absl::Duration reconnect_timeout = kReconnectTimeout;
    // How much longer while servers write a checkpoint's files.
    absl::Duration cut_timeout = absl::Hours(1);
    // How long to wait for the other members before the job starts or goes on.
    absl::Duration start_timeout = absl::Minutes(10);
    // Where the highest gates of an evaluation are written, as TopContexts::ToJson; empty: nowhere.
    // Refused where the run trains.
    std::string contexts_file;
    TopContexts::Options contexts;
    // Called once, on the worker's thread, when it has become a member; may be empty.
    std::function<void()> on_joined;
    // How streams to servers are opened, and how the cluster is joined; a cluster within one process
    // puts its own here.
    ShardStreamFactory open_stream = OpenShardStream;
    std::function<absl::StatusOr<std::unique_ptr<Member>>(Member::Options)> join =
        Member::Join;
  };

  // Works on a thread of its own.
  explicit Worker(Options options);
  // Stops, if Wait hasn't returned.
  ~Worker();

  // OK when the job is finished, else why it isn't: the cluster's cause, this worker's own, or
  // CANCELLED after Stop.
  absl::Status Wait();
  // In a line, for people: what the worker does at present. Any thread.
  std::string Describe() const;
  // Any thread.
  void Stop();

 private:
  absl::Status Run();
  // Generation after generation.
  absl::Status WorkUntilOver(Backend& backend, const TokenDataset& data, Member& member);
  // In one generation, until this worker's part of the job is done.
  absl::Status Work(Backend& backend, const TokenDataset& data, Member& member,
                    const v1::ClusterState& state);
  absl::Status Evaluate(Trainer& trainer, const TokenDataset& data,
                        const v1::ClusterState& state);

  const Options options_;
  mutable absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  Member* member_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Status result_;  // written by thread_, read after it ended
  std::thread thread_;
};

}  // namespace moe
