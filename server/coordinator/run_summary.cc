#include "server/coordinator/run_summary.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "common/base/human.h"
#include "server/coordinator/progress.h"

namespace moe {

std::vector<std::string> SummaryLines(const std::string& job, const RunSummary& summary) {
  std::vector<std::string> lines = {""};
  lines.push_back(absl::StrCat("finished ", job, " after step ", summary.step));
  const auto perplexity = [&](const char* name, double value) {
    if (value > 0) lines.push_back(absl::StrFormat("  %-22s%.3f", name, value));
  };
  perplexity("test perplexity", summary.test_perplexity);
  perplexity("validation perplexity", summary.validation_perplexity);
  for (const v1::BalanceStatus& layer : summary.balance) {
    lines.push_back(
        absl::StrFormat("  %-22s%s", "expert balance", FormatBalance({layer})));
  }
  if (!summary.digest.empty()) {
    lines.push_back(absl::StrFormat("  %-22s%s", "parameter digest", summary.digest));
    lines.push_back(absl::StrFormat("  %-22s%s", "checkpoint", summary.checkpoint));
  }
  if (summary.words_per_second > 0) {
    lines.push_back(absl::StrFormat("  %-22s%s", "words/s (mean)",
                                    FormatCount(std::llround(summary.words_per_second))));
  }
  lines.push_back(absl::StrFormat("  %-22s%s", "time",
                                  FormatTimeSpan(absl::Seconds(summary.seconds))));
  return lines;
}

}  // namespace moe
