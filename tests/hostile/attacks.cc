#include "tests/hostile/attacks.h"

#include <arpa/inet.h>
#include <glog/logging.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/generic/generic_stub.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/protocol.h"
#include "common/net/checksum.h"
#include "common/net/introduction.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/expert.pb.h"
#include "proto/moe/v1/status.pb.h"

namespace moe::hostile {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(5);
constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

std::chrono::system_clock::time_point Deadline() {
  return absl::ToChronoTime(absl::Now() + kPatience);
}

grpc::ByteBuffer BufferOf(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::shared_ptr<grpc::Channel> ChannelTo(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_METADATA_SIZE, 1 << 24);
  arguments.SetMaxSendMessageSize(-1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                   arguments);
}

// A bidirectional stream of any bytes, whose operations are waited for one by one.
class RawStream {
 public:
  RawStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
            grpc::ClientContext* context)
      : stub_(channel), stream_(stub_.PrepareCall(context, path, &queue_)) {
    stream_->StartCall(this);
    open_ = Await();
  }
  ~RawStream() {
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }
  bool Write(const std::string& bytes) {
    if (!open_) return false;
    stream_->Write(BufferOf(bytes), this);
    return Await();
  }
  grpc::Status Finish() {
    grpc::Status status;
    if (open_) {
      stream_->WritesDone(this);
      Await();
      // The status comes after what has been answered.
      grpc::ByteBuffer answer;
      do {
        stream_->Read(&answer, this);
      } while (Await());
    }
    stream_->Finish(&status, this);
    Await();
    return status;
  }

 private:
  bool Await() {
    void* tag = nullptr;
    bool ok = false;
    CHECK(queue_.Next(&tag, &ok) && tag == this);
    return ok;
  }

  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  bool open_ = false;
};

std::string FrameHeader(Random& random, size_t length) {
  std::string header;
  header += static_cast<char>(length >> 16);
  header += static_cast<char>(length >> 8);
  header += static_cast<char>(length);
  header += static_cast<char>(Pick(random, 12));  // type
  header += static_cast<char>(random());          // flags
  for (int i = 0; i < 4; ++i) header += static_cast<char>(Pick(random, i == 3 ? 8 : 2));
  return header;
}

}  // namespace

Victim::Victim(std::string address, std::vector<std::string> services)
    : address_(std::move(address)), channel_(ChannelTo(address_)) {
  // A file of which nothing is used isn't linked, and so isn't in the pool.
  for (const auto* used :
       {v1::RegisterRequest::descriptor(), v1::GetClusterStatusRequest::descriptor(),
        v1::ExchangeRequest::descriptor()}) {
    CHECK(used != nullptr);
  }
  const auto& pool = *google::protobuf::DescriptorPool::generated_pool();
  auto& factory = *google::protobuf::MessageFactory::generated_factory();
  for (const std::string& name : services) {
    const google::protobuf::ServiceDescriptor* service = pool.FindServiceByName(name);
    CHECK(service != nullptr) << name;
    for (int i = 0; i < service->method_count(); ++i) {
      methods_.push_back({absl::StrCat("/", name, "/", service->method(i)->name()),
                          factory.GetPrototype(service->method(i)->input_type())});
    }
  }
}

const Victim::Method& Victim::AnyMethod(Random& random) const {
  return methods_[Pick(random, methods_.size())];
}

grpc::Status Victim::Call(const std::string& path, const std::string& message,
                          grpc::ClientContext* context) {
  context->set_deadline(Deadline());
  grpc::GenericStub stub(channel_);
  grpc::CompletionQueue queue;
  grpc::ByteBuffer response;
  grpc::Status status;
  const auto call = stub.PrepareUnaryCall(context, path, BufferOf(message), &queue);
  call->StartCall();
  call->Finish(&response, &status, this);
  void* tag = nullptr;
  bool ok = false;
  CHECK(queue.Next(&tag, &ok) && tag == this);
  return status;
}

grpc::Status Victim::RandomCall(Random& random) {
  grpc::ClientContext context;
  return Call(AnyMethod(random).path, RandomBytes(random, Pick(random, 2000)), &context);
}

grpc::Status Victim::OddCall(Random& random) {
  const Method& method = AnyMethod(random);
  const std::unique_ptr<google::protobuf::Message> request(method.request->New());
  FillOddly(random, request.get());
  grpc::ClientContext context;
  return Call(method.path, request->SerializeAsString(), &context);
}

grpc::Status Victim::TruncatedCall(Random& random) {
  const Method& method = AnyMethod(random);
  const std::unique_ptr<google::protobuf::Message> request(method.request->New());
  FillOddly(random, request.get());
  std::string bytes = request->SerializeAsString();
  bytes.resize(Pick(random, bytes.size() + 1));
  grpc::ClientContext context;
  return Call(method.path, bytes, &context);
}

grpc::Status Victim::UnknownMethod(Random& random) {
  grpc::ClientContext context;
  return Call(absl::StrCat("/moe.v1.", Pick(random, 2) == 0 ? "ShardService/" : "None/",
                           random()),
              "", &context);
}

