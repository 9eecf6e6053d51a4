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

// For writing a checkpoint's files, however large and slow the disk.
inline constexpr absl::Duration kCutTimeout = absl::Minutes(10);

struct ServerSet {
  ShardMap map;
  // [map.servers]
  std::vector<std::unique_ptr<ShardStream>> streams;
  absl::Duration timeout;
  std::function<void(const std::string& reason)> on_wait;

  absl::Time Deadline() const { return absl::Now() + timeout; }
  // Of an answer that comes only when the server has written its shards to disk.
  absl::Time CutDeadline() const { return absl::Now() + timeout + kCutTimeout; }

  absl::StatusOr<v1::ExchangeResponse> Await(int32_t server, const ExchangeKey& key,
                                             absl::Time deadline) const {
    ShardStream& stream = *streams[server];
    if (!on_wait) return stream.Await(key, deadline);
    on_wait(Describe(key) + " from " + stream.peer());
    absl::StatusOr<v1::ExchangeResponse> response = stream.Await(key, deadline);
    on_wait("");
    return response;
  }
};

}  // namespace moe
