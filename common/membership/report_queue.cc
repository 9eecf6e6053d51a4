#include "common/membership/report_queue.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"

namespace moe {

ReportQueue::ReportQueue(Options options, Send send)
    : options_(options), send_(std::move(send)), thread_([this] { Run(); }) {}

ReportQueue::~ReportQueue() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
}

absl::StatusOr<std::optional<ReportQueue::Answer>> ReportQueue::Add(
    v1::ReportStepRequest report) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const uint64_t number, Push(std::move(report)));
  const auto answered = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return answered_ >= number || !failure_.ok();
  };
  // Late reports are sent faster than steps are taken, so as long as answers come this ends soon.
  while (!mutex_.AwaitWithDeadline(absl::Condition(&answered), sign_ + options_.grace)) {
    const absl::Time now = absl::Now();
    if (now < sign_ + options_.grace) continue;
    NoteAway(now);
    return std::optional<Answer>();
  }
  RETURN_IF_ERROR(failure_);
  return std::optional<Answer>(answer_);
}

absl::Status ReportQueue::Add(v1::ReportEvaluationRequest report) {
  absl::MutexLock lock(&mutex_);
  return Push(std::move(report)).status();
}

absl::Status ReportQueue::Add(v1::ReportShardFileRequest report) {
  absl::MutexLock lock(&mutex_);
  return Push(std::move(report)).status();
}

absl::StatusOr<uint64_t> ReportQueue::Push(Report report) {
  const auto room = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return bytes_ < options_.most_bytes || !failure_.ok();
  };
  mutex_.Await(absl::Condition(&room));
  RETURN_IF_ERROR(failure_);
  const size_t bytes =
      std::visit([](const auto& message) { return message.ByteSizeLong(); }, report);
  Append(std::make_shared<const Report>(std::move(report)), bytes);
  return added_;
}

void ReportQueue::Append(std::shared_ptr<const Report> report, size_t bytes) {
  if (entries_.empty()) sign_ = absl::Now();
  bytes_ += bytes;
  entries_.push_back({.report = std::move(report), .bytes = bytes, .number = ++added_});
}

absl::Status ReportQueue::Drain() {
  absl::MutexLock lock(&mutex_);
  const auto drained = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return entries_.empty() || !failure_.ok();
  };
  mutex_.Await(absl::Condition(&drained));
  return failure_;
}

void ReportQueue::Repeat(std::vector<v1::ReportShardFileRequest> files) {
  absl::MutexLock lock(&mutex_);
  if (!failure_.ok()) return;
  // At the end, as the first one is on its way; which of two steps comes first is all one.
  if (last_step_ != nullptr) Append(last_step_, 0);
  for (v1::ReportShardFileRequest& file : files) {
    Append(std::make_shared<const Report>(std::move(file)), 0);
  }
}

void ReportQueue::Clear() {
  absl::MutexLock lock(&mutex_);
  entries_.clear();
  bytes_ = 0;
  answered_ = added_;
  last_step_ = nullptr;
  failure_ = absl::OkStatus();
  away_since_.reset();
}

void ReportQueue::NoteAway(absl::Time now) {
  if (away_since_.has_value()) return;
  away_since_ = now;
  answered_before_ = answered_;
  LOG(WARNING) << "the coordinator has not answered for " << FormatTimeSpan(now - sign_)
               << "; training goes on, and what it is to be told is kept";
}

void ReportQueue::Settle(const Entry& entry, absl::StatusOr<Answer> answer) {
  if (entries_.empty() || entries_.front().report != entry.report) return;
  if (!answer.ok()) {
    if (failure_.ok()) failure_ = answer.status();
    entries_.clear();
    bytes_ = 0;
    return;
  }
  bytes_ -= entry.bytes;
  entries_.pop_front();
  sign_ = absl::Now();
  answered_ = std::max(answered_, entry.number);
  if (const auto* step = std::get_if<v1::ReportStepRequest>(entry.report.get())) {
    answer_ = *std::move(answer);
    if (last_step_ == nullptr ||
        step->step() > std::get<v1::ReportStepRequest>(*last_step_).step()) {
      last_step_ = entry.report;
    }
  }
  if (away_since_.has_value() && entries_.empty()) {
    LOG(INFO) << "the coordinator is back after " << FormatTimeSpan(sign_ - *away_since_)
              << "; " << answered_ - answered_before_ << " reports came late";
    away_since_.reset();
  }
}

void ReportQueue::Run() {
  absl::MutexLock lock(&mutex_);
  const auto due = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stop_ || !entries_.empty();
  };
  while (true) {
    mutex_.Await(absl::Condition(&due));
    if (stop_) return;
    const Entry entry = entries_.front();
    mutex_.Unlock();
    absl::StatusOr<Answer> answer = send_(*entry.report);
    mutex_.Lock();
    Settle(entry, std::move(answer));
  }
}

}  // namespace moe
