#include <algorithm>

#include "common/kernels/arguments.h"
#include "common/kernels/cuda/block.h"
#include "common/kernels/cuda/device_math.h"
#include "common/kernels/cuda/elements.h"
#include "common/kernels/cuda/gating.h"
#include "common/random/element.h"

namespace moe::cuda {
namespace {

constexpr unsigned kThreads = 128;
// Load is summed over the tokens of such a block, then over the blocks, both in order.
constexpr int64_t kTokenBlock = 32;

// The scale of the noise, Softplus(raw) (eq. 4), and its slope. The floor only guards divisions.
struct NoiseScale {
  __device__ explicit NoiseScale(float raw) {
    const float e = Exp(-fabsf(raw));
    const float softplus = SoftplusOfExp(raw, e);
    value = softplus < 1e-20f ? 1e-20f : softplus;
    const float upper = 1 / (1 + e);
    slope = std::bit_cast<int32_t>(raw) < 0 ? e * upper : upper;
  }
  float value;
  float slope;  // Sigmoid(raw)
};

// dP/dclean and dP/draw times `factor`; dP/dthreshold = -dP/dclean (eq. 9).
struct ProbabilityGradient {
  __device__ ProbabilityGradient(float clean, float raw, float threshold, float factor) {
    const NoiseScale scale(raw);
    float z = (clean - threshold) / scale.value;
    // Far out the density is zero, but infinity times zero wouldn't be.
    if (z > 1e4f) z = 1e4f;
    if (z < -1e4f) z = -1e4f;
    dclean = factor * (NormalPdf(z) / scale.value);
    draw = -z * dclean * scale.slope;
  }
  float dclean;
  float draw;
};

// A GateBatch with the device's pointers, and what the kernels keep.
struct Gate {
  ConstView clean, raw;
  View noise;
  int32_t k;
  bool with_noise;
  RandomKey key;
  const int32_t* draw_row;  // null: the token's number
  int32_t* expert;
  float* gate;
  int32_t* threshold;
  double* importance;
  double* load;
  float* logit;    // [T, n] H (eq. 4)
  int32_t* best;   // [T, ranked] the experts with the largest H, largest first
  int32_t ranked;  // k + 1, or all

  __device__ bool Has(int64_t t, int32_t i) const {
    const int32_t* const chosen = expert + t * k;
    for (int32_t j = 0; j < k; ++j) {
      if (chosen[j] == i) return true;
    }
    return false;
  }
};

struct Larger {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

// A number that is larger for larger values, and of equal ones for the lower expert; never 0. NaN is the
// smallest.
__device__ uint64_t RankOf(float value, int32_t expert) {
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);  // -0 and 0 are one
  uint32_t order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  if (value != value) order = 0;
  return static_cast<uint64_t>(order) << 32 |
         (0xFFFFFFFFu - static_cast<uint32_t>(expert));
}

// A block has a token.
__global__ void ChooseKernel(Gate g) {
  const int64_t t = blockIdx.x;
  const int64_t n = g.clean.cols;
  float* const logit = g.logit + t * n;
  const float* const clean = g.clean.row(t);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    float h = clean[i];
    if (g.with_noise) {
      const uint64_t row = g.draw_row == nullptr ? t : g.draw_row[t];
      const std::array<uint32_t, 4> bits = BlockOfBits(g.key, row, i / 4);
      const int pair = static_cast<int>(i % 4) / 2 * 2;
      const float noise = NormalOfBits(bits[pair], bits[pair + 1], i % 2 == 1);
      g.noise.row(t)[i] = noise;
      h = fmaf(noise, NoiseScale(g.raw.row(t)[i]).value, h);
    }
    logit[i] = h;
  }
  // The largest below the one before, again and again. A thread looks at what it wrote.
  int32_t* const best = g.best + t * g.ranked;
  uint64_t before = ~uint64_t{0};
  for (int32_t j = 0; j < g.ranked; ++j) {
    uint64_t largest = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const uint64_t rank = RankOf(logit[i], static_cast<int32_t>(i));
      if (rank < before && rank > largest) largest = rank;
    }
    before = BlockReduce(largest, Larger());
    if (threadIdx.x == 0) {
      best[j] = static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(before));
    }
  }
  // All logits are written.
  __syncthreads();
  if (threadIdx.x != 0) return;
  g.threshold[2 * t] = best[g.k - 1];
  g.threshold[2 * t + 1] = g.k < n ? best[g.k] : -1;
  int32_t* const expert = g.expert + t * g.k;
  for (int32_t j = 0; j < g.k; ++j) {
    const int32_t e = best[j];
    int32_t at = j;
    for (; at > 0 && expert[at - 1] > e; --at) expert[at] = expert[at - 1];
    expert[at] = e;
  }
  // The softmax over the survivors (eq. 3).
  float* const gate = g.gate + t * g.k;
  const float max = logit[best[0]];
  double sum = 0;
  for (int32_t j = 0; j < g.k; ++j) {
    gate[j] = Exp(logit[expert[j]] - max);
    sum += gate[j];
  }
  for (int32_t j = 0; j < g.k; ++j) gate[j] = static_cast<float>(gate[j] / sum);
}

