// A shard's file of a cut: what the shard is at the cut, to be written while steps go on.
//
// Its entries lie where the shard has them. Before a step changes a part of one the shard says so
// (Keep): what the writer hasn't read of it by then is copied, and the copy is freed when the writer
// has read that. If copies have used up their budget, the step waits for the writer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/job/copy_memory.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "proto/moe/v1/checkpoint.pb.h"
#include "server/capacity_tier.h"
#include "server/copy_budget.h"
#include "server/shard_file.h"

namespace moe {

class ShardCut {
 public:
  struct Entry {
    std::string name;
    std::string dtype;
    std::vector<int64_t> shape;
    // Lives as long as the shard, or `owner`.
    const void* data = nullptr;
    int64_t bytes = 0;
    // Else on the backend.
    bool on_host = false;
    // Bytes that are copied together.
    int64_t unit = kCutChunk;
    // If it has a digest; lives as long as the shard.
    const TensorSpec* parameters = nullptr;
    // Where it lies; null: in memory.
    const CapacityTier* tier = nullptr;
    std::shared_ptr<const void> owner = nullptr;
  };
  // What the file says beside the job, the step and the shard; called by the writer.
  using Metadata = std::function<std::map<std::string, std::string>()>;

  // Backend and budget outlive this object, which outlives nothing of the shard: the writer ends
  // before it.
  ShardCut(Backend& backend, CopyBudget& copies, std::string shard,
           std::vector<Entry> entries, Metadata metadata = {},
           std::vector<v1::UntouchedTensors> untouched = {});
  ~ShardCut();

  // ---- those who change the shard; any threads
  // Bytes [begin, end) of an entry are about to change.
  void Keep(size_t entry, int64_t begin, int64_t end) ABSL_LOCKS_EXCLUDED(mutex_);
  void Keep(size_t entry) { Keep(entry, 0, entries_[entry].bytes); }

  // ---- the writer; one thread, once
  // Writes <folder>/<shard file>; an error names the file and the system's text. go_on is asked
  // before each piece; its error ends the writing, and is returned.
  absl::StatusOr<v1::ShardFile> Write(const Cut& cut,
                                      const std::function<absl::Status()>& go_on);

  const std::string& shard() const { return shard_; }

 private:
  struct Progress {
    // The writer has the bytes before; a multiple of the unit, or the end.
    int64_t read = 0;
    // By unit; of units that aren't read.
    std::map<int64_t, std::unique_ptr<char[]>> copies;
  };

  // Bytes [begin, end) as they are now.
  void Download(const Entry& entry, int64_t begin, int64_t end, char* to) const;
  int64_t UnitBytes(const Entry& entry, int64_t unit) const;
  // Whether the unit needs no copy any more, or has one now.
  bool KeepUnit(size_t entry, int64_t unit) ABSL_LOCKS_EXCLUDED(mutex_);
  // take gets the entry's bytes in order, piece by piece.
  absl::Status Read(size_t entry,
                    const std::function<absl::Status(std::string_view)>& take)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The next bytes, as of the cut; returns what was freed by that. CANCELLED if they are lost.
  absl::StatusOr<int64_t> ReadNext(size_t entry, std::vector<char>* bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);

  Backend& backend_;
  CopyBudget& copies_;
  const std::string shard_;
  const std::vector<Entry> entries_;
  const Metadata metadata_;
  const std::vector<v1::UntouchedTensors> untouched_;

  absl::Mutex mutex_;
  std::vector<Progress> progress_ ABSL_GUARDED_BY(mutex_);  // by entry
  // Something has changed that wasn't kept, as nobody needs it any more.
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace moe
