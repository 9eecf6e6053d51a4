#include "common/job/describe.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/job/model_plan.h"
#include "common/job/tensor_state.h"
#include "glog/logging.h"

namespace moe {
namespace {

LayerCount CountLstm(int64_t d, const v1::Lstm& lstm) {
  const int64_t hidden = lstm.hidden();
  const int64_t recurrent = lstm.projection() > 0 ? lstm.projection() : hidden;
  const int64_t matrices = 4 * hidden * (d + recurrent) + hidden * lstm.projection();
  const int64_t biases = 4 * hidden;
  return {.name = "lstm", .parameters = matrices + biases, .multiply_adds = matrices};
}

LayerCount CountMoe(int64_t d, const v1::Moe& moe) {
  int64_t expert = 0;
  int64_t in = d;
  for (int32_t hidden : moe.hidden()) {
    expert += in * hidden;
    in = hidden;
  }
  expert += in * d;
  // Noisy top-k has W_g and W_noise, both applied to every token. Thresholds are
  // parameters, but no product.
  const int64_t matrices = moe.gating() == v1::GATING_NOISY_TOP_K ? 2 : 1;
  const int64_t thresholds =
      moe.gating() == v1::GATING_STRICTLY_BALANCED ? moe.experts() : 0;
  LayerCount count{.name = "moe"};
  count.parameters = moe.experts() * expert + thresholds;
  if (moe.k_primary() > 0) {
    const int64_t primary = matrices * d * moe.groups();
    const int64_t secondary = matrices * d * (moe.experts() / moe.groups());
    count.parameters += primary + moe.groups() * secondary;
    count.multiply_adds = primary + moe.k_primary() * (secondary + moe.k() * expert);
  } else {
    const int64_t gate = matrices * d * moe.experts();
    count.parameters += gate;
    count.multiply_adds = gate + moe.k() * expert;
  }
  return count;
}

LayerCount CountLayer(int64_t d, const v1::Layer& layer) {
  switch (layer.kind_case()) {
    case v1::Layer::kLstm:
      return CountLstm(d, layer.lstm());
    case v1::Layer::kMoe:
      return CountMoe(d, layer.moe());
    case v1::Layer::KIND_NOT_SET:
      break;
  }
  LOG(FATAL) << "a layer has no kind";
}

}  // namespace

ModelCount CountModel(const v1::Job& job) {
  const v1::Model& model = job.model();
  const int64_t d = model.d_model();
  const int64_t words = model.vocabulary();
  ModelCount count;
  count.embedding_parameters = words * d;
  count.softmax_parameters = words * d + words;
  for (int l = 0; l < model.layers_size(); ++l) {
    LayerCount layer = CountLayer(d, model.layers(l));
    layer.name = absl::StrCat("layer", l, ".", layer.name);
    count.parameters += layer.parameters;
    count.multiply_adds += layer.multiply_adds;
    count.layers.push_back(std::move(layer));
  }
  return count;
}

ModelStored CountStored(const v1::Job& job) {
  const bool known = job.model().vocabulary() > 0;
  v1::Job planned = job;
  if (!known) planned.mutable_model()->set_vocabulary(1);
  ModelStored stored;
  for (const TensorSpec& tensor : MakeModelPlan(planned).tensors) {
    const bool by_word = tensor.of_table || tensor.name == "embedding" ||
                         tensor.name.starts_with("softmax.");
    if (by_word && !known) continue;
    const TensorState state = StateOf(job.optimizer(), tensor);
    StoredCount& count = tensor.of_expert  ? stored.experts
                         : tensor.of_table ? stored.tables
                                           : stored.dense;
    count.parameters += tensor.size();
    count.parameter_bytes += state.parameter_bytes;
    count.optimizer_bytes += state.optimizer_bytes();
  }
  return stored;
}

}  // namespace moe
