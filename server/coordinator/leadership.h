// Which of several coordinators leads: the one whose key is in etcd. The key is created in a transaction
// if it isn't there, and goes with the lease of its creator, who keeps it alive.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/coordinator/etcd_client.h"

namespace moe {

// Thread-safe.
class Leadership {
 public:
  struct Options {
    std::string key;
    // What others read there: the address of this coordinator.
    std::string address;
    // At least 2 s, as etcd grants no shorter one.
    absl::Duration lease = absl::Seconds(5);
    // Called from a thread of this object, once, when the lease is over.
    std::function<void(const std::string& cause)> on_deposed;
  };

  // Waits until this process leads. standby gets the address of who leads instead, empty if nobody does
  // or etcd doesn't answer, each time that it changes. CANCELLED once `cancelled` says so. client
  // outlives the result.
  static absl::StatusOr<std::unique_ptr<Leadership>> Await(
      EtcdClient& client, Options options,
      const std::function<void(const std::string& leader)>& standby,
      const std::function<bool()>& cancelled);
  // Resign.
  ~Leadership();
  // Gives it up: others needn't await the end of the lease. Waits for etcd for a few seconds at most; without
  // it the lease ends by itself. Any thread.
  void Resign();

  // The revision in which the key was created.
  int64_t revision() const { return revision_; }
  // Whether the lease can't be over: this process was heard by etcd less than a lease ago.
  bool sure() const;

 private:
  Leadership(EtcdClient& client, Options options, int64_t lease, int64_t revision,
             absl::Duration granted);
  void KeepAlive();

  EtcdClient& client_;
  const Options options_;
  const int64_t lease_;
  const int64_t revision_;
  mutable absl::Mutex mutex_;
  // On the clock of SinceBoot.
  absl::Duration sure_until_ ABSL_GUARDED_BY(mutex_);
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace moe
