// A job that is as small as one with experts gets.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "common/job/job_file.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

inline v1::Job SmallJob(const std::string& more = "") {
  const absl::StatusOr<v1::Job> job = ParseJob(R"(
    name: "small"
    model {
      d_model: 4
      layers { lstm { hidden: 4 } }
      layers {
        moe { experts: 4 k: 2 hidden: 8 groups: 4 gating: GATING_NOISY_TOP_K }
      }
    }
    optimizer { sgd {} schedule { base_rate: 1 constant {} } }
    training { replicas: 3 waves: 1 lanes: 2 unroll: 5 steps: 4 dense_shards: 2 }
  )" + more,
                                               "small job");
  EXPECT_TRUE(job.ok()) << job.status();
  return *job;
}

}  // namespace moe
