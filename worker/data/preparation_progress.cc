#include "worker/data/preparation_progress.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/base/human.h"

namespace moe {

void PreparationProgress::Advance(int64_t work) {
  done_ += work;
  const absl::Time now = absl::Now();
  if (now < next_report_) return;
  next_report_ = now + kReportEvery;
  const double share =
      std::min(1.0, static_cast<double>(done_) / static_cast<double>(total_));
  out_ << absl::StrFormat("preparing text: %.0f %%, %s left\n", 100 * share,
                          FormatTimeSpan((now - start_) * ((1 - share) / share)))
       << std::flush;
}

void PreparationProgress::Warn(const std::string& warning) {
  out_ << "warning: " << warning << "\n" << std::flush;
}

}  // namespace moe
