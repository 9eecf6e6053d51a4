// The checks of a MoE layer and of a recurrent one.
#pragma once

#include <string>

#include "common/job/field_checks.h"
#include "proto/moe/v1/job.pb.h"

namespace moe {

// Tells `checks` of every field that is wrong. path: of the layer's moe in the job. The
// training decides how many tokens strictly balanced gating works on.
void CheckMoe(const std::string& path, const v1::Moe& moe, const v1::Training& training,
              FieldChecks& checks);
void CheckRecurrentMoe(const std::string& path, const v1::RecurrentMoe& layer,
                       int32_t d_model, const v1::Training& training,
                       FieldChecks& checks);

}  // namespace moe
