#include "common/job/check_moe.h"

#include "absl/strings/str_cat.h"

namespace moe {
namespace {

// That m = k t / n is a whole number.
void CheckStrictBatch(const std::string& path, const v1::Moe& moe,
                      const v1::Training& training, FieldChecks& checks) {
  if (moe.experts() < 1 || training.waves() < 1) return;
  const int64_t tokens = int64_t{training.lanes()} / training.waves() * training.unroll();
  if (tokens < 1 || moe.k() * tokens % moe.experts() == 0) return;
  checks.Fail(path + ".experts",
              absl::StrCat("is ", moe.experts(), ": must divide k * tokens = ", moe.k(),
                           " * ", tokens,
                           " (lanes / waves * unroll), because every expert gets equally "
                           "many tokens of a wave"));
}

void CheckHierarchy(const std::string& path, const v1::Moe& moe, FieldChecks& checks) {
  const int32_t per_group = moe.experts() / moe.groups();
  if (moe.k_primary() < 0 || moe.k_primary() > moe.groups()) {
    checks.Fail(path + ".k_primary",
                absl::StrCat("is ", moe.k_primary(), ": must be between 1 and groups (",
                             moe.groups(), "), or 0 for a flat mixture"));
  }
  if (moe.k() < 1 || moe.k() > per_group) {
    checks.Fail(
        path + ".k",
        absl::StrCat("is ", moe.k(), ": must be between 1 and the experts of a group (",
                     per_group, "), because k_primary makes the mixture hierarchical"));
  }
}

void CheckGating(const std::string& path, const v1::Moe& moe,
                 const v1::Training& training, FieldChecks& checks) {
  const bool hierarchical = moe.k_primary() != 0;
  if (hierarchical && (moe.gating() == v1::GATING_SOFTMAX ||
                       moe.gating() == v1::GATING_STRICTLY_BALANCED)) {
    checks.Fail(path + ".gating",
                absl::StrCat("is ", v1::Gating_Name(moe.gating()),
                             ": a hierarchical mixture (k_primary) needs "
                             "GATING_NOISY_TOP_K"));
    return;
  }
  switch (moe.gating()) {
    case v1::GATING_NOISY_TOP_K:
      return;
    case v1::GATING_SOFTMAX:
      if (moe.k() != moe.experts()) {
        checks.Fail(path + ".k",
                    absl::StrCat("is ", moe.k(), ": softmax gating uses all ",
                                 moe.experts(), " experts; leave k out"));
      }
      break;
    case v1::GATING_STRICTLY_BALANCED:
      CheckStrictBatch(path, moe, training, checks);
      break;
    case v1::GATING_UNSPECIFIED:
      checks.Fail(path + ".gating", "is not set: must be one of " + EnumValues("gating"));
      return;
    default:
      checks.Fail(path + ".gating",
                  absl::StrCat("is ", static_cast<int>(moe.gating()), ": must be one of ",
                               EnumValues("gating")));
      return;
  }
  if (moe.w_load() != 0) {
    checks.Fail(
        path + ".w_load",
        absl::StrCat("is ", moe.w_load(), ": must be 0, because Load is a constant with ",
                     v1::Gating_Name(moe.gating())));
  }
}

// What a MoE layer and the mixtures of a recurrent one have in common.
void CheckMixture(const std::string& path, const v1::Moe& moe,
                  const v1::Training& training, FieldChecks& checks) {
  checks.CheckSize(path + ".experts", moe.experts());
  if (moe.groups() < 1 || moe.groups() > moe.experts() ||
      moe.experts() % moe.groups() != 0) {
    checks.Fail(
        path + ".groups",
        absl::StrCat("is ", moe.groups(), ": must divide experts (", moe.experts(), ")"));
  } else if (moe.k_primary() != 0) {
    CheckHierarchy(path, moe, checks);
  } else if (moe.k() < 1 || moe.k() > moe.experts()) {
    checks.Fail(path + ".k",
                absl::StrCat("is ", moe.k(), ": must be between 1 and experts (",
                             moe.experts(), ")"));
  }
  for (int i = 0; i < moe.hidden_size(); ++i) {
    checks.CheckSize(absl::StrCat(path, ".hidden[", i, "]"), moe.hidden(i));
  }
  checks.CheckNotNegative(path + ".w_importance", moe.w_importance());
  checks.CheckNotNegative(path + ".w_load", moe.w_load());
  CheckGating(path, moe, training, checks);
  if (!v1::Parameters_IsValid(moe.parameters())) {
    checks.Fail(path + ".parameters",
                absl::StrCat("is ", static_cast<int>(moe.parameters()),
                             ": must be one of ", EnumValues("parameters")));
  }
}

void CheckInRecurrentMoe(const std::string& path, bool present, const v1::Moe& moe,
                         const v1::Training& training, FieldChecks& checks) {
  if (!present) {
    checks.Fail(path, "is not set: both products of the layer are mixtures of experts");
    return;
  }
  CheckMixture(path, moe, training, checks);
  if (moe.k_primary() != 0) {
    checks.Fail(path + ".k_primary",
                absl::StrCat("is ", moe.k_primary(),
                             ": must be 0, because the mixtures of a "
                             "recurrent_moe are flat"));
  }
  if (moe.gating() == v1::GATING_STRICTLY_BALANCED) {
    checks.Fail(
        path + ".gating",
        "is GATING_STRICTLY_BALANCED: a recurrent_moe needs GATING_NOISY_TOP_K or "
        "GATING_SOFTMAX");
  }
  if (moe.sigmoid_output()) {
    checks.Fail(path + ".sigmoid_output",
                "is true: must be false, because what the mixture gives is added to the "
                "gates of an LSTM");
  }
}

}  // namespace

void CheckMoe(const std::string& path, const v1::Moe& moe, const v1::Training& training,
              FieldChecks& checks) {
  CheckMixture(path, moe, training, checks);
  if (moe.hidden().empty()) {
    checks.Fail(path + ".hidden", "is empty: an expert needs a hidden layer");
  }
}

void CheckRecurrentMoe(const std::string& path, const v1::RecurrentMoe& layer,
                       int32_t d_model, const v1::Training& training,
                       FieldChecks& checks) {
  checks.CheckSize(path + ".hidden", layer.hidden());
  if (layer.hidden() != d_model) {
    checks.Fail(path + ".hidden",
                absl::StrCat("is ", layer.hidden(), ": must be d_model (", d_model, ")"));
  }
  CheckInRecurrentMoe(path + ".input", layer.has_input(), layer.input(), training,
                      checks);
  CheckInRecurrentMoe(path + ".recurrent", layer.has_recurrent(), layer.recurrent(),
                      training, checks);
  checks.CheckFinite(path + ".forget_bias", layer.forget_bias());
  checks.CheckAtLeast(path + ".kept_states", layer.kept_states(), 0);
}

}  // namespace moe
