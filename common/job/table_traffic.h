// How many rows of tables (job.proto, Tables) a step names, which the memory of its members and the
// sizes of messages depend on.
//
// Words are taken to follow Zipf's law, P(w) = ln((w + 2) / (w + 1)) / ln(V + 1), the distribution
// that candidates are drawn from; text has a longer head and fewer distinct words. So the first
// shards of a table are asked for nearly all of their rows, the last ones for few.
#pragma once

#include <cstdint>
#include <span>

#include "common/job/model_plan.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// The expected number of distinct words of [begin, end) among so many draws of a vocabulary of V words.
double DistinctWords(int64_t begin, int64_t end, double draws, int64_t vocabulary);
// The draws for which it is `count` of all words; 0 <= count < V.
double DrawsFor(double count, int64_t vocabulary);

class TableTraffic {
 public:
  // The job has its vocabulary; it may have no tables. training: else an evaluation, which takes
  // input words alone. Both outlive this object.
  TableTraffic(const v1::Job& job, bool training);

  // Rows of a table shard that `replicas` replicas name in a step, each row once.
  double Rows(const ShardSpec& shard, int64_t replicas) const;
  // Bytes of these rows of all table shards among `shards`, with their row numbers.
  int64_t Bytes(std::span<const ShardSpec> shards, int64_t replicas) const;
  // Bytes of the gradients that the worker of the replicas `owned` (ascending) pushes of them: for
  // each of its maximal nodes of the replica tree the rows that the node's replicas name.
  int64_t PushedBytes(std::span<const ShardSpec> shards,
                      std::span<const uint32_t> owned) const;

 private:
  const v1::Job& job_;
  const bool training_;
  double candidate_draws_ = 0;
};

}  // namespace moe
