// Shards on their way to this server, which the next handover gives to it: made and fetched in advance,
// while their servers train, and brought to the last step when those have stopped.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/job/model_plan.h"
#include "common/net/tls_credentials.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/transfer.pb.h"
#include "server/shard_home.h"

namespace grpc {
class ClientContext;
}  // namespace grpc

namespace moe {

class Arrivals {
 public:
  struct Options {
    // Member id of this server.
    std::string server;
    // In which the shards are trained now.
    uint64_t generation = 0;
    v1::Upcoming upcoming;
    // Null: in plaintext.
    std::shared_ptr<const TlsCredentials> tls;
    // How long a fetch may take.
    absl::Duration timeout;
    // Called once, by a thread of its own: what could be fetched in advance has been.
    std::function<void()> arrived;
  };

  // Begins. The home outlives it.
  Arrivals(ShardHome& home, Options options);
  // Gives up.
  ~Arrivals();

  uint64_t version() const { return options_.upcoming.placement().version(); }
  // Waits for the rest, of step `step`. cancelled: asked several times a second; true ends it with
  // CANCELLED. UNAVAILABLE or DEADLINE_EXCEEDED: a server that has one of them is gone, or too slow.
  absl::StatusOr<ShardStock> Finish(uint64_t step,
                                    const std::function<bool()>& cancelled);

 private:
  struct Incoming {
    const ShardSpec* spec = nullptr;
    std::string source;  // address
    std::unique_ptr<Shard> shard;
  };

  void Run();
  absl::Status FetchInAdvance(Incoming& incoming);
  // Pieces of which the source has other versions.
  absl::Status Fetch(Incoming& incoming, v1::FetchShardRequest request,
                     absl::Time deadline);
  bool stopped() const;

  ShardHome& home_;
  const Options options_;
  const ModelPlan plan_;
  std::vector<Incoming> incoming_;  // of thread_, until it has ended
  // Of making a shard; fetching it again would help. Of thread_.
  absl::Status failure_;

  mutable absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;
};

}  // namespace moe
