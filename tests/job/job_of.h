// Jobs for tests, from the text that differs.
#pragma once

#include <google/protobuf/text_format.h>

#include <string>

#include "common/job/job_file.h"
#include "glog/logging.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// Fields of Model, and fields of Training beside waves, lanes, unroll and steps.
inline std::string JobText(const std::string& model,
                           const std::string& training = "replicas: 1") {
  return "name: \"test\" model { " + model +
         " } optimizer { sgd {} schedule { base_rate: 1 } }"
         " training { waves: 1 lanes: 2 unroll: 3 steps: 1 " +
         training + " }";
}

inline v1::Job JobOf(const std::string& model,
                     const std::string& training = "replicas: 1") {
  absl::StatusOr<v1::Job> job = ParseJob(JobText(model, training), "test");
  CHECK(job.ok()) << job.status();
  return *job;
}

// The same with these fields of Training, in place of those that JobOf() gives it.
inline v1::Job JobWith(const std::string& model, const std::string& training) {
  v1::Job job = JobOf(model);
  CHECK(google::protobuf::TextFormat::MergeFromString(training, job.mutable_training()));
  return job;
}

}  // namespace moe
