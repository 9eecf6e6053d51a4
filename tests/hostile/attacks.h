// What a stranger may do to one process of a cluster over the network. Every function is one attack,
// with a deadline of its own; it tells how the process answered.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/hostile/random_message.h"

namespace moe::hostile {

class Victim {
 public:
  // address: host:port. services: full names of those that it has.
  Victim(std::string address, std::vector<std::string> services);

  // ---- of a method that is picked
  grpc::Status RandomCall(Random& random);
  grpc::Status OddCall(Random& random);
  // A good beginning of a message.
  grpc::Status TruncatedCall(Random& random);
  grpc::Status UnknownMethod(Random& random);
  // Metadata of `bytes`.
  grpc::Status HugeMetadata(Random& random, size_t bytes);
  // A message of so many zeros, plain or compressed.
  grpc::Status Zeros(Random& random, size_t bytes, bool compressed);

  // ---- of ShardService.Exchange, or of another method as if it were one
  // Messages until it answers with a status.
  grpc::Status Stream(Random& random);
  // Opened and dropped.
  grpc::Status DroppedStream(Random& random);

  // ---- of its socket; true: it was cut off or closed, within a second
  bool Garbage(Random& random);

  // Streams and sockets that say nothing, or half of something, as long as they live.
  class Idle;
  std::unique_ptr<Idle> OpenIdle(Random& random);

  const std::string& address() const { return address_; }

 private:
  struct Method {
    std::string path;  // "/moe.v1.ShardService/Exchange"
    const google::protobuf::Message* request;
  };
  const Method& AnyMethod(Random& random) const;
  grpc::Status Call(const std::string& path, const std::string& message,
                    grpc::ClientContext* context);

  const std::string address_;
  std::vector<Method> methods_;
  std::shared_ptr<grpc::Channel> channel_;
};

// A socket that is connected to host:port; closed with the object.
class Socket {
 public:
  explicit Socket(const std::string& address);
  ~Socket();
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  bool Send(const std::string& bytes) const;
  // Whether the other side closes it within a second.
  bool AwaitEnd() const;

 private:
  int fd_;
};

class Victim::Idle {
 public:
  Idle(std::shared_ptr<grpc::Channel> channel, const std::string& path,
       std::unique_ptr<Socket> socket);
  ~Idle();

 private:
  struct Stream;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Socket> socket_;
};

}  // namespace moe::hostile
