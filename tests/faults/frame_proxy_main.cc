// A proxy between workers and one expert server that understands messages: it delays, reorders and
// duplicates them, swallows replies, cuts streams, and delivers on a worker's next stream what was on its
// way on the one before, as a seed says. Or it holds a message back and says so, for a test to kill somebody.
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/program.h"
#include "common/io/file.h"
#include "common/net/channel.h"
#include "common/net/rpc_server.h"
#include "glog/logging.h"
#include "proto/moe/v1/expert.grpc.pb.h"

ABSL_FLAG(std::string, port_file, "", "Where to write the address listened on.");
ABSL_FLAG(std::string, target_file, "", "Where the server's address is to be read.");
ABSL_FLAG(uint64_t, seed, 1, "Of the schedule.");
ABSL_FLAG(double, delay, 0, "Probability that a message is late, by up to 30 ms.");
ABSL_FLAG(double, duplicate, 0, "That it comes once more, up to 100 ms later.");
ABSL_FLAG(double, cut, 0, "That the stream is cut when it comes.");
ABSL_FLAG(double, swallow, 0, "That a reply is swallowed and the stream cut later.");
ABSL_FLAG(int, quiet_after, 1 << 30, "Messages after which nothing is disturbed.");
ABSL_FLAG(
    std::string, hold, "",
    "What is held back: backward, close, evaluation (its forward frames), or applied "
    "(that a step was).");
ABSL_FLAG(uint64_t, hold_step, 0, "From which step, or batch of an evaluation, on.");

namespace moe {
namespace {

using Request = v1::ExchangeRequest;
using Response = v1::ExchangeResponse;

// What is to be done with a message; a function of the seed and of how many came before.
class Schedule {
 public:
  struct Fate {
    bool cut = false;
    bool swallow = false;
    bool again = false;
    absl::Duration late;
    absl::Duration once_more;
  };

  Fate Next(bool reply) {
    std::lock_guard lock(mutex_);
    Fate fate;
    if (++messages_ > absl::GetFlag(FLAGS_quiet_after)) return fate;
    const auto happens = [&](double p) {
      return std::bernoulli_distribution(p)(random_);
    };
    const auto up_to = [&](double ms) {
      return absl::Milliseconds(std::uniform_real_distribution<>(0, ms)(random_));
    };
    fate.cut = happens(absl::GetFlag(FLAGS_cut));
    fate.swallow = reply && happens(absl::GetFlag(FLAGS_swallow));
    fate.again = happens(absl::GetFlag(FLAGS_duplicate));
    if (happens(absl::GetFlag(FLAGS_delay))) fate.late = up_to(30);
    fate.once_more = fate.late + up_to(100);
    return fate;
  }

 private:
  std::mutex mutex_;
  std::mt19937_64 random_{absl::GetFlag(FLAGS_seed)};
  int messages_ = 0;
};

// Messages by when they are due, and the thread that passes them on.
template <typename Message>
class Lane {
 public:
  using Waiting = std::multimap<absl::Time, Message>;

  explicit Lane(std::function<bool(const Message&)> write)
      : write_(std::move(write)), thread_([this] { Run(); }) {}

