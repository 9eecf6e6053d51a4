// Whether the members can hold a job as it is laid out. What can't be is refused before
// anything is allocated: FAILED_PRECONDITION with the figures, and what to change.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "common/job/step_memory.h"
#include "server/coordinator/member_table.h"

namespace moe {

// Each member must have what it needs, and the members that share a machine's memory
// together. Members that didn't say what they have pass. needs: of members of the table.
absl::Status CheckMemory(const std::string& job, const MemoryNeeds& needs,
                         const MemberTable& members);

}  // namespace moe