// block_load [blocks, n]: the sums of P(x, i) over the tokens of a block.
struct BlockLoadBody {
  Gate g;
  double* block_load;
  __device__ void operator()(int64_t block, int64_t i) const {
    const int64_t n = g.clean.cols;
    const int64_t begin = block * kTokenBlock;
    const int64_t end =
        begin + kTokenBlock < g.clean.rows ? begin + kTokenBlock : g.clean.rows;
    double sum = 0;
    for (int64_t t = begin; t < end; ++t) {
      // Without i itself, the k-th largest is the k-th of all for those outside the k largest, and
      // the (k+1)-th for those among them.
      const int32_t bar =
          g.threshold[2 * t + (g.Has(t, static_cast<int32_t>(i)) ? 1 : 0)];
      const float z =
          (g.clean.row(t)[i] - g.logit[t * n + bar]) / NoiseScale(g.raw.row(t)[i]).value;
      sum += NormalCdf(z);
    }
    block_load[block * n + i] = sum;
  }
};

struct TotalsBody {
  Gate g;
  const double* block_load;  // null: the chosen tokens are counted
  int64_t blocks;
  __device__ void operator()(int64_t i) const {
    double importance = 0;
    double load = 0;
    for (int64_t at = 0; at < g.clean.rows * g.k; ++at) {
      if (g.expert[at] != i) continue;
      importance += g.gate[at];
      if (block_load == nullptr) load += 1;
    }
    if (block_load != nullptr) {
      for (int64_t block = 0; block < blocks; ++block) {
        load += block_load[block * g.clean.cols + i];
      }
    }
    g.importance[i] = importance;
    g.load[i] = load;
  }
};

// H of one expert, as the forward pass made it.
__device__ float LogitOf(const Gate& g, int64_t t, int32_t i) {
  return fmaf(g.noise.row(t)[i], NoiseScale(g.raw.row(t)[i]).value, g.clean.row(t)[i]);
}

