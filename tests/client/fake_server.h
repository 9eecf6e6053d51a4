// An expert server that answers as a test tells it to: a real ShardService on loopback.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/net/rpc_server.h"
#include "proto/moe/v1/expert.grpc.pb.h"

namespace moe {

inline constexpr uint64_t kFakeGeneration = 7;

class FakeServer final : public v1::ShardService::Service {
 public:
  // Called for every message but Hello; what it returns is sent. A status that isn't OK
  // ends the stream. Answers to pulls get the sequence of the last that has their key, if none.
  using Handler = std::function<grpc::Status(
      const v1::ExchangeRequest& request, std::vector<v1::ExchangeResponse>* responses)>;

  FakeServer(std::string id, Handler handler);
  ~FakeServer() override;

  const std::string& id() const { return id_; }
  const std::string& address() const { return server_->address(); }
  // All messages so far, Hello included.
  std::vector<v1::ExchangeRequest> requests() const;
  // What it answers to the next Hello.
  void SetHello(uint64_t incarnation, uint64_t received) {
    absl::MutexLock lock(&mutex_);
    incarnation_ = incarnation;
    received_ = received;
  }

  grpc::Status Exchange(grpc::ServerContext* context,
                        grpc::ServerReaderWriter<v1::ExchangeResponse,
                                                 v1::ExchangeRequest>* stream) override;

 private:
  uint64_t SequenceOf(const v1::ExchangeResponse& response) const;

  const std::string id_;
  const Handler handler_;
  mutable absl::Mutex mutex_;
  std::vector<v1::ExchangeRequest> requests_ ABSL_GUARDED_BY(mutex_);
  uint64_t incarnation_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t received_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<RpcServer> server_;
};

}  // namespace moe
