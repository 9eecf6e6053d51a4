// Workers that talk at the same time, and others that ask how it goes: the same bits. Of most use
// under ThreadSanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/made_step.h"
#include "tests/server/shard_host_fixture.h"

namespace moe {
namespace {

using testing::kWaves;

constexpr uint64_t kSteps = 4;

class ConcurrentHostTest : public testing::ShardHostTest {
 protected:
  // All of a worker's steps; its messages go as soon as they may.
  void Work(const std::string& worker, const std::vector<uint32_t>& replicas) {
    const auto send = [&](v1::ExchangeRequest request) {
      const absl::Status status = Send(worker, std::move(request));
      EXPECT_TRUE(status.ok()) << status;
    };
    for (uint64_t step = 0; step < kSteps; ++step) {
      send(testing::PullOf({"dense/0"}, step));
      EXPECT_EQ(Next(worker).pull().version(), step);
      for (uint32_t w = 0; w < kWaves; ++w) send(testing::ForwardOf(step, w, replicas));
      for (uint32_t w = 0; w < kWaves; ++w) EXPECT_TRUE(Next(worker).has_forward());
      // What is sent again is answered again.
      send(testing::ForwardOf(step, 0, replicas));
      EXPECT_EQ(Next(worker).forward().id().wave(), 0u);
      for (uint32_t w = 0; w < kWaves; ++w) send(testing::BackwardOf(step, w, replicas));
      for (uint32_t w = 0; w < kWaves; ++w) EXPECT_TRUE(Next(worker).has_backward());
      send(testing::CloseOf(plan_, step, replicas));
      EXPECT_EQ(Next(worker).close().version(), step + 1);
    }
  }
};

TEST_F(ConcurrentHostTest, WorkersAndWhoAsksHowItGoes) {
  for (uint64_t step = 0; step < kSteps; ++step) Step(step);
  const testing::Digests expected = DigestsOf();

  Load(testing::MadeState(job_), 2);
  std::atomic<bool> done = false;
  std::thread asks([&] {
    while (!done) {
      EXPECT_LE(host_->Status().shards(0).version(), kSteps);
      (void)host_->Digests();  // fails if a step was taken meanwhile
      host_->AddMoving(absl::Milliseconds(1));
    }
  });
  std::vector<std::thread> workers;
  for (const auto& [worker, replicas] : testing::Workers()) {
    workers.emplace_back(
        [&, worker = worker, replicas = replicas] { Work(worker, replicas); });
  }
  for (std::thread& worker : workers) worker.join();
  done = true;
  asks.join();
  EXPECT_EQ(DigestsOf(), expected);
}

}  // namespace
}  // namespace moe
