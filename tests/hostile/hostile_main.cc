// Attacks the processes of a running cluster, and prints how they answered: a line of JSON.
#include <signal.h>

#include <deque>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/program.h"
#include "nlohmann/json.hpp"
#include "tests/hostile/attacks.h"

ABSL_FLAG(std::string, coordinator, "", "host:port of the coordinator");
ABSL_FLAG(std::vector<std::string>, servers, {}, "host:port of each expert server");
ABSL_FLAG(int, requests, 1000, "How many attacks.");
ABSL_FLAG(uint64_t, seed, 1, "Of everything that is drawn.");
ABSL_FLAG(absl::Duration, limit, absl::Minutes(5), "Stops after that time.");

namespace moe::hostile {
namespace {

// So many stay open at a time.
constexpr size_t kIdle = 60;
constexpr size_t kLarge = 4 << 20;
constexpr size_t kBomb = 256 << 20;
constexpr int kMostBombs = 10;

class Attacker {
 public:
  explicit Attacker(uint64_t seed) : random_(seed) {}

  void Add(const std::string& address, const std::vector<std::string>& services) {
    victims_.push_back(std::make_unique<Victim>(address, services));
  }

  void Attack() {
    Victim& victim = *victims_[Pick(random_, victims_.size())];
    // Out of a thousand; those that move much, or wait, are rare.
    const size_t choice = Pick(random_, 1000);
    if (choice < 250) {
      Note("random bytes", victim.RandomCall(random_));
    } else if (choice < 600) {
      Note("odd message", victim.OddCall(random_));
    } else if (choice < 650) {
      Note("truncated message", victim.TruncatedCall(random_));
    } else if (choice < 680) {
      Note("unknown method", victim.UnknownMethod(random_));
    } else if (choice < 850) {
      Note("stream", victim.Stream(random_));
    } else if (choice < 980) {
      Note("dropped stream", victim.DroppedStream(random_));
    } else if (choice < 988) {
      Note("metadata of 100 kB", victim.HugeMetadata(random_, 100'000));
    } else if (choice < 990) {
      Note("message of 4 MiB", victim.Zeros(random_, kLarge, false));
    } else if (choice == 990 && bombs_ < kMostBombs) {
      ++bombs_;
      Note("bomb", victim.Zeros(random_, kBomb, true));
    } else if (choice < 994) {
      ++counts_["garbage"][victim.Garbage(random_) ? "cut off" : "endured"];
    } else {
      if (idle_.size() == kIdle) idle_.pop_front();
      idle_.push_back(victim.OpenIdle(random_));
      ++counts_["idle"]["opened"];
    }
  }

  const std::map<std::string, std::map<std::string, int>>& counts() const {
    return counts_;
  }

 private:
  void Note(const std::string& attack, const grpc::Status& status) {
    ++counts_[attack][absl::StrCat(static_cast<int>(status.error_code()))];
  }

  Random random_;
  std::vector<std::unique_ptr<Victim>> victims_;
  std::deque<std::unique_ptr<Victim::Idle>> idle_;
  int bombs_ = 0;
  // By attack and status code.
  std::map<std::string, std::map<std::string, int>> counts_;
};

int Run() {
  signal(SIGPIPE, SIG_IGN);
  Attacker attacker(absl::GetFlag(FLAGS_seed));
  // The operator's service does what anybody asks who reaches it; so does no attack there show anything.
  attacker.Add(absl::GetFlag(FLAGS_coordinator),
               {"moe.v1.CoordinatorService", "moe.v1.ClusterStatusService"});
  for (const std::string& server : absl::GetFlag(FLAGS_servers)) {
    attacker.Add(server, {"moe.v1.ShardService", "moe.v1.ServerStatusService"});
  }
  const absl::Time end = absl::Now() + absl::GetFlag(FLAGS_limit);
  int made = 0;
  for (; made < absl::GetFlag(FLAGS_requests) && absl::Now() < end; ++made) {
    attacker.Attack();
  }
  std::cout << nlohmann::json{{"made", made}, {"counts", attacker.counts()}} << std::endl;
  return 0;
}

}  // namespace
}  // namespace moe::hostile

int main(int argc, char** argv) {
  moe::ParseCommandLine(argc, argv,
                        "Attacks the processes of a running cluster.\n\n"
                        "  hostile --coordinator HOST:PORT --servers HOST:PORT,... "
                        "[--requests N] [--seed N]");
  return moe::hostile::Run();
}
