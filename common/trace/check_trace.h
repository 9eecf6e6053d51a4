// The proof, from the traces of all servers, that each contribution of each step that counts was applied
// exactly once and none is missing (docs/design/recovery.md).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/trace/contribution_trace.h"

namespace moe {

struct TraceFile {
  std::string name;  // for messages
  std::vector<TracePart> parts;
};

struct TraceSummary {
  uint64_t generations = 0;
  // The first step that counts, and the one after the last.
  uint64_t begin = 0;
  uint64_t end = 0;
  // Steps, by servers, that were taken and then rolled back.
  uint64_t rolled_back = 0;
  // Of the steps that count.
  uint64_t applied = 0;
  // Of all.
  uint64_t ignored = 0;
  uint64_t answered = 0;
};

// What counts of a generation are the steps up to the one at which a later generation goes on; of the
// last one those up to `end`, or if that isn't given those that all its shards have taken. Where a shard
// has two copies the trace of one may end early, or be missing: the generation went on without its server.
// DATA_LOSS: a contribution is missing or was applied twice, out of turn or in another generation than its
// own; names it, the server, the generation and the step.
absl::StatusOr<TraceSummary> CheckTraces(const std::vector<TraceFile>& files,
                                         std::optional<uint64_t> end = std::nullopt);

}  // namespace moe
