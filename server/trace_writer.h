// Writes the trace of contributions of one server process (common/trace/contribution_trace.h): what came,
// came again, and was applied.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/tensor/replica_tree.h"
#include "common/trace/contribution_trace.h"
#include "server/frames.h"
#include "server/rendezvous.h"

namespace moe {

// Thread-safe. Lines are gathered in memory; they are in the file before a step that was taken shows, so a
// kill loses those of the step in progress at most.
class TraceWriter {
 public:
  // Appends to <folder>/<name>.<pid>.trace.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Open(const std::string& folder,
                                                           const std::string& name);
  ~TraceWriter();
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  // A generation begins; what follows is of it. worker_of: [R].
  void Begin(const TracePart& head, std::vector<std::string> worker_of);
  // The worker's process, from its first message on.
  void Met(const std::string& worker, uint64_t incarnation);

  // What the replicas sent for a rendezvous of a training step.
  void Note(TraceEvent event, RendezvousKind kind, const RendezvousKey& key,
            std::span<const uint32_t> replicas);
  // Of all replicas.
  void NoteAll(TraceEvent event, RendezvousKind kind, const RendezvousKey& key);
  // The parts of a worker's close; replica: any of its.
  void NoteParts(TraceEvent event, uint64_t step, uint32_t replica,
                 const CloseInput& close);
  // Every shard has taken the step. An error says that the trace can't be written.
  absl::Status StepTaken(uint64_t step);

 private:
  TraceWriter(std::string path, int file) : path_(std::move(path)), file_(file) {}

  void Add(TraceEvent event, uint64_t step, std::string what, uint32_t replica)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Keeps the first error.
  void Flush() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string path_;
  const int file_;
  absl::Mutex mutex_;
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> worker_of_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> incarnations_ ABSL_GUARDED_BY(mutex_);
  std::string buffer_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moe
