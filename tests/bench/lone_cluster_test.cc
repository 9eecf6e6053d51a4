#include "tests/bench/lone_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "common/job/job_file.h"
#include "tests/cluster/local_cluster.h"
#include "worker/data/prepare_text.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

constexpr char kJob[] = R"(
  name: "lone" seed: 3
  model {
    d_model: 8
    layers { lstm { hidden: 8 } residual: true }
    layers {
      moe { experts: 4 k: 2 hidden: 8 groups: 2 gating: GATING_NOISY_TOP_K w_load: 0.1 }
    }
  }
  optimizer { adam {} schedule { base_rate: 0.01 constant {} } }
  training { replicas: 2 waves: 2 lanes: 4 unroll: 5 steps: 1000000 }
)";

class LoneClusterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<v1::Job> job = ParseJob(kJob, "lone_cluster_test");
    ASSERT_TRUE(job.ok()) << job.status();
    options_.job = *job;
    const std::string text = ::testing::TempDir() + "/text.txt";
    std::ofstream(text) << SyntheticText(1, 200);
    PrepareOptions prepare;
    prepare.text = text;
    prepare.out = options_.data = ::testing::TempDir() + "/data";
    std::ostringstream progress;
    const auto prepared = PrepareText(prepare, progress);
    ASSERT_TRUE(prepared.ok()) << prepared.status();
  }
  LoneClusterOptions options_;
};

TEST_F(LoneClusterTest, TakesStepsWhenItMay) {
  Pace pace;
  const auto cluster = LoneCluster::Start(options_, pace);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  for (const int64_t steps : {1, 5}) {
    const absl::StatusOr<absl::Duration> took = pace.Take(steps, absl::Seconds(60));
    ASSERT_TRUE(took.ok()) << took.status();
    EXPECT_GT(*took, absl::ZeroDuration());
  }
}

TEST_F(LoneClusterTest, EndsInTheMiddleOfTraining) {
  Pace pace;
  {
    const auto cluster = LoneCluster::Start(options_, pace);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    ASSERT_TRUE(pace.Take(1, absl::Seconds(60)).ok());
  }
  EXPECT_THAT(pace.Take(1, absl::Seconds(60)).status().message(),
              HasSubstr("the cluster is over"));
}

TEST_F(LoneClusterTest, RefusesAFolderWithoutText) {
  options_.data += "/nothing";
  Pace pace;
  EXPECT_THAT(LoneCluster::Start(options_, pace).status().message(),
              HasSubstr(options_.data));
}

TEST(Pace, AStepThatIsNotTakenIsNotWaitedFor) {
  Pace pace;
  EXPECT_THAT(pace.Take(1, absl::Milliseconds(10)).status().message(),
              HasSubstr("wasn't taken in time"));
}

}  // namespace
}  // namespace moe
