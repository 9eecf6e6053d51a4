#pragma once

#include <string>

#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

inline constexpr char kLoneServer[] = "server/s0";
inline constexpr char kLoneWorker[] = "worker/w0";

// The state of a running cluster of generation 1 in which all is with one server and one worker. The job
// knows its vocabulary; address: of the server.
v1::ClusterState LoneState(const v1::Job& job, const std::string& address);

}  // namespace moe
