// The memory that a server takes for a checkpoint that it writes while training goes on: for those
// who keep to it and for those who count it.
#pragma once

#include <cstdint>
#include <span>

#include "common/job/model_plan.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// Bytes of a shard's file that are read at a time.
inline constexpr int64_t kCutChunk = int64_t{1} << 20;

// Bytes of copies that a server with these shards may have at once. limit: what it was told; 0: a
// quarter of what it keeps of them in its memory, but at least 64 MiB. Never more than steps can change
// at all. tier: experts lie in a capacity tier.
int64_t CopyBytes(const v1::Job& job, const ModelPlan& plan,
                  std::span<const ShardSpec> shards, bool tier, int64_t limit);

}  // namespace moe
