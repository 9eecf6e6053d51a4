// An expert server as an object: joins the cluster, hosts the shards that the coordinator
// gives it, and serves them until the job is over.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/kernels/backend.h"
#include "common/membership/member.h"
#include "common/net/rpc_server.h"
#include "server/shard_host.h"
#include "server/shard_service.h"
#include "server/status_service.h"

namespace moe {

class ExpertServer {
 public:
  struct Options {
    // Unique among the servers; "server/<name>" is the member's id.
    std::string name;
    // As RpcServer::Start; the health of services is this object's.
    std::string listen = "127.0.0.1:0";
    RpcServer::Options rpc;
    // Where workers reach this server; empty: where it listens.
    std::string advertise;
    std::string coordinator;
    int threads = 1;
    // Bytes that it may use; 0: what the machine has available.
    uint64_t memory = 0;
    ShardSet::Limits limits;
    absl::Duration join_timeout = absl::Seconds(60);
    absl::Duration coordinator_timeout = absl::Minutes(2);
    // From the first replica's frame or close to the last one's.
    absl::Duration rendezvous_timeout = absl::Seconds(60);
    // Tests put fakes here.
    std::function<absl::StatusOr<std::unique_ptr<Member>>(Member::Options)> join =
        Member::Join;
  };

  // Listens and joins; the rest goes on by itself.
  static absl::StatusOr<std::unique_ptr<ExpertServer>> Start(Options options);
  // Stops.
  ~ExpertServer();

  // Where it listens, with the real port.
  const std::string& address() const { return rpc_->address(); }
  RpcServer& rpc() { return *rpc_; }

  // Returns when the server has left the cluster: OK when the job finished, CANCELLED
  // after Stop, else the cause.
  absl::Status Wait();
  // Of the generation that it serves; after Wait, as the last one was at its end.
  v1::GetServerStatusResponse Status() const;
  // In a line, for people: how far the job is, and whom the server waits for.
  std::string Describe() const;
  // Any thread; doesn't wait.
  void Stop();

 private:
  ExpertServer(Options options, std::unique_ptr<Backend> backend);

  Member::Options Registration() const;
  void Run();
  // Until the job is over.
  absl::Status Serve();
  // Gives up the generation; returns when nothing of its shards is left.
  void Drop(uint64_t generation, const std::string& why);
  absl::StatusOr<std::unique_ptr<ShardHost>> Load(const v1::ClusterState& state);
  std::shared_ptr<ShardHost> host() const;
  // The generation can't go on; the cause doesn't name this server.
  void OnFailed(uint64_t generation, const absl::Status& cause);

  const Options options_;
  const std::unique_ptr<Backend> backend_;
  const std::string id_;

  mutable absl::Mutex mutex_;
  std::shared_ptr<ShardHost> host_ ABSL_GUARDED_BY(mutex_);
  // Once over_.
  absl::Status result_ ABSL_GUARDED_BY(mutex_);
  v1::GetServerStatusResponse last_status_ ABSL_GUARDED_BY(mutex_);
  bool over_ ABSL_GUARDED_BY(mutex_) = false;

  ShardService shard_service_;
  StatusService status_service_;
  std::unique_ptr<RpcServer> rpc_;
  std::unique_ptr<Member> member_;
  std::thread thread_;
};

}  // namespace moe
