// How a job lies on the members of its cluster: fixed when all of them are there.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/job/step_memory.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/job.pb.h"
#include "server/coordinator/member_table.h"

namespace moe {

struct Layout {
  // With the vocabulary of the data where it said none.
  v1::Job job;
  v1::Placement placement;
  // [replicas], ascending.
  std::vector<v1::ReplicaAssignment> replicas;
  std::map<std::string, std::string> addresses;  // by server
  std::vector<std::string> workers;              // ascending
  // Of all workers.
  v1::DataDescription data;
  MemoryNeeds memory;
};

// members: complete. training: not just an evaluation. copies: of each shard; one server has one of each.
// placement: of all the job's shards on these members; null: a new one. FAILED_PRECONDITION, with what to
// change, if they can't hold the job.
absl::StatusOr<Layout> MakeLayout(const v1::Job& job, bool training,
                                  const MemberTable& members, int copies,
                                  const v1::Placement* placement = nullptr);
// The same, with shards moving from where they are, also from servers that leave.
absl::StatusOr<Layout> MakeNextLayout(const v1::Job& job, const MemberTable& members,
                                      int copies, const Layout& present);

}  // namespace moe
