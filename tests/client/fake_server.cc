#include "tests/client/fake_server.h"

#include <algorithm>
#include <utility>

#include "client/exchange_key.h"
#include "common/net/checksum.h"
#include "glog/logging.h"

namespace moe {

FakeServer::FakeServer(std::string id, Handler handler)
    : id_(std::move(id)), handler_(std::move(handler)) {
  grpc::Service* const services[] = {this};
  auto server = RpcServer::Start("127.0.0.1:0", services);
  CHECK(server.ok()) << server.status();
  server_ = *std::move(server);
}

FakeServer::~FakeServer() { server_->Shutdown(absl::ZeroDuration()); }

std::vector<v1::ExchangeRequest> FakeServer::requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

uint64_t FakeServer::SequenceOf(const v1::ExchangeResponse& response) const {
  absl::MutexLock lock(&mutex_);
  const auto asked = std::find_if(
      requests_.rbegin(), requests_.rend(),
      [&](const auto& request) { return KeyOf(request) == KeyOf(response); });
  return asked == requests_.rend() ? 0 : asked->sequence();
}

grpc::Status FakeServer::Exchange(
    grpc::ServerContext*,
    grpc::ServerReaderWriter<v1::ExchangeResponse, v1::ExchangeRequest>* stream) {
  v1::ExchangeRequest request;
  while (stream->Read(&request)) {
    {
      absl::MutexLock lock(&mutex_);
      requests_.push_back(request);
    }
    std::vector<v1::ExchangeResponse> responses;
    if (request.has_hello()) {
      v1::HelloResponse& hello = *responses.emplace_back().mutable_hello();
      hello.set_server(id_);
      absl::MutexLock lock(&mutex_);
      hello.set_incarnation(incarnation_);
      hello.set_received(received_);
      responses.back().set_generation(kFakeGeneration);
    } else {
      const grpc::Status status = handler_(request, &responses);
      if (!status.ok()) return status;
    }
    for (v1::ExchangeResponse& response : responses) {
      // A handler may set another one.
      if (response.generation() == 0) response.set_generation(kFakeGeneration);
      if (response.has_pull() && response.pull().sequence() == 0) {
        response.mutable_pull()->set_sequence(SequenceOf(response));
      }
      // Nor if a handler has spoiled a sealed one.
      if (response.checksum() == 0) Seal(&response);
      stream->Write(response);
    }
  }
  return grpc::Status::OK;
}

}  // namespace moe
