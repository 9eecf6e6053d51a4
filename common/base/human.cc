#include "common/base/human.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace moe {

std::string FormatCount(int64_t count) {
  std::string text = absl::StrCat(count);
  const int sign = count < 0 ? 1 : 0;
  for (int i = static_cast<int>(text.size()) - 3; i > sign; i -= 3) text.insert(i, ",");
  return text;
}

std::string FormatTimeSpan(absl::Duration duration) {
  if (duration == absl::InfiniteDuration() || duration == -absl::InfiniteDuration()) {
    return "unknown";
  }
  if (duration < absl::ZeroDuration())
    return absl::StrCat("-", FormatTimeSpan(-duration));
  const double seconds = absl::ToDoubleSeconds(duration);
  if (seconds < 0.9995) return absl::StrFormat("%.0f ms", seconds * 1e3);
  if (seconds < 9.95) return absl::StrFormat("%.1f s", seconds);
  const int64_t whole = std::llround(seconds);
  if (whole < 60) return absl::StrCat(whole, " s");
  // Two units, the smaller one rounded down: never "60 s" beside minutes.
  const struct {
    int64_t seconds;
    const char* name;
  } units[] = {{86400, "d"}, {3600, "h"}, {60, "min"}, {1, "s"}};
  int i = 0;
  while (whole < units[i].seconds) ++i;
  return absl::StrCat(whole / units[i].seconds, " ", units[i].name, " ",
                      whole % units[i].seconds / units[i + 1].seconds, " ",
                      units[i + 1].name);
}

std::string FormatBytes(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  int i = 0;
  while (value >= 1023.95) {
    value /= 1024;
    ++i;
  }
  return absl::StrFormat("%.1f %s", value, units[i]);
}

}  // namespace moe