grpc::Status Victim::HugeMetadata(Random& random, size_t bytes) {
  grpc::ClientContext context;
  context.AddMetadata(Pick(random, 2) == 0 ? "switchyard-caller" : "x",
                      std::string(bytes, 'm'));
  return Call(AnyMethod(random).path, "", &context);
}

grpc::Status Victim::Zeros(Random& random, size_t bytes, bool compressed) {
  grpc::ClientContext context;
  if (compressed) context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  return Call(AnyMethod(random).path, std::string(bytes, '\0'), &context);
}

grpc::Status Victim::Stream(Random& random) {
  grpc::ClientContext context;
  context.set_deadline(Deadline());
  const std::string name = OddName(random).substr(0, 100);
  // Metadata of this form must be printable, or gRPC's own client ends.
  const bool printable = std::all_of(name.begin(), name.end(), absl::ascii_isgraph);
  if (printable && Pick(random, 4) > 0) Introduce({name, OddNumber(random)}, &context);
  RawStream stream(channel_, AnyMethod(random).path, &context);
  v1::ExchangeRequest request;
  request.set_generation(1);
  request.mutable_hello()->set_member(name);
  request.mutable_hello()->set_protocol_version(kProtocolVersion);
  for (size_t left = 1 + Pick(random, 4); left > 0; --left) {
    if (Pick(random, 2) == 0) Seal(&request);
    if (!stream.Write(Pick(random, 5) == 0 ? RandomBytes(random, Pick(random, 500))
                                           : request.SerializeAsString())) {
      break;
    }
    request.Clear();
    FillOddly(random, &request);
    if (Pick(random, 2) == 0) request.set_generation(1);
  }
  return stream.Finish();
}

grpc::Status Victim::DroppedStream(Random& random) {
  grpc::ClientContext context;
  context.set_deadline(Deadline());
  RawStream stream(channel_, AnyMethod(random).path, &context);
  if (Pick(random, 2) == 0) stream.Write(RandomBytes(random, Pick(random, 100)));
  context.TryCancel();
  return stream.Finish();
}

bool Victim::Garbage(Random& random) {
  const Socket socket(address_);
  switch (Pick(random, 4)) {
    case 0:
      socket.Send(RandomBytes(random, 1 + Pick(random, 3000)));
      break;
    case 1:
      socket.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
      break;
    default: {
      // A good beginning, then frames that make no sense.
      std::string bytes = kPreface;
      bytes += std::string("\0\0\0\4\0\0\0\0\0", 9);  // empty settings
      for (size_t frames = Pick(random, 20); frames > 0; --frames) {
        const size_t length = Pick(random, 200);
        bytes +=
            FrameHeader(random, Pick(random, 10) == 0 ? random() % (1 << 24) : length);
        bytes += RandomBytes(random, length);
      }
      socket.Send(bytes);
      if (Pick(random, 2) == 0) socket.Send(RandomBytes(random, 20000));
    }
  }
  return socket.AwaitEnd();
}

std::unique_ptr<Victim::Idle> Victim::OpenIdle(Random& random) {
  if (Pick(random, 2) == 0) {
    auto socket = std::make_unique<Socket>(address_);
    const std::string preface = kPreface;
    socket->Send(preface.substr(0, Pick(random, preface.size())));
    return std::make_unique<Idle>(nullptr, "", std::move(socket));
  }
  return std::make_unique<Idle>(ChannelTo(address_), AnyMethod(random).path, nullptr);
}

// ---------------------------------------------------------------- sockets

Socket::Socket(const std::string& address)
    : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  CHECK_GE(fd_, 0);
  const size_t colon = address.rfind(':');
  int port = 0;
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  CHECK(absl::SimpleAtoi(address.substr(colon + 1), &port)) << address;
  to.sin_port = htons(static_cast<uint16_t>(port));
  CHECK_EQ(inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr), 1)
      << address;
  if (connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) {
    PLOG(WARNING) << "cannot connect to " << address;
  }
}

Socket::~Socket() { close(fd_); }

bool Socket::Send(const std::string& bytes) const {
  return send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

bool Socket::AwaitEnd() const {
  const absl::Time deadline = absl::Now() + absl::Seconds(1);
  while (absl::Now() < deadline) {
    pollfd entry = {fd_, POLLIN, 0};
    if (poll(&entry, 1, 100) < 1) continue;
    char buffer[4096];
    if (recv(fd_, buffer, sizeof(buffer), 0) <= 0) return true;
  }
  return false;
}

struct Victim::Idle::Stream {
  Stream(const std::shared_ptr<grpc::Channel>& channel, const std::string& path)
      : raw(channel, path, &context) {}
  grpc::ClientContext context;
  RawStream raw;
};

Victim::Idle::Idle(std::shared_ptr<grpc::Channel> channel, const std::string& path,
                   std::unique_ptr<Socket> socket)
    : socket_(std::move(socket)) {
  if (channel != nullptr) stream_ = std::make_unique<Stream>(channel, path);
}

Victim::Idle::~Idle() {
  if (stream_ == nullptr) return;
  stream_->context.TryCancel();
  stream_->raw.Finish();
}

}  // namespace moe::hostile
