#include "common/job/expert_traffic.h"

#include <cmath>

namespace moe {
namespace {

// The probability that `chosen` of `all`, each as likely as any other, include one of
// `marked`.
double AnyOf(int32_t marked, int32_t chosen, int32_t all) {
  if (marked + chosen > all) return 1;
  double none = 1;
  for (int32_t i = 0; i < chosen; ++i) {
    none *= static_cast<double>(all - marked - i) / (all - i);
  }
  return 1 - none;
}

// Each token takes `chosen` of `all` choices, of which `groups` groups of `each` are here.
ExpertTraffic Chosen(int32_t chosen, int32_t all, int32_t groups, int32_t each) {
  return {.rows = AnyOf(groups * each, chosen, all),
          .group_rows = groups * AnyOf(each, chosen, all),
          .pairs = static_cast<double>(chosen) * groups * each / all};
}

// Each expert takes a token with probability k / n.
ExpertTraffic StrictlyBalanced(const v1::Moe& moe, int32_t groups, int32_t each) {
  const double share = static_cast<double>(moe.k()) / moe.experts();
  return {.rows = 1 - std::pow(1 - share, groups * each),
          .group_rows = groups * (1 - std::pow(1 - share, each)),
          .pairs = share * groups * each};
}

}  // namespace

ExpertTraffic EvenTraffic(const v1::Moe& moe, int32_t groups) {
  if (moe.k_primary() > 0) {
    ExpertTraffic traffic = Chosen(moe.k_primary(), moe.groups(), groups, 1);
    traffic.pairs *= moe.k();
    return traffic;
  }
  const int32_t each = moe.experts() / moe.groups();
  switch (moe.gating()) {
    case v1::GATING_SOFTMAX:
      return Chosen(moe.experts(), moe.experts(), groups, each);
    case v1::GATING_STRICTLY_BALANCED:
      return StrictlyBalanced(moe, groups, each);
    default:
      return Chosen(moe.k(), moe.experts(), groups, each);
  }
}

}  // namespace moe
