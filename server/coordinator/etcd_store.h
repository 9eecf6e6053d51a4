// A Store in etcd, for the coordinator that leads: each write is a transaction that takes place only as
// long as the key that made this process the leader is the one that it created.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/coordinator/etcd_client.h"
#include "server/coordinator/store.h"

namespace moe {

// Thread-safe.
class EtcdStore final : public Store {
 public:
  struct Options {
    // Keys are <prefix>/<key>.
    std::string prefix;
    // With the revision in which this process created it.
    std::string leader_key;
    int64_t leader_revision = 0;
    // Of one operation, however often it is repeated.
    absl::Duration timeout = absl::Minutes(2);
    // Another process leads, or none. Called before the write that found out returns, which is
    // FAILED_PRECONDITION.
    std::function<void(const std::string& cause)> on_deposed;
  };

  // client outlives the store.
  EtcdStore(EtcdClient& client, Options options)
      : client_(client), options_(std::move(options)) {}

  absl::StatusOr<std::optional<Entry>> Get(const std::string& key) override;
  absl::StatusOr<uint64_t> CompareAndSwap(const std::string& key, uint64_t version,
                                          const std::string& value) override;
  absl::StatusOr<std::map<std::string, Entry>> List(const std::string& prefix) override;

 private:
  std::string Name(const std::string& key) const { return options_.prefix + "/" + key; }

  EtcdClient& client_;
  const Options options_;
};

}  // namespace moe
