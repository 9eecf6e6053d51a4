// The streams to all servers of a cluster, and the waiting on them.
//
// Where shards have two copies, both servers are sent the same and both answers are awaited, so that
// neither falls behind; which of them counts doesn't matter, as their bits are equal. A server that is
// lost is gone on without, as long as each of its shards has another copy.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/shard_map.h"
#include "client/shard_stream.h"
#include "common/net/received.h"

namespace moe {

// Thread-compatible, but for the streams.
struct ServerSet {
  ShardMap map;
  // [map.servers]
  std::vector<std::unique_ptr<ShardStream>> streams;
  absl::Duration timeout;
  // More, for what a server may answer only when it has written some of its shards to disk.
  absl::Duration cut_timeout;
  std::function<void(const std::string& reason)> on_wait;
  // A server is lost that others can stand in for. Whether to go on without it: not if that is because
  // the generation is over. Null: never.
  std::function<bool(const std::string& server, const absl::Status& why)> go_on_without;
  // Those that are gone on without.
  std::set<int32_t> lost;

  absl::Time Deadline() const { return absl::Now() + timeout; }
  absl::Time CutDeadline() const { return Deadline() + cut_timeout; }

  // Servers that have a copy of the shard and aren't lost, the first copy first; at least one.
  std::vector<int32_t> HostsOf(int32_t shard) const;
  // Sends it, unless the server is or will be gone on without.
  absl::Status Send(int32_t server, v1::ExchangeRequest request);
  // To one that has the shard; *server: which.
  absl::Status SendToOne(int32_t shard, const v1::ExchangeRequest& request,
                         int32_t* server);
  // None: the server is gone on without.
  absl::StatusOr<std::optional<Received<v1::ExchangeResponse>>> Await(
      int32_t server, const ExchangeKey& key, absl::Time deadline);
  // OK if the server is gone on without from here on, else `why`.
  absl::Status GoOnWithout(int32_t server, const absl::Status& why);
};

}  // namespace moe
