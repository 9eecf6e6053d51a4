// What the tables of a job (job.proto, Tables) add to a pass of a worker: it pulls the rows that the pass
// touches, and in evaluation has the servers work out the softmax.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/table_client.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/job.pb.h"
#include "worker/layers/pass.h"
#include "worker/models/replica_model.h"
#include "worker/models/step_tables.h"
#include "worker/trainer/activity_clock.h"
#include "worker/trainer/micro_batch.h"

namespace moe {

class TablePass {
 public:
  // Everything passed must outlive the object.
  TablePass(Backend& backend, const v1::Job& job, TableClient& tables,
            ActivityClock& clock);

  // The rows of `version` that each owned replica touches; in training the candidates of `step`
  // too. batches: [owned * waves], replica-major; the result lives until the next call.
  absl::StatusOr<std::span<const StepTables>> Pull(uint64_t version, PassMode mode,
                                                   uint64_t step,
                                                   std::span<const MicroBatch> batches);
  // Sets the models' losses of one wave of an evaluation batch, from what they hand to the
  // softmax. models, owned: of the worker's replicas.
  absl::Status Score(uint64_t batch, int32_t wave, uint64_t version,
                     std::span<const std::unique_ptr<ReplicaModel>> models,
                     std::span<const uint32_t> owned,
                     std::span<const MicroBatch> batches);

 private:
  // [words, columns] values of `words` in a table.
  struct Pulled {
    std::vector<int32_t> words;  // ascending
    std::vector<float> values;
  };
  absl::Status Await(uint64_t version, Table table, Pulled* pulled);
  // The rows of `words`, all of which `from` has.
  TableRows Pick(const Pulled& from, std::vector<int32_t> words, int64_t columns,
                 const Candidates* candidates);

  Backend& backend_;
  const v1::Job& job_;
  TableClient& client_;
  ActivityClock& clock_;
  const size_t waves_;
  std::vector<StepTables> tables_;
};

}  // namespace moe
