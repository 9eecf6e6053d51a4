// Checks of a job's fields, and what is wrong with them.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace moe {

// Names of the values of the first enum field of job.proto with this name, but for the one
// that stands for unset.
std::string EnumValues(const std::string& field_name);

// Collects "<path> <what>" for each field that is wrong. The comparisons are written so that
// NaN is outside of every range.
class FieldChecks {
 public:
  void Fail(const std::string& path, const std::string& what);
  // A whole line.
  void Fail(std::string line) { errors_.push_back(std::move(line)); }
  void CheckSize(const std::string& path, int64_t value);
  void CheckAtLeast(const std::string& path, int64_t value, int64_t least);
  void CheckFraction(const std::string& path, float value);
  void CheckFinite(const std::string& path, float value);
  void CheckNotNegative(const std::string& path, float value);
  void CheckPositive(const std::string& path, float value);

  std::vector<std::string> TakeErrors() { return std::move(errors_); }

 private:
  std::vector<std::string> errors_;
};

}  // namespace moe
