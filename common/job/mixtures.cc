#include "common/job/mixtures.h"

#include "absl/strings/str_cat.h"

namespace moe {

std::vector<Mixture> MixturesOf(const v1::Job& job) {
  const int64_t d = job.model().d_model();
  std::vector<Mixture> mixtures;
  for (int l = 0; l < job.model().layers_size(); ++l) {
    const v1::Layer& layer = job.model().layers(l);
    const std::string name = absl::StrCat("layer", l);
    if (layer.has_moe()) {
      mixtures.push_back({.id = l,
                          .part = "",
                          .tensors = name + ".moe.",
                          .shards = name + "/",
                          .moe = layer.moe(),
                          .in = d,
                          .out = d});
    } else if (layer.has_recurrent_moe()) {
      const v1::RecurrentMoe& recurrent = layer.recurrent_moe();
      const auto add = [&](uint32_t mixture, const std::string& part, const v1::Moe& moe,
                           int64_t in, int32_t calls) {
        mixtures.push_back({.id = {static_cast<uint32_t>(l), mixture},
                            .part = part,
                            .tensors = absl::StrCat(name, ".recurrent_moe.", part, "."),
                            .shards = absl::StrCat(name, "/", part, "/"),
                            .moe = moe,
                            .in = in,
                            .out = int64_t{4} * recurrent.hidden(),
                            .calls = calls});
      };
      add(kInputMixture, "input", recurrent.input(), d, 1);
      add(kRecurrentMixture, "recurrent", recurrent.recurrent(), recurrent.hidden(),
          job.training().unroll());
    }
  }
  return mixtures;
}

std::string MixtureName(uint32_t layer, const std::string& part) {
  return absl::StrCat("layer ", layer, part.empty() ? "" : " ", part);
}

std::vector<int64_t> ExpertWidths(const Mixture& mixture) {
  std::vector<int64_t> widths = {mixture.in};
  widths.insert(widths.end(), mixture.moe.hidden().begin(), mixture.moe.hidden().end());
  widths.push_back(mixture.out);
  return widths;
}

std::vector<v1::Moe*> MutableMixtures(v1::Model* model) {
  std::vector<v1::Moe*> mixtures;
  for (v1::Layer& layer : *model->mutable_layers()) {
    if (layer.has_moe()) mixtures.push_back(layer.mutable_moe());
    if (layer.has_recurrent_moe()) {
      mixtures.push_back(layer.mutable_recurrent_moe()->mutable_input());
      mixtures.push_back(layer.mutable_recurrent_moe()->mutable_recurrent());
    }
  }
  return mixtures;
}

}  // namespace moe
