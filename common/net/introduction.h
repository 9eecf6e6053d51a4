// Who calls, in the call's metadata, so that a stranger is refused before a message of its is read.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <string>

namespace moe {

struct Introduction {
  // Member id.
  std::string member;
  // Of the member's registration (RegisterRequest.nonce); others don't know it.
  uint64_t nonce = 0;
};

// Before the call begins.
void Introduce(const Introduction& caller, grpc::ClientContext* context);
// Empty if the caller didn't introduce itself, or not as it should.
Introduction IntroductionOf(const grpc::ServerContext& context);

}  // namespace moe
