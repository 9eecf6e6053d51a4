#include "common/job/describe.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/job/mixtures.h"
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

LayerCount CountMixture(const Mixture& mixture) {
  const v1::Moe& moe = mixture.moe;
  const int64_t d = mixture.in;
  int64_t expert = 0;
  const std::vector<int64_t> widths = ExpertWidths(mixture);
  for (size_t i = 1; i < widths.size(); ++i) expert += widths[i - 1] * widths[i];
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

LayerCount CountRecurrentMoe(const Mixture& input, const Mixture& recurrent) {
  LayerCount count{.name = "recurrent_moe"};
  for (const Mixture* mixture : {&input, &recurrent}) {
    const LayerCount of_mixture = CountMixture(*mixture);
    count.parameters += of_mixture.parameters;
    count.multiply_adds += of_mixture.multiply_adds;
  }
  count.parameters += input.out;  // biases
  return count;
}

}  // namespace

ModelCount CountModel(const v1::Job& job) {
  const v1::Model& model = job.model();
  const int64_t d = model.d_model();
  const int64_t words = model.vocabulary();
  ModelCount count;
  count.embedding_parameters = words * d;
  count.softmax_parameters = words * d + words;
  const std::vector<Mixture> mixtures = MixturesOf(job);
  auto mixture = mixtures.begin();
  for (int l = 0; l < model.layers_size(); ++l) {
    LayerCount layer;
    if (model.layers(l).has_lstm()) {
      layer = CountLstm(d, model.layers(l).lstm());
    } else if (model.layers(l).has_moe()) {
      layer = CountMixture(*mixture++);
    } else {
      CHECK(model.layers(l).has_recurrent_moe()) << "layer " << l << " has no kind";
      layer = CountRecurrentMoe(mixture[0], mixture[1]);
      mixture += 2;
    }
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
