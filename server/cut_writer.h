// The thread that writes the cuts of a server's shards, one at a time. It gives way to those that
// compute.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/moe/v1/checkpoint.pb.h"
#include "server/copy_budget.h"
#include "server/shard_cut.h"

namespace moe {

class CutWriter {
 public:
  // Called by the writer's thread.
  struct Events {
    // A shard's file of a cut is on disk.
    std::function<absl::Status(uint64_t step, const v1::ShardFile& file)> written;
    // A file can't be written, or what `written` returned; once, and nothing is written any more.
    std::function<void(const absl::Status& cause)> failed;
  };

  // copies: of the files; outlives this object.
  CutWriter(CopyBudget& copies, Events events);
  // Stops.
  ~CutWriter();

  // ---- any thread
  // Creates the cut's folder and writes the files, in order. Nothing else is under way.
  void Begin(Cut cut, std::vector<std::shared_ptr<ShardCut>> files)
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool idle() const ABSL_LOCKS_EXCLUDED(mutex_);
  // "the checkpoint of step 200 (dense/0)"; empty if it is idle.
  std::string UnderWay() const ABSL_LOCKS_EXCLUDED(mutex_);
  // What isn't written stays so, and nobody waits for it any more.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);
  // The same; returns when the thread has ended, after the piece that it writes. The shards may go.
  void Stop();

 private:
  void Run();
  absl::Status Write(const Cut& cut) ABSL_LOCKS_EXCLUDED(mutex_);
  // OK, or that it is over.
  absl::Status GoOn() const ABSL_LOCKS_EXCLUDED(mutex_);

  CopyBudget& copies_;
  const Events events_;
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Cut> cut_ ABSL_GUARDED_BY(mutex_);
  // Not yet written, the next one last.
  std::vector<std::shared_ptr<ShardCut>> files_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace moe
