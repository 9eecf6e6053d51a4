#include "common/net/peer_limit.h"

#include <glog/logging.h>
#include <grpcpp/server_context.h>

#include <utility>

#include "absl/strings/match.h"

namespace moe {

std::string HostOf(const std::string& peer) {
  if (!absl::StartsWith(peer, "ipv4:") && !absl::StartsWith(peer, "ipv6:")) return peer;
  return peer.substr(0, peer.rfind(':'));
}

bool PeerLimit::Calls::Begin(const std::string& host) {
  absl::MutexLock lock(&mutex_);
  int& calls = of_[host];
  if (calls >= most_) return false;
  ++calls;
  return true;
}

void PeerLimit::Calls::End(const std::string& host) {
  absl::MutexLock lock(&mutex_);
  const auto of_host = of_.find(host);
  if (--of_host->second == 0) of_.erase(of_host);
}

// Lives as long as its call.
class PeerLimit::Counted final : public grpc::experimental::Interceptor {
 public:
  Counted(grpc::experimental::ServerRpcInfo* info, std::shared_ptr<Calls> calls)
      : info_(info), calls_(std::move(calls)) {}
  ~Counted() override {
    if (counts_) calls_->End(host_);
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using Hook = grpc::experimental::InterceptionHookPoints;
    if (methods->QueryInterceptionHookPoint(Hook::POST_RECV_INITIAL_METADATA)) {
      host_ = HostOf(info_->server_context()->peer());
      counts_ = calls_->Begin(host_);
      if (!counts_) {
        LOG_EVERY_N(WARNING, 1000) << host_ << " has too many calls under way; "
                                   << info_->method() << " is cancelled";
        info_->server_context()->TryCancel();
      }
    }
    methods->Proceed();
  }

 private:
  grpc::experimental::ServerRpcInfo* const info_;
  const std::shared_ptr<Calls> calls_;
  std::string host_;
  bool counts_ = false;
};

grpc::experimental::Interceptor* PeerLimit::CreateServerInterceptor(
    grpc::experimental::ServerRpcInfo* info) {
  return new Counted(info, calls_);
}

}  // namespace moe
