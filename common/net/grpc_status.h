// The one place where our status and gRPC's become each other.
#pragma once

#include <grpcpp/support/status.h>

#include <string_view>

#include "absl/status/status.h"

namespace moe {

grpc::Status ToGrpcStatus(const absl::Status& status);

// The message is "context: message"; OK stays OK.
absl::Status FromGrpcStatus(const grpc::Status& status, std::string_view context);

}  // namespace moe
