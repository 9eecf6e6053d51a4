// What a training step puts on the wire, computed from the job and its placement: the bytes of
// gRPC's streams between workers and servers, message by message as they are encoded, HTTP/2's
// frames included, without TLS, TCP and below. docs/design/cost.md compares it with what was
// measured.
//
// Rows, pairs and words are expected numbers, as in expert_traffic.h and table_traffic.h. What
// members say to the coordinator isn't counted; it grows with neither words nor parameters, but for
// the experts' balance.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/job/table_traffic.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// Of one call of a mixture in one wave.
struct CallBytes {
  double forward = 0;
  double forward_reply = 0;
  double backward = 0;
  double backward_reply = 0;

  CallBytes& operator+=(const CallBytes& other);
};

// Of one step, or of a part of it, by what for.
struct StepBytes {
  // From workers to servers: rows with their routing, and the requests that ask for an answer again
  // (RecurrentMoe.kept_states); dL/dy; dense gradients; gradients of tables' rows; carried state;
  // requests for parameters and rows.
  double activations_out = 0;
  double gradients_out = 0;
  double dense_gradients = 0;
  double table_gradients = 0;
  double carried_states = 0;
  double requests = 0;
  // From servers to workers: the experts' sums, those that are asked for again included; dL/dx and
  // dL/dgate; dense parameters; rows of tables; what ends the step.
  double activations_back = 0;
  double gradients_back = 0;
  double dense_parameters = 0;
  double table_rows = 0;
  double answers = 0;

  double to_servers() const {
    return activations_out + gradients_out + dense_gradients + table_gradients +
           carried_states + requests;
  }
  double to_workers() const {
    return activations_back + gradients_back + dense_parameters + table_rows + answers;
  }
  // What a close brings to the servers.
  double closes() const { return dense_gradients + table_gradients + carried_states; }
  StepBytes& operator+=(const StepBytes& other);
};

class StepTraffic {
 public:
  // The job is valid and has its vocabulary. Both outlive this object.
  StepTraffic(const v1::Job& job, const ModelPlan& plan);

  // Between one server and one worker, a whole step.
  StepBytes Between(std::span<const ShardSpec> shards,
                    std::span<const uint32_t> owned) const;
  // A call of the mixture, of which the server has so many groups. Nothing if it has none.
  CallBytes Call(const Mixture& mixture, int32_t groups,
                 std::span<const uint32_t> owned) const;
  // Calls of the recurrent mixture that a wave's backward pass makes again (0: none), beside one
  // for each of Mixture::calls.
  int64_t Repeated(const Mixture& mixture) const;

  const std::vector<Mixture>& mixtures() const { return mixtures_; }

 private:
  int64_t Tokens(const Mixture& mixture) const;

  const v1::Job& job_;
  const ModelPlan& plan_;
  const std::vector<Mixture> mixtures_;
  const TableTraffic tables_;
};

// Groups of each mixture among the shards.
std::map<MixtureId, int32_t> GroupsOf(std::span<const ShardSpec> shards);

}  // namespace moe
