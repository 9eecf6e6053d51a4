// What members must have in common.
#pragma once

#include <cstdint>

namespace moe {

// Raised when a message or its meaning changes: the coordinator refuses members that
// differ.
inline constexpr int32_t kProtocolVersion = 7;

// Tokens of one ScoreRequest, all its frames together.
inline constexpr int kMaxScoreTokens = 512;
// ScoreRequests of one worker that a server has not answered yet.
inline constexpr int kMaxScoresUnderWay = 2;
// Tokens of a wave that a sampled softmax works on at a time.
inline constexpr int kSampledSoftmaxTokens = 512;
// Words that a server scores at a time.
inline constexpr int kScoreBlockRows = 4096;

inline constexpr char kVersion[] = "0.1.0";

}  // namespace moe
