#include "server/coordinator/progress.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/human.h"

namespace moe {
namespace {

constexpr absl::Duration kLineEvery = absl::Seconds(1);
constexpr absl::Duration kWaitingLineEvery = absl::Seconds(10);
constexpr absl::Duration kWindow = absl::Seconds(15);

}  // namespace

std::string SplitName(v1::Split split) {
  switch (split) {
    case v1::SPLIT_TRAIN:
      return "train";
    case v1::SPLIT_VALIDATION:
      return "validation";
    case v1::SPLIT_TEST:
      return "test";
    default:
      return "unknown";
  }
}

std::string FormatBalance(const std::vector<v1::BalanceStatus>& balance) {
  return absl::StrJoin(
      balance, "  ", [](std::string* out, const v1::BalanceStatus& layer) {
        absl::StrAppend(out, "moe", layer.layer(), layer.mixture().empty() ? "" : ".",
                        layer.mixture());
        absl::StrAppendFormat(out, ": CV(imp) %.2f CV(load) %.2f max/mean %.2f",
                              layer.cv_importance(), layer.cv_load(),
                              layer.max_over_mean_load());
        if (layer.unrouted_share() > 0) {
          absl::StrAppendFormat(out, " unrouted %.1f %%", 100 * layer.unrouted_share());
        }
      });
}

void ProgressReporter::Waiting(const std::string& waiting_for, absl::Time now) {
  if (waiting_for == waiting_for_ && now - last_waiting_line_ < kWaitingLineEvery) return;
  waiting_for_ = waiting_for;
  last_waiting_line_ = now;
  print_(waiting_for);
}

void ProgressReporter::Begin(uint64_t start_step, uint64_t words_per_epoch,
                             absl::Time now) {
  start_step_ = start_step;
  words_per_epoch_ = words_per_epoch;
  progress_.set_step(start_step);
  last_event_ = now;
  if (!samples_.empty()) {
    before_.time += samples_.back().time;
    before_.words += samples_.back().words;
  }
  samples_ = {Sample()};
  loss_since_line_ = 0;
  tokens_since_line_ = 0;
}

void ProgressReporter::Step(const CompletedStep& step, absl::Time now) {
  const bool first = samples_.back().words == 0;
  samples_.push_back(
      {samples_.back().time + (now - last_event_), samples_.back().words + step.tokens});
  last_event_ = now;
  while (samples_.size() > 2 && samples_.back().time - samples_[1].time > kWindow) {
    samples_.pop_front();
  }
  // A run that goes on from a checkpoint took steps of the same size before.
  if (first)
    words_before_ = static_cast<double>(start_step_) * static_cast<double>(step.tokens);
  loss_since_line_ += step.loss_sum;
  tokens_since_line_ += step.tokens;

  const double words_per_second = WordsPerSecond();
  const double words_left = step.total_steps <= step.step
                                ? 0
                                : static_cast<double>(step.total_steps - step.step) *
                                      static_cast<double>(step.tokens);
  progress_.set_step(step.step);
  progress_.set_total_steps(step.total_steps);
  progress_.set_words_per_second(words_per_second);
  progress_.set_seconds_left(words_per_second > 0 ? words_left / words_per_second : 0);
  progress_.set_learning_rate(step.learning_rate);
  progress_.mutable_balance()->Assign(step.balance.begin(), step.balance.end());

  const bool last = step.step >= step.total_steps;
  if (!first && !last && now - last_line_ < kLineEvery) return;
  progress_.set_train_perplexity(std::exp(
      loss_since_line_ / static_cast<double>(std::max<uint64_t>(1, tokens_since_line_))));
  loss_since_line_ = 0;
  tokens_since_line_ = 0;
  last_line_ = now;
  const double words = words_before_ + static_cast<double>(samples_.back().words);
  std::string line = absl::StrFormat("step %d/%d", step.step, step.total_steps);
  if (words_per_epoch_ > 0) {
    absl::StrAppendFormat(&line, "  epoch %.2f",
                          words / static_cast<double>(words_per_epoch_));
  }
  absl::StrAppendFormat(&line, "  words/s %s  train ppl %.1f  lr %.5f",
                        FormatCount(std::llround(words_per_second)),
                        progress_.train_perplexity(), step.learning_rate);
  if (!step.balance.empty()) absl::StrAppend(&line, "  ", FormatBalance(step.balance));
  if (!last && words_per_second > 0) {
    absl::StrAppend(&line, "  ETA ",
                    FormatTimeSpan(absl::Seconds(progress_.seconds_left())));
  }
  print_(line);
}

void ProgressReporter::Evaluation(uint64_t step, v1::Split split, double perplexity,
                                  const std::vector<v1::BalanceStatus>& balance,
                                  absl::Time now) {
  std::string line = absl::StrFormat("%s perplexity %.2f after step %d", SplitName(split),
                                     perplexity, step);
  if (!balance.empty()) absl::StrAppend(&line, "  ", FormatBalance(balance));
  absl::StrAppend(&line, "  (", FormatTimeSpan(now - last_event_), ")");
  print_(line);
  last_event_ = now;
  Restore(split, perplexity);
}

void ProgressReporter::Restore(v1::Split split, double perplexity) {
  if (split == v1::SPLIT_VALIDATION) progress_.set_validation_perplexity(perplexity);
  if (split == v1::SPLIT_TEST) progress_.set_test_perplexity(perplexity);
}

void ProgressReporter::Checkpoint(const v1::CheckpointStatus& checkpoint,
                                  absl::Duration took) {
  print_(absl::StrCat(
      "checkpoint ", checkpoint.folder(), "  digest ", checkpoint.digest().substr(0, 16),
      checkpoint.best() ? "  (best so far)" : "", "  (", FormatTimeSpan(took), ")"));
}

double ProgressReporter::WordsPerSecond() const {
  const Sample& begin = samples_.front();
  const Sample& end = samples_.back();
  const double seconds = absl::ToDoubleSeconds(end.time - begin.time);
  return seconds > 0 ? static_cast<double>(end.words - begin.words) / seconds : 0;
}

double ProgressReporter::mean_words_per_second() const {
  if (samples_.empty()) return 0;
  const double seconds = absl::ToDoubleSeconds(before_.time + samples_.back().time);
  const uint64_t words = before_.words + samples_.back().words;
  return seconds > 0 ? static_cast<double>(words) / seconds : 0;
}

}  // namespace moe
