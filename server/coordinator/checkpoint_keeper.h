// From reported shard files to committed checkpoints.
//
// A cut begins with the first that is heard of it: a worker says in each report which one was the last,
// a server reports a file. Workers go on meanwhile. Its checkpoint is committed once the file of every
// shard of the placement has been reported (where there are two copies, by both servers, which give the
// same file the same name; not by one that is lost) and, if there is validation text, the evaluation after the cut
// is complete, so that the manifest has its perplexity.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/moe/v1/checkpoint.pb.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/coordinator/layout.h"

namespace moe {

// Writes the manifest, whose digest it fills in, and gives the cut's folder its name as a
// checkpoint; then deletes what is neither the best nor one of the last `keep_last`, and the folders
// of older cuts that were never committed.
// Blocks on the disk. Returns the checkpoints that are left, ascending by step.
absl::StatusOr<std::vector<v1::CheckpointStatus>> CommitCheckpoint(
    const std::string& checkpoint_dir, v1::Manifest manifest, int keep_last);

// Deletes all cuts that were never committed.
absl::Status RemoveUncommitted(const std::string& checkpoint_dir);

// What ListCheckpoints (manifest.h) finds, for status.
absl::StatusOr<std::vector<v1::CheckpointStatus>> DescribeCheckpoints(
    const std::string& checkpoint_dir);

// Not thread-safe.
class CheckpointKeeper {
 public:
  // A generation begins to run.
  void Begin(const Layout& layout, uint64_t generation);
  // It goes on, with these servers: what others haven't written isn't waited for.
  void KeepServers(const Layout& layout);
  // It is over: what it has cut and not committed is void.
  void End();

  // A cut was taken in the close after which so many steps are taken. True: nobody has said so before;
  // what comes again changes nothing.
  bool BeginCut(uint64_t step, absl::Time now);
  // FAILED_PRECONDITION if the shard isn't the sender's, DATA_LOSS if the other server that has a copy has
  // reported another file. A repetition changes nothing.
  absl::Status AddShard(const v1::ReportShardFileRequest& request, absl::Time now);
  // The evaluation of the validation text after so many steps is complete.
  void Evaluated(uint64_t step, double perplexity) { evaluated_[step] = perplexity; }

  // Whether a cut isn't committed yet. Workers see to it that it is one at a time.
  bool under_way() const { return !cuts_.empty(); }
  // Of the cut that is under way, for status; none: there is none.
  std::optional<v1::CutStatus> UnderWay(absl::Time now) const;

  // Whether there is a step for TakeReady.
  bool ready() const;
  // The oldest step whose checkpoint can be committed now; the caller does so and reports
  // the result. Each step is returned once.
  std::optional<uint64_t> TakeReady();
  // Of a step that TakeReady returned; without digest.
  v1::Manifest MakeManifest(uint64_t step) const;
  // present: all checkpoints, that of the step among them.
  void Committed(uint64_t step, std::vector<v1::CheckpointStatus> present);
  // Null if the step isn't committed.
  const v1::CheckpointStatus* Find(uint64_t step) const;

  // The checkpoints in the folder, ascending by step.
  const std::vector<v1::CheckpointStatus>& present() const { return present_; }
  void set_present(std::vector<v1::CheckpointStatus> present) {
    present_ = std::move(present);
  }

  // Since when the cut is known to be under way.
  absl::Time BegunAt(uint64_t step) const { return cuts_.at(step).begun; }

  // "the checkpoint of step 2 has waited 10 min 0 s for server/s1 to write dense/0, dense/1", of one
  // for which no server has written anything for `timeout`; empty if there is none.
  std::string Overdue(absl::Time now, absl::Duration timeout) const;
  // Time that doesn't count.
  void Excuse(absl::Duration pause);

 private:
  // Shard and server.
  using Copy = std::pair<std::string, std::string>;
  struct Cut {
    std::map<std::string, v1::ShardFile> shards;
    std::set<Copy> reported;
    absl::Time begun = absl::InfiniteFuture();
    // When a server has last written something, or the cut has begun.
    absl::Time sign = absl::InfiniteFuture();
    bool taken = false;
  };

  // Whether that one is committed, or so is a later one.
  bool IsOld(uint64_t step) const;
  bool Ready(uint64_t step, const Cut& cut) const;
  // The files that the step's checkpoint waits for; empty: none.
  std::string MissingFiles(const Cut& cut) const;

  v1::Manifest manifest_;  // what those of all checkpoints have in common
  std::set<Copy> copies_;
  size_t servers_ = 0;                    // of the generation
  bool evaluates_ = false;                // whether an evaluation belongs to each cut
  std::map<uint64_t, double> evaluated_;  // perplexities by step
  std::map<uint64_t, Cut> cuts_;          // by step
  std::map<uint64_t, v1::CheckpointStatus> committed_;  // by step
  std::vector<v1::CheckpointStatus> present_;
};

}  // namespace moe
