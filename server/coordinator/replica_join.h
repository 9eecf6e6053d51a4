// Joining what the workers report about one step or one evaluation. The result depends on
// the replicas alone, not on the order of arrival or on who reported what.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/status.pb.h"

namespace moe {

// Not thread-safe.
class ReplicaJoin {
 public:
  // assignments: of all replicas, ascending; outlives this object.
  explicit ReplicaJoin(const std::vector<v1::ReplicaAssignment>& assignments)
      : assignments_(assignments) {}

  // INVALID_ARGUMENT unless the losses are of exactly the replicas that `member` owns,
  // and the balance is of the same layers and experts as the others'. A repetition
  // changes nothing.
  absl::Status Add(const std::string& member,
                   const google::protobuf::RepeatedPtrField<v1::ReplicaLoss>& losses,
                   const google::protobuf::RepeatedPtrField<v1::LayerBalance>& balance);

  bool complete() const;
  // Workers that haven't reported, ascending.
  std::vector<std::string> missing() const;

  // The rest once complete. Losses are added in replica order.
  double loss_sum() const;
  uint64_t tokens() const;
  // exp(loss_sum / tokens)
  double perplexity() const;
  // Of a training step: the coefficients that the owner of replica 0 sent.
  std::vector<v1::BalanceStatus> StepBalance() const;
  // Of an evaluation: from the sums over all replicas.
  std::vector<v1::BalanceStatus> EvaluationBalance() const;

 private:
  struct Report {
    std::vector<v1::LayerBalance> balance;
  };
  // [layers], sums over the workers in the order of their names.
  std::vector<v1::LayerBalance> TotalBalance() const;

  const std::vector<v1::ReplicaAssignment>& assignments_;
  std::map<uint32_t, v1::ReplicaLoss> losses_;  // by replica
  std::map<std::string, Report> reports_;       // by member
};

}  // namespace moe
