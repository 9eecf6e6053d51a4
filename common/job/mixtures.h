// The mixtures of experts of a model: a MoE layer is one, a recurrent MoE has two. A function of
// the job alone.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "proto/moe/v1/job.pb.h"

namespace moe {

// As in FrameId (expert.proto).
struct MixtureId {
  // Not explicit: a layer's number is the id of its first mixture, which mostly is its only one.
  MixtureId(uint32_t layer = 0, uint32_t mixture = 0) : layer(layer), mixture(mixture) {}

  uint32_t layer;
  uint32_t mixture;
  friend auto operator<=>(const MixtureId&, const MixtureId&) = default;
};

inline constexpr uint32_t kInputMixture = 0;
inline constexpr uint32_t kRecurrentMixture = 1;

struct Mixture {
  MixtureId id;
  // "" | "input" | "recurrent"
  std::string part;
  // The prefix of its tensors' names, "layer1.moe." or "layer1.recurrent_moe.input.", and of its
  // shards' ids, "layer1/" or "layer1/input/".
  std::string tensors;
  std::string shards;
  v1::Moe moe;
  // Numbers in a row that an expert gets, and in what it makes of it.
  int64_t in = 0;
  int64_t out = 0;
  // In each wave of a step; together they have the tokens of the wave, each the same number.
  int32_t calls = 1;
};

// In the order of their first calls in a step. The job may be without a vocabulary.
std::vector<Mixture> MixturesOf(const v1::Job& job);
// "layer 1", "layer 1 recurrent"; part: as of Mixture.
std::string MixtureName(uint32_t layer, const std::string& part);
// The numbers of an expert's layers, first to last: its input, its hidden ones, its output.
std::vector<int64_t> ExpertWidths(const Mixture& mixture);
// The moe fields of all layers.
std::vector<v1::Moe*> MutableMixtures(v1::Model* model);

}  // namespace moe
