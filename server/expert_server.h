// An expert server as an object: joins the cluster, hosts the shards that the coordinator
// gives it, and serves them until the job is over.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/protocol.h"
#include "common/kernels/backend.h"
#include "common/kernels/device.h"
#include "common/membership/member.h"
#include "common/net/rpc_server.h"
#include "server/arrivals.h"
#include "server/shard_home.h"
#include "server/shard_host.h"
#include "server/shard_service.h"
#include "server/status_service.h"
#include "server/trace_writer.h"
#include "server/transfer_service.h"

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
    DeviceOptions device;
    // Bytes that it may use; 0: what the machine has available.
    uint64_t memory = 0;
    ShardHome::Limits limits;
    // Folder for a trace of what workers contributed; empty: none.
    std::string trace_dir;
    absl::Duration join_timeout = absl::Seconds(60);
    absl::Duration coordinator_timeout = absl::Minutes(2);
    // From the first replica's frame or close to the last one's.
    absl::Duration rendezvous_timeout = absl::Seconds(60);
    // How long a worker whose stream broke has to come back with another.
    absl::Duration reconnect_timeout = kReconnectTimeout;
    // Tests put fakes here.
    BackendMaker make_backend = MakeBackend;
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
  // The shards of a generation that is over, which the next one's servers take over.
  struct Kept {
    uint64_t generation = 0;
    uint64_t step = 0;
    ShardStock shards;
  };

  ExpertServer(Options options, std::unique_ptr<Backend> backend,
               std::unique_ptr<ShardHome> home);

  Member::Options Registration() const;
  void Run();
  // Until the job is over.
  absl::Status Serve();
  // What the state asks for and hasn't been done yet.
  enum class Action { kNone, kLeave, kForget, kEnter, kPrepare };
  Action NextAction(const v1::ClusterState& state) const;
  // Leaves the generation served; keeps its shards if the state says so.
  void Leave(const v1::ClusterState& state);
  // Cuts the streams of the generation served; returns its host when nobody else holds it.
  std::shared_ptr<ShardHost> TakeHost(const std::string& why);
  // Drops what is left of kept shards.
  void Forget();
  // Begins to fetch what the next handover will bring, if there will be one.
  void Prepare(const v1::ClusterState& state);
  // Loads the generation's shards. An error if this server can't go on at all.
  absl::Status Enter(const v1::ClusterState& state);
  absl::StatusOr<std::unique_ptr<ShardHost>> Load(const v1::ClusterState& state);
  // All shards that a handover gives to this server.
  absl::StatusOr<ShardStock> TakeOver(const v1::ClusterState& state);
  absl::Status CheckStep(const Kept& kept, uint64_t step) const;
  std::shared_ptr<ShardHost> host() const;
  absl::StatusOr<PieceBatch> ReadForTransfer(const v1::FetchShardRequest& request,
                                             int64_t first);
  // The generation can't go on; the cause doesn't name this server.
  void OnFailed(uint64_t generation, const absl::Status& cause);

  const Options options_;
  const std::unique_ptr<Backend> backend_;
  const std::string id_;
  const std::shared_ptr<ShardHome> home_;

  // ---- Serve's thread
  // The generation whose shards are here; 0: none.
  uint64_t served_ = 0;
  std::unique_ptr<Arrivals> arrivals_;
  // Null without trace_dir.
  std::unique_ptr<TraceWriter> trace_;

  mutable absl::Mutex mutex_;
  std::shared_ptr<ShardHost> host_ ABSL_GUARDED_BY(mutex_);
  std::optional<Kept> kept_ ABSL_GUARDED_BY(mutex_);
  // Once over_.
  absl::Status result_ ABSL_GUARDED_BY(mutex_);
  v1::GetServerStatusResponse last_status_ ABSL_GUARDED_BY(mutex_);
  bool over_ ABSL_GUARDED_BY(mutex_) = false;

  ShardService shard_service_;
  StatusService status_service_;
  TransferService transfer_service_;
  std::unique_ptr<RpcServer> rpc_;
  std::unique_ptr<Member> member_;
  std::thread thread_;
};

}  // namespace moe
