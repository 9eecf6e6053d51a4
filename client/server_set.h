// The streams to all servers of a cluster, and the waiting on them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/shard_map.h"
#include "client/shard_stream.h"

namespace moe {

struct ServerSet {
  ShardMap map;
  // [map.servers]
  std::vector<std::unique_ptr<ShardStream>> streams;
  absl::Duration timeout;
  // More, for what a server may answer only when it has written some of its shards to disk.
  absl::Duration cut_timeout;
  std::function<void(const std::string& reason)> on_wait;

  absl::Time Deadline() const { return absl::Now() + timeout; }
  absl::Time CutDeadline() const { return Deadline() + cut_timeout; }

  absl::StatusOr<Received<v1::ExchangeResponse>> Await(int32_t server,
                                                       const ExchangeKey& key,
                                                       absl::Time deadline) const {
    ShardStream& stream = *streams[server];
    if (!on_wait) return stream.Await(key, deadline);
    on_wait(Describe(key) + " from " + stream.peer());
    absl::StatusOr<Received<v1::ExchangeResponse>> response = stream.Await(key, deadline);
    on_wait("");
    return response;
  }
};

}  // namespace moe
