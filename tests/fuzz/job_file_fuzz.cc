// Job files: text that is refused, or a job that says of itself what it said before.
#include <glog/logging.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>

#include "common/job/job_file.h"
#include "tests/fuzz/target.h"

namespace moe::fuzz {
namespace {

constexpr char kFlat[] = R"(
name: "flat" seed: 5 allow_mixed_numerics: true
model {
  d_model: 16 vocabulary: 100 embedding_dropout: 0.1
  layers { lstm { hidden: 16 forget_bias: 1 } dropout: 0.1 residual: true }
  layers {
    moe {
      experts: 8 k: 2 hidden: [64, 32] groups: 4 gating: GATING_NOISY_TOP_K
      w_importance: 0.1 w_load: 0.1 sigmoid_output: true parameters: PARAMETERS_BFLOAT16
    }
  }
  tables { shards: 2 candidates: 7 }
}
optimizer { adam {} clip_norm: 1 schedule { base_rate: 0.01 inverse_sqrt { warmup_steps: 10 } } }
training { replicas: 4 waves: 2 lanes: 4 unroll: 8 steps: 10 }
checkpointing { every_steps: 5 every_minutes: 1.5 keep_last: 2 }
)";

constexpr char kOther[] = R"(
name: "other"
model {
  d_model: 8
  layers { recurrent_moe { experts: 4 k: 1 hidden: 8 gating: GATING_STRICTLY_BALANCED } }
  layers { moe { experts: 8 k: 2 k_primary: 2 hidden: 8 groups: 4 } }
}
optimizer {
  sgd {} schedule { base_rate: 1 constant {} }
  experts { beta1: 0 second_moment: SECOND_MOMENT_FACTORED }
}
training { replicas: 2 waves: 1 lanes: 2 unroll: 4 epochs: 1.5 }
)";

}  // namespace

std::map<std::string, std::string> Seeds() {
  return {{"flat", kFlat},
          {"other", kOther},
          {"unknown_field", "name: \"a\"\nmodel { d_modle: 3 }"},
          {"unknown_value", "model { layers { moe { gating: GATING_NONE } } }"},
          {"no_text", std::string("\x00\xff{", 3)},
          {"empty", ""}};
}

}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<moe::v1::Job> job = moe::ParseJob(text, "job");
  if (!job.ok()) {
    CHECK(job.status().code() == absl::StatusCode::kInvalidArgument) << job.status();
    CHECK(!job.status().message().empty());
    return 0;
  }
  std::string printed;
  CHECK(google::protobuf::TextFormat::PrintToString(*job, &printed));
  const absl::StatusOr<moe::v1::Job> again = moe::ParseJob(printed, "printed job");
  CHECK(again.ok()) << again.status() << "\n" << printed;
  CHECK(google::protobuf::util::MessageDifferencer::Equals(*job, *again)) << printed;
  return 0;
}
