// How many calls a host may have under way at a server: not so many that none are left for the others.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace moe {

// "ipv4:10.0.0.1" of what gRPC calls the peer "ipv4:10.0.0.1:4000"; what has no port is as it is.
std::string HostOf(const std::string& peer);

// For ServerBuilder. A call counts from its beginning until its answer has been written, whether or not the
// peer reads it. One too many is cancelled: CANCELLED, for the client to call again. Thread-safe.
class PeerLimit final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit PeerLimit(int most) : calls_(std::make_shared<Calls>(most)) {}

  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override;

 private:
  class Calls {
   public:
    explicit Calls(int most) : most_(most) {}
    // False: the host has all that it may have.
    bool Begin(const std::string& host);
    void End(const std::string& host);

   private:
    const int most_;
    absl::Mutex mutex_;
    std::map<std::string, int> of_ ABSL_GUARDED_BY(mutex_);  // by host; none is 0
  };
  class Counted;

  // Calls may end after the server's builder is gone.
  const std::shared_ptr<Calls> calls_;
};

}  // namespace moe
