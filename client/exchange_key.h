// What a worker's requests to a server and their answers are called.
#pragma once

#include <cstdint>
#include <string>

#include "proto/moe/v1/expert.pb.h"

namespace moe {

// Which request a response answers.
struct ExchangeKey {
  v1::ExchangeRequest::MessageCase kind = v1::ExchangeRequest::MESSAGE_NOT_SET;
  // Step; of a pull the version, of a score the evaluation batch.
  uint64_t step = 0;
  // Forward and backward only; the wave of a score, too.
  v1::Mode mode = v1::MODE_UNSPECIFIED;
  uint32_t wave = 0;
  uint32_t layer = 0;
  uint32_t mixture = 0;
  uint32_t call = 0;
  // Scores only.
  uint32_t part = 0;
  // Pulls only: the first shard.
  std::string shard;
  friend auto operator<=>(const ExchangeKey&, const ExchangeKey&) = default;
};
// Of a forward or backward message, and of a close or apply.
ExchangeKey FrameKey(v1::ExchangeRequest::MessageCase kind, const v1::FrameId& id);
ExchangeKey StepKey(v1::ExchangeRequest::MessageCase kind, uint64_t step);
ExchangeKey ScoreKey(uint64_t batch, uint32_t wave, uint32_t part);
ExchangeKey KeyOf(const v1::ExchangeRequest& request);
// Kind MESSAGE_NOT_SET for a Failure or an empty response.
ExchangeKey KeyOf(const v1::ExchangeResponse& response);
// What is sent of a request that the server has: what names it, and all of what it doesn't keep.
v1::ExchangeRequest NameOf(const v1::ExchangeRequest& request);
// "forward step 17 wave 0 layer 1", of a recurrent mixture "... time step 3"
std::string Describe(const ExchangeKey& key);

}  // namespace moe
