// Calls to an etcd of release 3.4 or later (its v3 API), each repeated until it is answered or its
// deadline has passed.
#pragma once

#include <grpcpp/channel.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/etcd/rpc.grpc.pb.h"
#include "proto/etcd/rpc.pb.h"

namespace moe {

// Thread-safe.
class EtcdClient {
 public:
  struct Options {
    // host:port of the members of etcd's cluster; asked in turn.
    std::vector<std::string> endpoints;
    // PEM; ca empty: without TLS. certificate and key: of this client, if etcd wants one.
    std::string ca;
    std::string certificate;
    std::string key;
    // Of one attempt.
    absl::Duration attempt = absl::Seconds(2);
    // Called once, from any call, when etcd's revision has gone back: it has lost data. Null: the call
    // fails with DATA_LOSS.
    std::function<void(const std::string& cause)> on_data_loss;
  };

  explicit EtcdClient(Options options);

  // UNAVAILABLE if nobody has answered by the deadline, CANCELLED after Cancel, DATA_LOSS if etcd has lost
  // data. A transaction may have taken place though it is repeated, or fails.
  absl::StatusOr<etcdserverpb::RangeResponse> Range(
      const etcdserverpb::RangeRequest& request, absl::Time deadline);
  absl::StatusOr<etcdserverpb::TxnResponse> Txn(const etcdserverpb::TxnRequest& request,
                                                absl::Time deadline);
  // A new lease's id.
  absl::StatusOr<int64_t> Grant(absl::Duration ttl, absl::Time deadline);
  // What is left of the lease; zero: it is over.
  absl::StatusOr<absl::Duration> KeepAlive(int64_t lease, absl::Time deadline);
  // Once.
  void Revoke(int64_t lease, absl::Time deadline);
  // Ends all calls, also those to come.
  void Cancel();

 private:
  using Call = std::function<grpc::Status(const std::shared_ptr<grpc::Channel>& channel,
                                          grpc::ClientContext* context)>;

  absl::Status Repeat(const std::string& what, absl::Time deadline, const Call& call);
  std::shared_ptr<grpc::Channel> channel();
  // Asks another one from now on, unless that has happened.
  void Leave(const std::shared_ptr<grpc::Channel>& channel);
  // The highest that any answer had.
  int64_t revision();
  // before: what that was when the call began.
  absl::Status CheckRevision(const etcdserverpb::ResponseHeader& header, int64_t before);

  const Options options_;
  absl::Mutex mutex_;
  absl::CondVar changed_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  size_t endpoint_ ABSL_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<grpc::Channel> channel_ ABSL_GUARDED_BY(mutex_);
  int64_t revision_ ABSL_GUARDED_BY(mutex_) = 0;
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace moe
