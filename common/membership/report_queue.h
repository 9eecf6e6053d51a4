// What a member reports of its generation, on its way to a coordinator that may be away: sent one
// after the other, each until it is answered.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"

namespace moe {

class ReportQueue {
 public:
  using Report = std::variant<v1::ReportStepRequest, v1::ReportEvaluationRequest,
                              v1::ReportShardFileRequest>;
  // To a step; to the others it says nothing.
  using Answer = v1::ReportStepResponse;
  // Returns with the answer, or with why there will be none.
  using Send = std::function<absl::StatusOr<Answer>(const Report& report)>;
  struct Options {
    // How long a step waits while no answer comes at all.
    absl::Duration grace = absl::Milliseconds(500);
    // Of the reports that wait; then the next one waits, too.
    size_t most_bytes = size_t{64} << 20;
  };

  // Calls `send` on a thread of its own.
  ReportQueue(Options options, Send send);
  // `send` must return soon.
  ~ReportQueue();

  // Returns the answer, or none if the coordinator has given none for options.grace. An error is that
  // of this report or of one before. Any thread, one at a time.
  absl::StatusOr<std::optional<Answer>> Add(v1::ReportStepRequest report);
  absl::Status Add(v1::ReportEvaluationRequest report);
  absl::Status Add(v1::ReportShardFileRequest report);
  // Waits until all reports are answered.
  absl::Status Drain();
  // Another coordinator answers now: sends the last step that was answered once more, and these.
  // Doesn't wait.
  void Repeat(std::vector<v1::ReportShardFileRequest> files);
  // Forgets all, errors too: another generation begins.
  void Clear();

 private:
  struct Entry {
    std::shared_ptr<const Report> report;
    size_t bytes = 0;
    uint64_t number = 0;
  };

  // Once there is room.
  absl::StatusOr<uint64_t> Push(Report report) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Append(std::shared_ptr<const Report> report, size_t bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What came back for the first one, unless it was forgotten meanwhile.
  void Settle(const Entry& entry, absl::StatusOr<Answer> answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteAway(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run();

  const Options options_;
  const Send send_;

  absl::Mutex mutex_;
  std::deque<Entry> entries_ ABSL_GUARDED_BY(mutex_);  // the first one is being sent
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t added_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t answered_ ABSL_GUARDED_BY(mutex_) = 0;
  // To the last step.
  Answer answer_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const Report> last_step_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  // Of the last answer, or of the first report that waits for one, if that is later.
  absl::Time sign_ ABSL_GUARDED_BY(mutex_);
  // Since when no answer comes; and the last report before.
  std::optional<absl::Time> away_since_ ABSL_GUARDED_BY(mutex_);
  uint64_t answered_before_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace moe