// A block has a token. dload null: no gradient through the load.
__global__ void BackwardKernel(Gate g, const float* all_dgate, const float* dload,
                               View all_dclean, View all_draw) {
  const int64_t t = blockIdx.x;
  const int64_t n = g.clean.cols;
  const int32_t* const expert = g.expert + t * g.k;
  const float* const gate = g.gate + t * g.k;
  const float* const dgate = all_dgate + t * g.k;
  float* const dclean = all_dclean.row(t);
  float* const draw = g.with_noise ? all_draw.row(t) : nullptr;
  double mean = 0;
  for (int32_t j = threadIdx.x; j < g.k; j += blockDim.x) {
    mean += static_cast<double>(gate[j]) * dgate[j];
  }
  mean = BlockSum(mean);

  const int32_t kth_expert = g.threshold[2 * t];
  const int32_t next_expert = g.threshold[2 * t + 1];
  float kth = 0;
  float next = 0;
  if (dload != nullptr) {
    kth = LogitOf(g, t, kth_expert);
    next = LogitOf(g, t, next_expert);
  }
  // By clean logit and noise scale of those that weren't chosen.
  float outside = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    float by_clean = 0;
    float by_raw = 0;
    if (dload != nullptr && !g.Has(t, static_cast<int32_t>(i))) {
      const ProbabilityGradient gradient(g.clean.row(t)[i], g.raw.row(t)[i], kth,
                                         dload[i]);
      by_clean = gradient.dclean;
      by_raw = gradient.draw;
      outside += by_clean;
    }
    dclean[i] = by_clean;
    if (draw != nullptr) draw[i] = by_raw;
  }
  // After this all have written.
  outside = BlockSum(outside);

  float inside = 0;
  for (int32_t j = threadIdx.x; j < g.k; j += blockDim.x) {
    const int32_t i = expert[j];
    float dlogit = static_cast<float>(gate[j] * (dgate[j] - mean));
    float by_clean = 0;
    float by_raw = 0;
    if (dload != nullptr) {
      const ProbabilityGradient gradient(g.clean.row(t)[i], g.raw.row(t)[i], next,
                                         dload[i]);
      by_clean = gradient.dclean;
      by_raw = gradient.draw;
      inside += by_clean;
      if (i == kth_expert) dlogit -= outside;
    }
    // Through H to the clean logit and, by the noise, to its scale.
    dclean[i] = by_clean + dlogit;
    if (draw != nullptr) {
      draw[i] = by_raw + dlogit * g.noise.row(t)[i] * NoiseScale(g.raw.row(t)[i]).slope;
    }
  }
  if (dload == nullptr) return;
  inside = BlockSum(inside);
  if (threadIdx.x != 0) return;
  dclean[next_expert] -= inside;
  draw[next_expert] -=
      inside * g.noise.row(t)[next_expert] * NoiseScale(g.raw.row(t)[next_expert]).slope;
}

void CheckBatch(const GateBatch& batch) {
  CheckGateBatch(batch);
  Check(batch.clean.rows <= INT32_MAX && batch.clean.cols < INT32_MAX,
        "sizes below 2^31");
}

Gate GateOf(const GateBatch& batch) {
  Gate gate = {};
  gate.clean = batch.clean;
  gate.raw = batch.raw;
  gate.noise = batch.noise;
  gate.k = batch.k;
  gate.with_noise = batch.with_noise;
  gate.key = batch.key;
  gate.expert = batch.expert;
  gate.gate = batch.gate;
  gate.threshold = batch.threshold;
  gate.importance = batch.importance;
  gate.load = batch.load;
  gate.ranked =
      static_cast<int32_t>(std::min<int64_t>(batch.k + int64_t{1}, batch.clean.cols));
  return gate;
}

}  // namespace

void NoisyTopKForward(const Context& context, const GateBatch& batch) {
  CheckBatch(batch);
  const int64_t tokens = batch.clean.rows;
  const int64_t n = batch.clean.cols;
  const int64_t blocks = (tokens + kTokenBlock - 1) / kTokenBlock;
  const bool smooth = SmoothLoad(batch);
  Gate gate = GateOf(batch);
  const Scratch<float> logit(context, tokens * n);
  const Scratch<int32_t> best(context, tokens * gate.ranked);
  const Scratch<double> block_load(context, smooth ? blocks * n : 0);
  const OnDevice<int32_t> draw_row(context, batch.draw_row);
  gate.logit = logit.data();
  gate.best = best.data();
  gate.draw_row = batch.draw_row.empty() ? nullptr : draw_row.data();
  Launch(context, ChooseKernel, dim3(static_cast<unsigned>(tokens)), kThreads, gate);
  if (smooth) ForEachElement(context, blocks, n, BlockLoadBody{gate, block_load.data()});
  ForEach(context, n, TotalsBody{gate, smooth ? block_load.data() : nullptr, blocks});
}

void NoisyTopKBackward(const Context& context, const GateBatch& batch, const float* dgate,
                       const float* dload, Matrix dclean, Matrix draw) {
  CheckBatch(batch);
  CheckGateGradients(batch, dclean, draw);
  if (!SmoothLoad(batch)) dload = nullptr;
  Launch(context, BackwardKernel, dim3(static_cast<unsigned>(batch.clean.rows)), kThreads,
         GateOf(batch), dgate, dload, dclean, draw);
}

}  // namespace moe::cuda
