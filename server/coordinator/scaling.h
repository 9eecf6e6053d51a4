// What an operator's wish for more or fewer members means.
#pragma once

#include "absl/status/statusor.h"
#include "proto/moe/v1/job.pb.h"
#include "proto/moe/v1/operator.pb.h"
#include "server/coordinator/layout.h"
#include "server/coordinator/member_table.h"

namespace moe {

// The members as the job is to have them: how many it takes, and who of those that are there leaves. The
// wish takes the place of earlier ones for the kinds of members that it gives numbers of. NOT_FOUND for a
// member that isn't there, INVALID_ARGUMENT for numbers that make no job, FAILED_PRECONDITION with the
// figures if those that stay don't have the memory. present: of the members that take part. copies: of each
// shard.
absl::StatusOr<MemberTable> PlanScaling(const MemberTable& members,
                                        const v1::ScaleRequest& request,
                                        const v1::Job& job, int copies,
                                        const Layout& present);

}  // namespace moe
