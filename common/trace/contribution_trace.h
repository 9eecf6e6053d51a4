// The format of contribution traces: what a server writes of each contribution that workers send to it,
// and what is read back to prove that each counted exactly once (docs/design/recovery.md).
//
// A file is a text of lines, fields between blanks. A part for each generation that the server was in
// begins with
//   G <generation> <server> <incarnation> <start step> <replicas> <waves> <clips: 0 or 1>
//     <shards of the job> <job>
//   M <layer> <mixture> <calls>                 each mixture of which it has a group
//   H <shard> [2]                               each shard that it has; 2: another server has a copy, too
// and goes on with
//   R, I, K, A <generation> <step> <what> <incarnation of the sender>
//   V <generation> <step>                       every shard has taken the step
// in the order in which it happened. A last line without its end, as a kill may leave it, doesn't count.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace moe {

enum class TraceEvent : char {
  kReceived = 'R',  // for the first time
  kIgnored = 'I',   // again, and needs no answer, or gets that of the first time
  kAnswered = 'K',  // again, and was answered from the kept reply
  kApplied = 'A',   // joined with the others' into what the shards compute
  kStepTaken = 'V',
};

// ---- what a contribution is called
// kind: "forward" or "backward".
std::string FrameName(std::string_view kind, uint32_t wave, uint32_t layer,
                      uint32_t mixture, uint32_t call, uint32_t replica);
// kind: "gradient" of a dense shard or "rows" of a table, of a node of the replica tree.
std::string NodeName(std::string_view kind, std::string_view shard, uint32_t level,
                     uint32_t index);
// Of a replica shard.
std::string StateName(std::string_view shard);
// kind: "close" or "scale", of all that the replica's worker sends.
std::string ReplicaName(std::string_view kind, uint32_t replica);

struct TraceRecord {
  TraceEvent event = TraceEvent::kReceived;
  uint64_t generation = 0;
  uint64_t step = 0;
  // None of kStepTaken.
  std::string what;
  uint64_t incarnation = 0;
};

struct TraceMixture {
  uint32_t layer = 0;
  uint32_t mixture = 0;
  uint32_t calls = 1;
};

struct TracePart {
  uint64_t generation = 0;
  std::string server;
  uint64_t incarnation = 0;
  uint64_t start_step = 0;
  uint32_t replicas = 0;
  uint32_t waves = 0;
  bool clips = false;
  uint64_t job_shards = 0;
  std::string job;
  std::vector<TraceMixture> mixtures;
  std::vector<std::string> shards;
  // Those of which another server has a copy, too.
  std::set<std::string> copied;
  // Of those that are read.
  std::vector<TraceRecord> records;
};

// Lines, with their ends.
std::string TraceHead(const TracePart& part);
std::string TraceLine(const TraceRecord& record);

// INVALID_ARGUMENT names the line that makes no sense.
absl::StatusOr<std::vector<TracePart>> ParseTrace(std::string_view text);

}  // namespace moe
