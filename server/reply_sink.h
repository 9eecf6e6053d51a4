// Where a server's answers to one worker go.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {

// The receiving end of one worker. Any thread; never blocks.
class ReplySink {
 public:
  virtual ~ReplySink() = default;
  virtual void Send(std::shared_ptr<const v1::ExchangeResponse> response) = 0;
};

// What ends a conversation: nothing is answered after it.
std::shared_ptr<const v1::ExchangeResponse> FailureResponse(uint64_t generation,
                                                            const absl::Status& cause);

}  // namespace moe
