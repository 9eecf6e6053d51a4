// What prepare_text says while it works.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace moe {

class PreparationProgress {
 public:
  // total: the sum of what Advance will be told, in any unit. out must outlive the object.
  PreparationProgress(int64_t total, std::ostream& out) : total_(total), out_(out) {}

  // Prints a line every few seconds: the share that is done, and the time that is left.
  void Advance(int64_t work);
  void Warn(const std::string& warning);

 private:
  static constexpr absl::Duration kReportEvery = absl::Seconds(2);

  const int64_t total_;
  std::ostream& out_;
  int64_t done_ = 0;
  const absl::Time start_ = absl::Now();
  absl::Time next_report_ = start_ + kReportEvery;
};

}  // namespace moe
