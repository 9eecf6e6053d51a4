// Members, a clock and people who ask, all at the same time. Of most use under ThreadSanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tests/coordinator/controller_fixture.h"

namespace moe {
namespace {

using ConcurrentControllerTest = ControllerFixture;

// Its own thread each: heartbeats, the workers' steps and evaluations, the clock, and status.
TEST_F(ConcurrentControllerTest, AJobToItsEnd) {
  constexpr uint64_t kSteps = 4;  // of the job
  options_.heartbeat = absl::Milliseconds(1);
  options_.report_timeout = absl::InfiniteDuration();
  // A thread may wait for its turn while the clock goes on.
  options_.lease = absl::Hours(1);
  StartJob();
  // Made here: the fixture isn't for several threads.
  std::map<std::string, v1::HeartbeatRequest> beats;
  for (const auto& [id, incarnation] : incarnations_) {
    beats[id].set_member(id);
    beats[id].set_incarnation(incarnation);
    beats[id].set_ready_generation(1);
    beats[id].set_seen_generation(1);
  }
  std::map<std::string, std::vector<v1::ReportStepRequest>> steps;
  std::map<std::string, v1::ReportEvaluationRequest> evaluations;
  std::map<std::string, v1::FinishWorkRequest> finishes;
  for (const char* worker : {"worker/a", "worker/b"}) {
    for (uint64_t step = 0; step < kSteps; ++step) {
      steps[worker].push_back(StepReport(worker, step));
    }
    evaluations[worker] = EvaluationReport(worker, kSteps, v1::SPLIT_TEST);
    finishes[worker] = Finish(worker);
  }

  std::atomic<bool> over = false;
  std::vector<std::thread> background;
  for (const auto& [id, request] : beats) {
    background.emplace_back([&, request = request] {
      while (!over) {
        EXPECT_TRUE(controller_->Heartbeat(request, NeverCancelled()).ok());
      }
    });
  }
  background.emplace_back([&] {
    while (!over) {
      {
        absl::MutexLock lock(&mutex_);
        now_ += absl::Milliseconds(1);
      }
      controller_->Tick();
    }
  });
  background.emplace_back([&] {
    while (!over) EXPECT_EQ(controller_->GetClusterStatus().members_size(), 4);
  });
  std::vector<std::thread> workers;
  for (const auto& [id, reports] : steps) {
    workers.emplace_back([&, id = id] {
      for (const v1::ReportStepRequest& report : steps.at(id)) {
        const auto response = controller_->ReportStep(report);
        EXPECT_TRUE(response.ok()) << response.status();
      }
      const auto evaluated =
          controller_->ReportEvaluation(evaluations.at(id), NeverCancelled());
      ASSERT_TRUE(evaluated.ok()) << evaluated.status();
      EXPECT_GT(evaluated->perplexity(), 1);
      const absl::Status finished = controller_->FinishWork(finishes.at(id));
      EXPECT_TRUE(finished.ok()) << finished;
    });
  }
  for (std::thread& worker : workers) worker.join();
  over = true;
  for (std::thread& thread : background) thread.join();
  EXPECT_EQ(State().phase(), v1::PHASE_FINISHED);
  EXPECT_EQ(controller_->GetClusterStatus().progress().step(), kSteps);
}

}  // namespace
}  // namespace moe
