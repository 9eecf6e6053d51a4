#include "server/copy_budget.h"

#include "glog/logging.h"

namespace moe {

bool CopyBudget::Take(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (bytes > limit_ - used_) return false;
  used_ += bytes;
  return true;
}

void CopyBudget::Return(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  used_ -= bytes;
  CHECK_GE(used_, 0);
  ++progress_;
}

uint64_t CopyBudget::progress() const {
  absl::MutexLock lock(&mutex_);
  return progress_;
}

bool CopyBudget::Await(uint64_t seen) {
  absl::MutexLock lock(&mutex_);
  const auto further = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return cancelled_ || progress_ != seen;
  };
  if (further()) return !cancelled_;
  if (++waiting_ == 1) {
    since_ = absl::Now();
    if (on_wait_) on_wait_(true);
  }
  mutex_.Await(absl::Condition(&further));
  if (--waiting_ == 0 && on_wait_) on_wait_(false);
  return !cancelled_;
}

void CopyBudget::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
}

int64_t CopyBudget::used() const {
  absl::MutexLock lock(&mutex_);
  return used_;
}

std::optional<absl::Time> CopyBudget::waiting_since() const {
  absl::MutexLock lock(&mutex_);
  if (waiting_ == 0) return std::nullopt;
  return since_;
}

}  // namespace moe
