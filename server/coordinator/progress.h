// What the coordinator tells people about a run while it goes on.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "proto/moe/v1/status.pb.h"

namespace moe {

// A step that all workers have reported.
struct CompletedStep {
  // Steps taken, this one included.
  uint64_t step = 0;
  uint64_t total_steps = 0;
  double loss_sum = 0;
  uint64_t tokens = 0;
  double learning_rate = 0;
  std::vector<v1::BalanceStatus> balance;
};

// "validation", ...
std::string SplitName(v1::Split split);
// "moe1: CV(imp) 0.21 CV(load) 0.15 max/mean 1.42", one for each mixture; a recurrent MoE's are
// moe1.input and moe1.recurrent
std::string FormatBalance(const std::vector<v1::BalanceStatus>& balance);

// Not thread-safe.
class ProgressReporter {
 public:
  // print gets lines without their end.
  explicit ProgressReporter(std::function<void(const std::string&)> print)
      : print_(std::move(print)) {}

  void Line(const std::string& line) { print_(line); }
  // Prints if the text is new, or once in 10 seconds.
  void Waiting(const std::string& waiting_for, absl::Time now);
  // Training begins, or goes on from a checkpoint. words_per_epoch: of the training text.
  void Begin(uint64_t start_step, uint64_t words_per_epoch, absl::Time now);
  // Prints the first step, the last one, and about one a second.
  void Step(const CompletedStep& step, absl::Time now);
  // An evaluation that a coordinator before printed.
  void Restore(v1::Split split, double perplexity);
  // Prints, and keeps its own duration out of the words per second.
  void Evaluation(uint64_t step, v1::Split split, double perplexity,
                  const std::vector<v1::BalanceStatus>& balance, absl::Time now);
  // Prints. took: from the cut to the commit, while training went on.
  void Checkpoint(const v1::CheckpointStatus& checkpoint, absl::Duration took);

  const v1::Progress& progress() const { return progress_; }
  // Over the whole run, steps that were taken again included.
  double mean_words_per_second() const;

 private:
  struct Sample {
    // Of training, without evaluations.
    absl::Duration time;
    uint64_t words = 0;
  };
  // Of the last seconds.
  double WordsPerSecond() const;

  const std::function<void(const std::string&)> print_;
  v1::Progress progress_;

  std::string waiting_for_;
  absl::Time last_waiting_line_ = absl::InfinitePast();

  uint64_t words_per_epoch_ = 0;
  // Words of the steps before this run's first.
  double words_before_ = 0;
  uint64_t start_step_ = 0;
  absl::Time last_event_;
  absl::Time last_line_ = absl::InfinitePast();
  // Of the generations before.
  Sample before_;
  // Never empty once begun; the newest is the present.
  std::deque<Sample> samples_;
  double loss_since_line_ = 0;
  uint64_t tokens_since_line_ = 0;
};

}  // namespace moe