  void Put(Message message, absl::Duration late) {
    std::lock_guard lock(mutex_);
    waiting_.emplace(absl::Now() + late, std::move(message));
    changed_.notify_one();
  }
  // What hasn't been passed on; drain: nothing, it is passed on first.
  Waiting Stop(bool drain) {
    {
      std::lock_guard lock(mutex_);
      stopped_ = true;
      drain_ = drain;
      changed_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
    return std::move(waiting_);
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (!stopped_ || (drain_ && !waiting_.empty())) {
      if (waiting_.empty()) {
        changed_.wait(lock);
        continue;
      }
      const absl::Duration early = waiting_.begin()->first - absl::Now();
      if (early > absl::ZeroDuration() && !stopped_) {
        changed_.wait_for(lock, absl::ToChronoNanoseconds(early));
        continue;
      }
      const auto next = waiting_.extract(waiting_.begin());
      lock.unlock();
      const bool written = write_(next.mapped());
      lock.lock();
      if (!written) return;
    }
  }

  const std::function<bool(const Message&)> write_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Waiting waiting_;
  bool stopped_ = false;
  bool drain_ = false;
  std::thread thread_;
};

class FrameProxy final : public v1::ShardService::Service {
 public:
  grpc::Status Exchange(grpc::ServerContext* context,
                        grpc::ServerReaderWriter<Response, Request>* worker) override {
    Request request;
    if (!worker->Read(&request)) return grpc::Status::OK;
    const std::string member = request.hello().member();
    const uint64_t generation = request.generation();
    const auto target = ReadFile(absl::GetFlag(FLAGS_target_file));
    if (!target.ok()) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no server");
    auto stub = v1::ShardService::NewStub(
        MakeChannel(std::string(absl::StripTrailingAsciiWhitespace(*target))));
    grpc::ClientContext up;
    for (const auto& [key, value] : context->client_metadata()) {
      const std::string name(key.data(), key.size());
      if (name == "user-agent" || name[0] == ':' || absl::StartsWith(name, "grpc-")) {
        continue;
      }
      up.AddMetadata(name, std::string(value.data(), value.size()));
    }
    auto server = stub->Exchange(&up);
    server->Write(request);
    Response response;
    if (!server->Read(&response)) return server->Finish();
    worker->Write(response);

    std::atomic<bool> cut = false;
    const auto cut_all = [&] {
      cut = true;
      context->TryCancel();
      up.TryCancel();
    };
    Lane<Request> to_server([&](const Request& r) { return server->Write(r); });
    Lane<Response> to_worker([&](const Response& r) { return worker->Write(r); });
    {
      // What was on its way on the stream before.
      std::lock_guard lock(mutex_);
      const Left left = std::exchange(left_[{member, generation}], {});
      for (const auto& [due, message] : left.requests) to_server.Put(message, {});
      for (const auto& [due, message] : left.responses) to_worker.Put(message, {});
      const size_t count = left.requests.size() + left.responses.size();
      if (count > 0) Say(absl::StrCat(member, ": ", count, " left on the last stream"));
    }
    std::thread replies([&] {
      Response reply;
      while (server->Read(&reply)) {
        if (Holds(generation, Held(reply))) {
          Say(absl::StrCat("holds that step ", reply.apply().step(), " was applied"));
          continue;
        }
        if (reply.has_failure()) {
          to_worker.Put(reply, {});
          continue;
        }
        Pass(std::move(reply), /*is_reply=*/true, to_worker, cut_all);
      }
      if (!cut) to_worker.Stop(/*drain=*/true);
      context->TryCancel();
    });
    bool holds = false;
    while (worker->Read(&request)) {
      const std::string held = Held(request);
      holds = holds || Holds(generation, !held.empty());
      if (!held.empty() && holds) Say("holds " + held);
      if (holds) continue;
      Pass(std::move(request), /*is_reply=*/false, to_server, cut_all);
    }
    const bool ended = !cut && !context->IsCancelled();
    auto requests = to_server.Stop(/*drain=*/ended);
    if (ended) {
      server->WritesDone();
    } else {
      up.TryCancel();
    }
    replies.join();
    auto responses = to_worker.Stop(/*drain=*/ended);
    if (!ended) {
      std::lock_guard lock(mutex_);
      left_[{member, generation}] = {std::move(requests), std::move(responses)};
    }
    const grpc::Status end = server->Finish();
    return cut ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut by the test") : end;
  }

 private:
  struct Left {
    Lane<Request>::Waiting requests;
    Lane<Response>::Waiting responses;
  };

  static void Say(const std::string& what) {
    std::printf("%s\n", what.c_str());
    std::fflush(stdout);
  }

  // In one generation only.
  bool Holds(uint64_t generation, bool held) {
    if (!held) return false;
    uint64_t none = 0;
    hold_generation_.compare_exchange_strong(none, generation);
    return hold_generation_ == generation;
  }

  static std::string Held(const Request& request) {
    const std::string what = absl::GetFlag(FLAGS_hold);
    const uint64_t from = absl::GetFlag(FLAGS_hold_step);
    if (what == "close" && request.has_close() && request.close().step() >= from) {
      return absl::StrCat("close step ", request.close().step());
    }
    if (what == "backward" && request.has_backward() &&
        request.backward().id().step() >= from) {
      return absl::StrCat("backward step ", request.backward().id().step());
    }
    if (what == "evaluation" && request.has_forward() &&
        request.forward().id().mode() == v1::MODE_EVALUATE &&
        request.forward().id().step() >= from) {
      return absl::StrCat("evaluation batch ", request.forward().id().step());
    }
    return "";
  }
  static bool Held(const Response& response) {
    return absl::GetFlag(FLAGS_hold) == "applied" && response.has_apply() &&
           response.apply().step() >= absl::GetFlag(FLAGS_hold_step);
  }

  template <typename Message>
  void Pass(Message message, bool is_reply, Lane<Message>& lane,
            const std::function<void()>& cut_all) {
    const Schedule::Fate fate = schedule_.Next(is_reply);
    if (fate.cut || fate.swallow) {
      Say(fate.cut ? "cuts a stream" : "swallows a reply and cuts the stream");
      // With what is still under way on it.
      if (fate.cut) lane.Put(std::move(message), absl::Milliseconds(50));
      cut_all();
      return;
    }
    if (fate.again) lane.Put(message, fate.once_more);
    lane.Put(std::move(message), fate.late);
  }

  Schedule schedule_;
  std::atomic<uint64_t> hold_generation_ = 0;
  std::mutex mutex_;
  std::map<std::pair<std::string, uint64_t>, Left> left_;
};

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
  moe::ParseCommandLine(argc, argv, "Disturbs streams between workers and a server.");
  moe::FrameProxy proxy;
  grpc::Service* const services[] = {&proxy};
  auto server = moe::RpcServer::Start("127.0.0.1:0", services);
  CHECK(server.ok()) << server.status();
  std::printf("seed %llu\n", static_cast<unsigned long long>(absl::GetFlag(FLAGS_seed)));
  std::fflush(stdout);
  const absl::Status written = moe::WriteFileAtomically(absl::GetFlag(FLAGS_port_file),
                                                        (*server)->address() + "\n");
  CHECK(written.ok()) << written;
  // Until it is killed.
  while (true) absl::SleepFor(absl::Hours(1));
}
