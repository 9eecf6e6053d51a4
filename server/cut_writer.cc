#include "server/cut_writer.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "glog/logging.h"

namespace moe {
namespace {

// Of the thread, to the process's: it takes what of the processors those that compute leave.
constexpr int kNicer = 19;

}  // namespace

CutWriter::CutWriter(CopyBudget& copies, Events events)
    : copies_(copies), events_(std::move(events)), thread_([this] { Run(); }) {}

CutWriter::~CutWriter() { Stop(); }

void CutWriter::Begin(Cut cut, std::vector<std::shared_ptr<ShardCut>> files) {
  std::reverse(files.begin(), files.end());
  absl::MutexLock lock(&mutex_);
  CHECK(!cut_.has_value()) << "the cut of step " << cut_->step << " isn't written";
  cut_ = std::move(cut);
  files_ = std::move(files);
}

bool CutWriter::idle() const {
  absl::MutexLock lock(&mutex_);
  return !cut_.has_value();
}

std::string CutWriter::UnderWay() const {
  absl::MutexLock lock(&mutex_);
  if (!cut_.has_value()) return "";
  return absl::StrCat(
      "the checkpoint of step ", cut_->step,
      files_.empty() ? "" : absl::StrCat(" (", files_.back()->shard(), ")"));
}

void CutWriter::Cancel() {
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
  }
  copies_.Cancel();
}

void CutWriter::Stop() {
  Cancel();
  if (thread_.joinable()) thread_.join();
  std::vector<std::shared_ptr<ShardCut>> dropped;
  absl::MutexLock lock(&mutex_);
  dropped.swap(files_);
}

absl::Status CutWriter::GoOn() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_ ? absl::CancelledError("the cut is over") : absl::OkStatus();
}

void CutWriter::Run() {
  // Linux has a priority for each thread.
  setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + kNicer);
  while (true) {
    Cut cut;
    {
      absl::MutexLock lock(&mutex_);
      const auto due = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return cancelled_ || cut_.has_value();
      };
      mutex_.Await(absl::Condition(&due));
      if (cancelled_) return;
      cut = *cut_;
    }
    const absl::Status status = Write(cut);
    std::vector<std::shared_ptr<ShardCut>> dropped;
    {
      absl::MutexLock lock(&mutex_);
      dropped.swap(files_);
      if (status.ok()) cut_.reset();
    }
    dropped.clear();
    if (status.ok()) {
      copies_.Return(0);
      continue;
    }
    copies_.Cancel();
    if (GoOn().ok()) events_.failed(status);
    return;
  }
}

absl::Status CutWriter::Write(const Cut& cut) {
  RETURN_IF_ERROR(MakeDirs(cut.folder));
  while (true) {
    std::shared_ptr<ShardCut> next;
    {
      absl::MutexLock lock(&mutex_);
      if (files_.empty()) return absl::OkStatus();
      next = files_.back();
    }
    ASSIGN_OR_RETURN(const v1::ShardFile file,
                     next->Write(cut, [this] { return GoOn(); }));
    {
      absl::MutexLock lock(&mutex_);
      files_.pop_back();
    }
    // What it kept is free before somebody is told.
    next = nullptr;
    RETURN_IF_ERROR(GoOn());
    RETURN_IF_ERROR(events_.written(cut.step, file));
  }
}

}  // namespace moe
