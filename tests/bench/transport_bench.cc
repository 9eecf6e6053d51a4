// Messages of 1 MiB of rows, there and back, four in flight: through RemoteExperts, a ShardStream, and what
// a server does with them before and after its experts; beside it raw TCP on loopback doing the same with
// bytes. One iteration is one message each way.
#include <benchmark/benchmark.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/remote_experts.h"
#include "client/routing_plan.h"
#include "client/server_set.h"
#include "common/kernels/backend.h"
#include "common/net/checksum.h"
#include "common/net/exchange.h"
#include "common/net/rpc_server.h"
#include "glog/logging.h"
#include "proto/moe/v1/expert.pb.h"
#include "server/frames.h"
#include "server/reply_stream.h"
#include "tests/bench/allocation_count.h"

namespace moe {
namespace {

constexpr int64_t kRows = 512;
constexpr int64_t kWidth = 512;
constexpr size_t kBytes = kRows * kWidth * sizeof(float);
constexpr int64_t kInFlight = 4;
constexpr uint64_t kGeneration = 1;
constexpr char kServer[] = "server/s0";

// A server whose experts do nothing.
class EchoServer final : public ExchangeService {
 public:
  explicit EchoServer(const std::string& listen) {
    std::string error;
    backend_ = MakeCpuBackend(1, &error);
    CHECK(backend_ != nullptr) << error;
    shape_ = {
        .in = kWidth, .out = kWidth, .experts = 1, .experts_per_group = 1, .groups = {0}};
    grpc::Service* const services[] = {this};
    auto server = RpcServer::Start(listen, services);
    CHECK(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  const std::string& address() const { return server_->address(); }

  grpc::Status Exchange(grpc::ServerContext*, ReplyStream::Stream* stream) override {
    ReplyStream replies(stream, [](absl::Duration) {});
    grpc::ByteBuffer bytes;
    while (stream->Read(&bytes)) {
      const auto received = DecodeRequest(bytes);
      CHECK(received.ok()) << received.status();
      const v1::ExchangeRequest& request = received->message;
      auto response = std::make_shared<v1::ExchangeResponse>();
      response->set_generation(kGeneration);
      if (request.has_hello()) {
        response->mutable_hello()->set_server(kServer);
        response->mutable_hello()->set_incarnation(1);
      } else {
        Answer(request.forward(), received->payloads, response->mutable_forward());
      }
      Seal(response.get());
      replies.Send(std::move(response));
    }
    replies.Finish();
    return grpc::Status::OK;
  }

 private:
  void Answer(const v1::ForwardRequest& request, const Payloads& payloads,
              v1::ForwardResponse* response) {
    *response->mutable_id() = request.id();
    for (const v1::ForwardFrame& frame : request.frames()) {
      const auto input = DecodeForward(*backend_, shape_, v1::MODE_EVALUATE, frame,
                                       payloads.Of(frame, frame.x()));
      CHECK(input.ok()) << input.status();
      v1::ForwardReply& reply = *response->add_replies();
      reply.set_replica(frame.replica());
      v1::GroupOutput& output = *reply.add_groups();
      output.mutable_y()->assign(reinterpret_cast<const char*>(input->x.data()), kBytes);
    }
  }

  std::unique_ptr<Backend> backend_;
  LayerShape shape_;
  std::unique_ptr<RpcServer> server_;
};

class Client {
 public:
  explicit Client(const std::string& address) {
    servers_.timeout = absl::Seconds(30);
    servers_.map.layouts[{1, 0}] = {.in = kWidth,
                                    .out = kWidth,
                                    .experts = 1,
                                    .groups = 1,
                                    .servers = 1,
                                    .server_of_group = {0},
                                    .standby_of_group = {}};
    auto stream = OpenShardStream({.server = kServer,
                                   .address = address,
                                   .member = "worker/w0",
                                   .incarnation = 1,
                                   .generation = kGeneration,
                                   .timeout = absl::Seconds(30)});
    CHECK(stream.ok()) << stream.status();
    servers_.streams.push_back(*std::move(stream));
    std::vector<int32_t> offset;
    for (int32_t t = 0; t <= kRows; ++t) offset.push_back(t);
    plan_ = std::make_unique<RoutingPlan>(servers_.map.layouts[{1, 0}], offset,
                                          std::vector<int32_t>(kRows, 0),
                                          std::vector<float>(kRows, 1));
    for (int64_t i = 0; i < kRows * kWidth; ++i) x_.push_back(static_cast<float>(i));
    y_.resize(x_.size());
  }

  void Send() {
    ForwardCall call;
    call.plan = plan_.get();
    call.x = x_.data();
    const absl::Status status = experts_.SendForward(Id(sent_++), {&call, 1});
    CHECK(status.ok()) << status;
  }
  void Await() {
    ForwardResult result;
    result.plan = plan_.get();
    result.y = y_.data();
    const absl::Status status =
        experts_.AwaitForward(Id(received_++), {&result, 1}, nullptr);
    CHECK(status.ok()) << status;
  }
  void CheckRows() const { CHECK(x_ == y_); }

 private:
  static v1::FrameId Id(uint64_t number) {
    v1::FrameId id;
    id.set_step(number);
    id.set_layer(1);
    id.set_mode(v1::MODE_EVALUATE);
    return id;
  }

  ServerSet servers_;
  RemoteExperts experts_{servers_};
  std::unique_ptr<RoutingPlan> plan_;
  std::vector<float> x_, y_;
  uint64_t sent_ = 0;
  uint64_t received_ = 0;
};

// Seconds of all threads.
double CpuTime() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// cpu: seconds that the iterations took.
void Report(benchmark::State& state, double cpu) {
  const auto count = static_cast<double>(state.iterations());
  state.counters["messages/s"] = benchmark::Counter(count, benchmark::Counter::kIsRate);
  state.counters["CPU us"] = 1e6 * cpu / count;
}

void Exchange(benchmark::State& state, const std::string& listen) {
  static auto* const servers =
      new std::map<std::string,
                   std::pair<std::unique_ptr<EchoServer>, std::unique_ptr<Client>>>;
  auto& [server, client] = (*servers)[listen];
  if (server == nullptr) {
    server = std::make_unique<EchoServer>(listen);
    client = std::make_unique<Client>(server->address());
  }
  for (int i = 0; i < kInFlight; ++i) client->Send();
  const AllocationCount before = CountAllocations();
  const double cpu_before = CpuTime();
  for (auto _ : state) {
    client->Await();
    client->Send();
  }
  const double cpu = CpuTime() - cpu_before;
  const AllocationCount after = CountAllocations();
  for (int i = 0; i < kInFlight; ++i) client->Await();
  client->CheckRows();
  Report(state, cpu);
  const double count = static_cast<double>(state.iterations());
  state.counters["allocations"] =
      static_cast<double>(after.allocations - before.allocations) / count;
  state.counters["allocated KiB"] =
      static_cast<double>(after.bytes - before.bytes) / 1024 / count;
}

void Tcp(benchmark::State& state) { Exchange(state, "127.0.0.1:0"); }
void Unix(benchmark::State& state) {
  Exchange(state, "unix:/tmp/transport_bench." + std::to_string(getpid()));
}

// ---- raw TCP

bool ReadAll(int fd, char* out, size_t left) {
  while (left > 0) {
    const ssize_t got = read(fd, out, left);
    if (got <= 0) return false;
    out += got;
    left -= got;
  }
  return true;
}

bool WriteAll(int fd, const char* in, size_t left) {
  while (left > 0) {
    const ssize_t put = send(fd, in, left, MSG_NOSIGNAL);
    if (put <= 0) return false;
    in += put;
    left -= put;
  }
  return true;
}

class RawTcp {
 public:
  RawTcp() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    CHECK_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
    client_ = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(connect(client_, reinterpret_cast<sockaddr*>(&address), size), 0);
    server_ = accept(listener, nullptr, nullptr);
    CHECK_GE(server_, 0);
    close(listener);
    for (const int fd : {client_, server_}) {
      const int yes = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    }
    echo_ = std::thread([this] {
      std::vector<char> buffer(kBytes);
      while (ReadAll(server_, buffer.data(), kBytes) &&
             WriteAll(server_, buffer.data(), kBytes)) {
      }
    });
  }
  ~RawTcp() {
    shutdown(client_, SHUT_RDWR);
    echo_.join();
    close(client_);
    close(server_);
  }

  int client() const { return client_; }

 private:
  int client_ = -1;
  int server_ = -1;
  std::thread echo_;
};

void Raw(benchmark::State& state) {
  RawTcp tcp;
  std::vector<char> out(kBytes, 'x'), in(kBytes);
  // A writer of its own, as every side of gRPC's has.
  absl::Mutex mutex;
  int64_t wanted = kInFlight, written = 0;
  bool over = false;
  std::thread writer([&] {
    while (true) {
      {
        absl::MutexLock lock(&mutex);
        const auto ready = [&] { return over || written < wanted; };
        mutex.Await(absl::Condition(&ready));
        if (written == wanted) return;
        ++written;
      }
      CHECK(WriteAll(tcp.client(), out.data(), kBytes));
    }
  });
  const double cpu_before = CpuTime();
  for (auto _ : state) {
    CHECK(ReadAll(tcp.client(), in.data(), kBytes));
    absl::MutexLock lock(&mutex);
    ++wanted;
  }
  const double cpu = CpuTime() - cpu_before;
  {
    absl::MutexLock lock(&mutex);
    over = true;
  }
  for (int i = 0; i < kInFlight; ++i) CHECK(ReadAll(tcp.client(), in.data(), kBytes));
  writer.join();
  Report(state, cpu);
}

BENCHMARK(Raw)->Name("TransportRawTcp")->UseRealTime()->MinTime(0.5);
BENCHMARK(Tcp)->Name("TransportTcp")->UseRealTime()->MinTime(0.5);
BENCHMARK(Unix)->Name("TransportUnix")->UseRealTime()->MinTime(0.5);

}  // namespace
}  // namespace moe
