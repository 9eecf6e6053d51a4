#include "server/trace_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"

namespace moe {
namespace {

// Beyond it lines are written before the step is over.
constexpr size_t kMostBuffered = size_t{1} << 20;

std::string NameOf(RendezvousKind kind, const RendezvousKey& key, uint32_t replica) {
  switch (kind) {
    case RendezvousKind::kForward:
      return FrameName("forward", key.wave, key.layer, key.mixture, key.call, replica);
    case RendezvousKind::kBackward:
      return FrameName("backward", key.wave, key.layer, key.mixture, key.call, replica);
    case RendezvousKind::kClose:
      return ReplicaName("close", replica);
    case RendezvousKind::kApply:
      return ReplicaName("scale", replica);
  }
  return "";
}

}  // namespace

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Open(const std::string& folder,
                                                               const std::string& name) {
  RETURN_IF_ERROR(MakeDirs(folder));
  std::string path = absl::StrCat(folder, "/", name, ".", getpid(), ".trace");
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("can't open the trace ", path));
  }
  return std::unique_ptr<TraceWriter>(new TraceWriter(std::move(path), file));
}

TraceWriter::~TraceWriter() {
  {
    absl::MutexLock lock(&mutex_);
    Flush();
  }
  close(file_);
}

void TraceWriter::Begin(const TracePart& head, std::vector<std::string> worker_of) {
  absl::MutexLock lock(&mutex_);
  generation_ = head.generation;
  worker_of_ = std::move(worker_of);
  incarnations_.clear();
  buffer_ += TraceHead(head);
  Flush();
}

void TraceWriter::Met(const std::string& worker, uint64_t incarnation) {
  absl::MutexLock lock(&mutex_);
  incarnations_[worker] = incarnation;
}

void TraceWriter::Note(TraceEvent event, RendezvousKind kind, const RendezvousKey& key,
                       std::span<const uint32_t> replicas) {
  if (key.mode != v1::MODE_TRAIN) return;
  absl::MutexLock lock(&mutex_);
  for (const uint32_t r : replicas) Add(event, key.step, NameOf(kind, key, r), r);
}

void TraceWriter::NoteAll(TraceEvent event, RendezvousKind kind,
                          const RendezvousKey& key) {
  std::vector<uint32_t> replicas;
  {
    absl::MutexLock lock(&mutex_);
    replicas.resize(worker_of_.size());
  }
  std::iota(replicas.begin(), replicas.end(), 0u);
  Note(event, kind, key, replicas);
}

void TraceWriter::NoteParts(TraceEvent event, uint64_t step, uint32_t replica,
                            const CloseInput& close) {
  absl::MutexLock lock(&mutex_);
  for (const CloseInput::Gradient& gradient : close.gradients) {
    const TreeNode& node = gradient.node;
    Add(event, step, NodeName("gradient", gradient.shard, node.level, node.index),
        replica);
  }
  for (const RowGradient& gradient : close.row_gradients) {
    const TreeNode& node = gradient.node;
    Add(event, step, NodeName("rows", gradient.shard, node.level, node.index), replica);
  }
  for (const auto& [shard, content] : close.replica_states) {
    Add(event, step, StateName(shard), replica);
  }
}

absl::Status TraceWriter::StepTaken(uint64_t step) {
  absl::MutexLock lock(&mutex_);
  Add(TraceEvent::kStepTaken, step, "", 0);
  Flush();
  return status_;
}

void TraceWriter::Add(TraceEvent event, uint64_t step, std::string what,
                      uint32_t replica) {
  const uint64_t sender =
      replica < worker_of_.size() ? incarnations_[worker_of_[replica]] : 0;
  buffer_ += TraceLine({event, generation_, step, std::move(what), sender});
  if (buffer_.size() > kMostBuffered) Flush();
}

void TraceWriter::Flush() {
  size_t done = 0;
  while (done < buffer_.size() && status_.ok()) {
    const ssize_t wrote = write(file_, buffer_.data() + done, buffer_.size() - done);
    if (wrote >= 0) {
      done += static_cast<size_t>(wrote);
    } else if (errno != EINTR) {
      status_ = absl::ErrnoToStatus(errno, absl::StrCat("can't write the trace ", path_));
    }
  }
  buffer_.clear();
}

}  // namespace moe
