// Going on with the generation that ran under the coordinator before: what of it is in the store, and
// whether it is what this coordinator is to run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/moe/v1/job.pb.h"
#include "proto/moe/v1/state.pb.h"
#include "server/coordinator/layout.h"
#include "server/coordinator/member_table.h"
#include "server/coordinator/store.h"

namespace moe {

// Reads and writes the keys `job/running` and `job/evaluations`, in protobuf's JSON form.
absl::Status SaveRunning(Store& store, const v1::RunningGeneration& running);
absl::Status SaveEvaluations(Store& store, const v1::StoredEvaluations& evaluations);

// The members that take part, and how the job lies on them.
void DescribeLayout(const Layout& layout, const MemberTable& members,
                    v1::RunningGeneration& running);

// The members of `running`, none of which has been heard.
absl::StatusOr<MemberTable> RestoreMembers(const v1::RunningGeneration& running,
                                           MemberTable::Rules rules, absl::Time now);

struct Adoption {
  v1::RunningGeneration running;
  // Of the same generation.
  v1::StoredEvaluations evaluations;
};

// What the options of a coordinator say.
struct AskedRun {
  v1::Job job;
  int servers = 1;
  int workers = 1;
  int copies = 1;
  std::string checkpoint_dir;
};
// "2 1": the numbers of members that were asked for; with two copies of each shard "2 1, 2 copies".
std::string AskedSize(int servers, int workers, int copies);

// The generation that ran, if the coordinator before ended while it did and it is what is asked for.
// Else none, and why_not says why. An error is the store's.
absl::StatusOr<std::optional<Adoption>> FindAdoption(Store& store, const AskedRun& asked,
                                                     std::string* why_not);

}  // namespace moe
