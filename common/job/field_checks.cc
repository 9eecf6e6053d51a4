#include "common/job/field_checks.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/descriptor.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {
namespace {

// Sizes stay below this, so that products of a few of them fit in 64 bits.
constexpr int kMaxSize = 1 << 20;

}  // namespace

std::string EnumValues(const std::string& field_name) {
  const google::protobuf::FileDescriptor* file = v1::Job::descriptor()->file();
  for (int i = 0; i < file->message_type_count(); ++i) {
    const google::protobuf::FieldDescriptor* field =
        file->message_type(i)->FindFieldByName(field_name);
    if (field == nullptr || field->enum_type() == nullptr) continue;
    const google::protobuf::EnumDescriptor& type = *field->enum_type();
    std::vector<std::string> names;
    for (int v = 0; v < type.value_count(); ++v) {
      if (type.value(v)->number() != 0) names.push_back(type.value(v)->name());
    }
    return absl::StrJoin(names, ", ");
  }
  return "";
}

void FieldChecks::Fail(const std::string& path, const std::string& what) {
  errors_.push_back(absl::StrCat(path, " ", what));
}

void FieldChecks::CheckSize(const std::string& path, int64_t value) {
  if (value >= 1 && value <= kMaxSize) return;
  Fail(path, absl::StrCat("is ", value, ": must be between 1 and ", kMaxSize));
}

void FieldChecks::CheckAtLeast(const std::string& path, int64_t value, int64_t least) {
  if (value >= least) return;
  Fail(path, absl::StrCat("is ", value, ": must be at least ", least));
}

void FieldChecks::CheckFraction(const std::string& path, float value) {
  if (value >= 0 && value < 1) return;
  Fail(path, absl::StrCat("is ", value, ": must be in [0, 1)"));
}

void FieldChecks::CheckFinite(const std::string& path, float value) {
  if (std::isfinite(value)) return;
  Fail(path, absl::StrCat("is ", value, ": must be finite"));
}

void FieldChecks::CheckNotNegative(const std::string& path, float value) {
  if (std::isfinite(value) && value >= 0) return;
  Fail(path, absl::StrCat("is ", value, ": must be 0 or more, and finite"));
}

void FieldChecks::CheckPositive(const std::string& path, float value) {
  if (std::isfinite(value) && value > 0) return;
  Fail(path, absl::StrCat("is ", value, ": must be greater than 0, and finite"));
}

}  // namespace moe
