#include "common/net/grpc_status.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(GrpcStatusTest, EveryCodeComesBack) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status sent = ToGrpcStatus(status);
    EXPECT_EQ(sent.error_code(), code);
    const absl::Status back = FromGrpcStatus(sent, "server x");
    EXPECT_EQ(back.code(), status.code());
    EXPECT_EQ(back.message(), "server x: why");
  }
}

TEST(GrpcStatusTest, Ok) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK, "server x").ok());
}

TEST(GrpcStatusTest, CodesNobodyDefined) {
  const grpc::Status odd(static_cast<grpc::StatusCode>(20), "odd");
  EXPECT_EQ(FromGrpcStatus(odd, "x").code(), absl::StatusCode::kUnknown);
}

}  // namespace
}  // namespace moe
