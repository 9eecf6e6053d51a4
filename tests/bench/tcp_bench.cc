// Messages of 1 MiB over raw TCP on loopback: one way, and there and back with four in flight. What a
// transport can be measured with.
#include <arpa/inet.h>
#include <benchmark/benchmark.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <semaphore>
#include <string>
#include <thread>

namespace moe {
namespace {

constexpr size_t kBytes = size_t{1} << 20;
constexpr int64_t kMessages = 64, kInFlight = 4;

[[noreturn]] void Die(const char* what) {
  std::perror(what);
  std::exit(1);
}

// False at the stream's end.
bool ReadMessage(int socket, char* bytes) {
  for (size_t at = 0; at < kBytes;) {
    const ssize_t got = read(socket, bytes + at, kBytes - at);
    if (got < 0) Die("read");
    if (got == 0) return false;
    at += got;
  }
  return true;
}

void WriteMessage(int socket, const char* bytes) {
  for (size_t at = 0; at < kBytes;) {
    const ssize_t put = write(socket, bytes + at, kBytes - at);
    if (put <= 0) Die("write");
    at += put;
  }
}

// Two ends of a connection over the loopback interface.
class Connection {
 public:
  Connection() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    if (listener < 0 || bind(listener, any, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, any, &size) != 0) {
      Die("listen");
    }
    client_ = socket(AF_INET, SOCK_STREAM, 0);
    if (client_ < 0 || connect(client_, any, size) != 0) Die("connect");
    server_ = accept(listener, nullptr, nullptr);
    if (server_ < 0) Die("accept");
    close(listener);
    for (const int end : {client_, server_}) {
      const int on = 1;
      setsockopt(end, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
  }
  ~Connection() {
    close(client_);
    close(server_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  int client() const { return client_; }
  int server() const { return server_; }

 private:
  int client_ = -1;
  int server_ = -1;
};

void SetRate(benchmark::State& state) {
  state.counters["GB/s"] =
      benchmark::Counter(static_cast<double>(kMessages * kBytes) / 1e9,
                         benchmark::Counter::kIsIterationInvariantRate);
}

void OneWay(benchmark::State& state) {
  const Connection connection;
  std::string out(kBytes, 'x'), in(kBytes, 'x'), answer(kBytes, 'x');
  std::thread server([&] {
    for (int64_t i = 0; ReadMessage(connection.server(), in.data()); ++i) {
      // That all have come.
      if ((i + 1) % kMessages == 0 && write(connection.server(), "x", 1) != 1)
        Die("write");
    }
  });
  for (auto _ : state) {
    for (int64_t i = 0; i < kMessages; ++i) WriteMessage(connection.client(), out.data());
    if (read(connection.client(), answer.data(), 1) != 1) Die("read");
  }
  shutdown(connection.client(), SHUT_WR);
  server.join();
  SetRate(state);
}
BENCHMARK(OneWay)->UseRealTime()->MinTime(0.3);

// A server that sends back what it reads, and a client that writes and reads on a thread each.
void ThereAndBack(benchmark::State& state) {
  const Connection connection;
  std::string out(kBytes, 'x'), in(kBytes, 'x'), back(kBytes, 'x');
  std::counting_semaphore<kInFlight> may_send(kInFlight);
  std::thread server([&] {
    while (ReadMessage(connection.server(), in.data())) {
      WriteMessage(connection.server(), in.data());
    }
  });
  for (auto _ : state) {
    std::thread sender([&] {
      for (int64_t i = 0; i < kMessages; ++i) {
        may_send.acquire();
        WriteMessage(connection.client(), out.data());
      }
    });
    for (int64_t i = 0; i < kMessages; ++i) {
      if (!ReadMessage(connection.client(), back.data())) Die("read");
      may_send.release();
    }
    sender.join();
  }
  shutdown(connection.client(), SHUT_WR);
  server.join();
  SetRate(state);
}
BENCHMARK(ThereAndBack)->UseRealTime()->MinTime(0.3);

}  // namespace
}  // namespace moe
