#include "client/balance_totals.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_format.h"

namespace moe {
namespace {

bool SameBits(const google::protobuf::RepeatedField<double>& a,
              const google::protobuf::RepeatedField<double>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

// NaN is the same as itself: what diverges is named by its loss.
bool SameBits(double a, double b) {
  return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b);
}

bool SameBits(const v1::Spread& a, const v1::Spread& b) {
  return SameBits(a.mean(), b.mean()) && SameBits(a.m2(), b.m2());
}

Spread FromProto(const v1::Spread& spread, int32_t count) {
  return {count, spread.mean(), spread.m2()};
}

}  // namespace

absl::Status CheckTotals(const ExpertLayout& layout, const v1::GroupOutput& group) {
  const int expected = layout.hierarchical ? 0 : layout.experts_per_group();
  if (group.importance_size() != expected || group.load_size() != expected) {
    return absl::InternalError(
        absl::StrFormat("%d values of importance and %d of load instead of %d",
                        group.importance_size(), group.load_size(), expected));
  }
  if (layout.hierarchical &&
      !(group.has_importance_spread() && group.has_load_spread())) {
    return absl::InternalError("no spread of importance or load");
  }
  return absl::OkStatus();
}

bool SameTotals(const v1::GroupOutput& a, const v1::GroupOutput& b) {
  return a.tokens() == b.tokens() && SameBits(a.importance(), b.importance()) &&
         SameBits(a.load(), b.load()) &&
         SameBits(a.importance_spread(), b.importance_spread()) &&
         SameBits(a.load_spread(), b.load_spread());
}

BalanceTotals JoinTotals(const ExpertLayout& layout,
                         std::span<const v1::GroupOutput* const> groups) {
  BalanceTotals totals;
  Spread importance, load;
  for (const v1::GroupOutput* group : groups) {
    totals.tokens = group->tokens();
    if (layout.hierarchical) {
      const int32_t b = layout.experts_per_group();
      importance = Join(importance, FromProto(group->importance_spread(), b));
      load = Join(load, FromProto(group->load_spread(), b));
    } else {
      totals.importance.insert(totals.importance.end(), group->importance().begin(),
                               group->importance().end());
      totals.load.insert(totals.load.end(), group->load().begin(), group->load().end());
    }
  }
  if (!layout.hierarchical) {
    importance = SpreadOf(totals.importance);
    load = SpreadOf(totals.load);
  }
  totals.moments = {importance.moments(), load.moments()};
  return totals;
}

}  // namespace moe
