#include "server/coordinator/run_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/coordinator/small_job.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

TEST(RunOptionsTest, RefusesImpossibleClusters) {
  RunOptions possible;
  possible.job = SmallJob();
  RunOptions options = possible;
  EXPECT_TRUE(CompleteRunOptions(options).ok());
  EXPECT_TRUE(options.now && options.print);

  const auto expect_refused = [](RunOptions refused, const std::string& why) {
    const absl::Status status = CompleteRunOptions(refused);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  options = possible;
  options.servers = 0;
  expect_refused(options, "--servers");
  options = possible;
  options.workers = 0;
  expect_refused(options, "--workers");
  options.workers = 4;
  expect_refused(options, "training.replicas is 3");
  options = possible;
  options.copies = 2;
  expect_refused(options, "--servers must be at least 2, not 1");
  options.servers = 2;
  EXPECT_TRUE(CompleteRunOptions(options).ok());
  options.job.set_allow_mixed_numerics(true);
  expect_refused(options, "allow_mixed_numerics");
  options = possible;
  options.copies = 3;
  options.servers = 3;
  expect_refused(options, "--copies is 3");
  options = possible;
  options.lease = options.heartbeat;
  expect_refused(options, "--lease_ms");
  options = possible;
  options.mode = v1::RUN_MODE_EVALUATE;
  expect_refused(options, "--checkpoint");
}

}  // namespace
}  // namespace moe
