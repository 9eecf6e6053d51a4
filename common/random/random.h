// Counter-based random numbers: each is a pure function of logical ids, so that no draw depends on
// which process, thread or order of work makes it (docs/design/bits.md).
//
// Generator: Philox-4x32-10 (Salmon et al. 2011). A Key names a tensor of numbers; (row, column)
// names the element. Thread-safe: nothing here has state.
#pragma once

#include <cstdint>
#include <span>

namespace moe {

// What a number is for. The values are part of the result of a job: never renumber.
enum class Purpose : uint32_t {
  kInitialValue = 1,
  kDropout = 2,
  kGateNoise = 3,
  kProbe = 4,
  // Order of tokens that tie for an expert.
  kGateTie = 5,
  kSecondaryGateNoise = 6,
  // Words of a sampled softmax.
  kCandidate = 7,
  // Stochastic rounding of bf16 parameters.
  kRounding = 8,
  // As kGateNoise, of a recurrent MoE's recurrent mixture.
  kRecurrentGateNoise = 9,
};

// Key of one tensor of random numbers, derived by Philox from the ids.
struct RandomKey {
  uint32_t k0 = 0;
  uint32_t k1 = 0;
  friend bool operator==(const RandomKey&, const RandomKey&) = default;
};

// The id of layer l of a model (from 0), and that of its embedding.
constexpr uint32_t LayerId(int32_t l) { return static_cast<uint32_t>(l) + 1; }
inline constexpr uint32_t kEmbeddingId = 0;

// The ids that name a tensor of numbers; unused ones stay zero.
struct RandomIds {
  // LayerId or kEmbeddingId.
  uint32_t layer = 0;
  uint64_t step = 0;
  uint32_t wave = 0;
  uint32_t replica = 0;
  // Of a logical tensor of parameters.
  uint32_t tensor = 0;
  // Of a hierarchical MoE.
  uint32_t group = 0;
};

RandomKey MakeKey(uint64_t seed, Purpose purpose, const RandomIds& ids);

// Fills out[c] with the number of element (row, c).
void FillBits(RandomKey key, uint64_t row, std::span<uint32_t> out);
// The number of one element, as FillBits gives it.
uint32_t Bits(RandomKey key, uint64_t row, uint64_t column);
// Uniform in [0, 1), multiples of 2^-24.
void FillUniform(RandomKey key, uint64_t row, std::span<float> out);
// Standard normal (Box-Muller on the uniforms of the same element pair).
void FillNormal(RandomKey key, uint64_t row, std::span<float> out);

}  // namespace moe
