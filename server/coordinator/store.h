// Where the coordinator keeps what must outlive it: a small map from keys to values with
// versions.
//
// The interface is what a replicated store offers with linearizable operations: in etcd (EtcdStore),
// Get is a range of one key, CompareAndSwap a transaction on the key's `version`, and
// List a range over a prefix. FileStore is the one for a single machine.
//
//   job/name, job/phase, job/generation     the job that ran last, and how far it came
//   job/running, job/evaluations            RunningGeneration, StoredEvaluations (state.proto), in
//                                           protobuf's JSON form
//   job/servers, job/workers                how many members the job is to have
//   job/asked_size                          and how many its coordinator was started for
//   job/coordinator                         how many coordinators there have been
//   members/<kind>/<name>                   the last incarnation given out under that name
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moe {

class Store {
 public:
  struct Entry {
    std::string value;
    // Counts the changes of the key, from 1.
    uint64_t version = 0;
  };

  virtual ~Store() = default;

  // Empty if the key isn't there.
  virtual absl::StatusOr<std::optional<Entry>> Get(const std::string& key) = 0;
  // Sets the value if the key's version is `version` (0: it isn't there), and returns the
  // new version. ABORTED if the version is another; nothing has changed then. After OK
  // the value survives a crash.
  virtual absl::StatusOr<uint64_t> CompareAndSwap(const std::string& key,
                                                  uint64_t version,
                                                  const std::string& value) = 0;
  // Sets the value, whatever it was. ABORTED if another sets it meanwhile.
  absl::Status Put(const std::string& key, const std::string& value) {
    const absl::StatusOr<std::optional<Entry>> entry = Get(key);
    if (!entry.ok()) return entry.status();
    const uint64_t version = entry->has_value() ? (*entry)->version : 0;
    return CompareAndSwap(key, version, value).status();
  }
  // All keys that begin with `prefix`.
  virtual absl::StatusOr<std::map<std::string, Entry>> List(
      const std::string& prefix) = 0;
};

}  // namespace moe
