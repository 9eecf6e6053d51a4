// The evaluations that workers report, each joined over the replicas.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "server/coordinator/replica_join.h"

namespace moe {

// Not thread-safe.
class Evaluations {
 public:
  // The one of `split` after `step`, which begins with its first report. Stays valid: all
  // are kept to the end, as they are few and a repeated report finds its answer.
  ReplicaJoin& Join(uint64_t step, v1::Split split,
                    const std::vector<v1::ReplicaAssignment>& assignments,
                    absl::Time now);

  // "the test evaluation after step 2 has waited 20 s for worker/b", of one whose first
  // report is `timeout` old; empty if there is none.
  std::string Overdue(absl::Time now, absl::Duration timeout) const;
  // Time that doesn't count.
  void Excuse(absl::Duration pause);

 private:
  struct Evaluation {
    Evaluation(const std::vector<v1::ReplicaAssignment>& assignments, absl::Time since)
        : join(assignments), since(since) {}
    ReplicaJoin join;
    absl::Time since;
  };
  std::map<std::pair<uint64_t, v1::Split>, Evaluation> evaluations_;
};

}  // namespace moe
