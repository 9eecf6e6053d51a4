#include "common/kernels/cpu/gating.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "common/kernels/arguments.h"
#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/gating_math.h"
#include "common/kernels/cpu/thread_pool.h"
#include "common/kernels/cpu/top_k.h"

namespace moe::cpu {
namespace {

// Load is summed over the tokens of such a block, then over the blocks, both in order.
constexpr int64_t kTokenBlock = 32;

int64_t Padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// One token's forward pass; the buffers serve one token after another.
class ForwardPass {
 public:
  ForwardPass(const Context& context, const GateBatch& batch)
      : batch_(batch),
        n_(batch.clean.cols),
        k_(batch.k),
        ranked_(std::min<int64_t>(k_ + 1, n_)),
        floats_(context.scratch, 2 * Padded(n_) + 3 * Padded(ranked_)),
        best_(context.scratch, ranked_),
        logit_(floats_.data()),
        scale_(logit_ + Padded(n_)),
        best_value_(scale_ + Padded(n_)),
        survivor_clean_(best_value_ + Padded(ranked_)),
        survivor_scale_(survivor_clean_ + Padded(ranked_)) {}

  // Writes the token's noise (if draw), expert, gate and threshold.
  void Choose(int64_t t, bool draw) {
    const float* logit = batch_.clean.row(t);
    if (batch_.with_noise) {
      float* noise = batch_.noise.row(t);
      if (draw) {
        const int64_t row = batch_.draw_row.empty() ? t : batch_.draw_row[t];
        FillNormal(batch_.key, row, {noise, static_cast<size_t>(n_)});
      }
      const float* raw = batch_.raw.row(t);
      ForLanes(n_, [&](auto lanes, int64_t i) {
        const Vec scale = NoiseScale(lanes.Load(raw + i)).value;
        _mm256_storeu_ps(scale_ + i, scale);
        _mm256_storeu_ps(logit_ + i,
                         NoisyLogit(lanes.Load(logit + i), scale, lanes.Load(noise + i)));
      });
      logit = logit_;
    }
    TopK(logit, n_, ranked_, best_.data(), best_value_);
    int32_t* threshold = batch_.threshold + 2 * t;
    threshold[0] = best_[k_ - 1];
    threshold[1] = k_ < n_ ? best_[k_] : -1;
    kth_ = best_value_[k_ - 1];
    next_ = k_ < n_ ? best_value_[k_] : 0;
    const float max = best_value_[0];
    int32_t* expert = batch_.expert + t * k_;
    std::copy_n(best_.data(), k_, expert);
    std::sort(expert, expert + k_);
    // The softmax over the survivors (eq. 3).
    float* term = best_value_;
    for (int64_t j = 0; j < k_; ++j) term[j] = logit[expert[j]];
    double sum = 0;
    ForLanes(k_, [&](auto, int64_t j) {
      _mm256_storeu_ps(term + j,
                       Exp(_mm256_sub_ps(_mm256_loadu_ps(term + j), Splat(max))));
    });
    for (int64_t j = 0; j < k_; ++j) sum += term[j];
    for (int64_t j = 0; j < k_; ++j) {
      batch_.gate[t * k_ + j] = static_cast<float>(term[j] / sum);
    }
  }

  // load[i] += P(x, i) of the token last chosen for, which was t.
  void AddProbabilities(int64_t t, double* load) {
    const float* clean = batch_.clean.row(t);
    const int32_t* expert = batch_.expert + t * k_;
    float* probability = logit_;
    // Without i itself, the k-th largest is the k-th of all for those outside the k largest, and
    // the (k+1)-th for those among them.
    ForLanes(n_, [&](auto lanes, int64_t i) {
      _mm256_storeu_ps(probability + i,
                       ChosenProbability(lanes.Load(clean + i),
                                         _mm256_loadu_ps(scale_ + i), Splat(kth_)));
    });
    for (int64_t j = 0; j < k_; ++j) {
      survivor_clean_[j] = clean[expert[j]];
      survivor_scale_[j] = scale_[expert[j]];
    }
    ForLanes(k_, [&](auto, int64_t j) {
      _mm256_storeu_ps(
          survivor_clean_ + j,
          ChosenProbability(_mm256_loadu_ps(survivor_clean_ + j),
                            _mm256_loadu_ps(survivor_scale_ + j), Splat(next_)));
    });
    for (int64_t j = 0; j < k_; ++j) probability[expert[j]] = survivor_clean_[j];
    for (int64_t i = 0; i < n_; ++i) load[i] += probability[i];
  }

 private:
  const GateBatch& batch_;
  const int64_t n_;
  const int64_t k_;
  const int64_t ranked_;
  const Scratch<float> floats_;
  const Scratch<int32_t> best_;
  float* const logit_;           // [n]
  float* const scale_;           // [n]
  float* const best_value_;      // [ranked]
  float* const survivor_clean_;  // [ranked]
  float* const survivor_scale_;  // [ranked]
  float kth_ = 0;                // the k-th largest H
  float next_ = 0;               // the (k+1)-th
};

void Forward(const Context& context, const GateBatch& batch, bool draw) {
  CheckGateBatch(batch);
  const int64_t tokens = batch.clean.rows;
  const int64_t n = batch.clean.cols;
  const bool smooth = SmoothLoad(batch);
  const int64_t blocks = (tokens + kTokenBlock - 1) / kTokenBlock;
  const Scratch<double> block_load(context.scratch, smooth ? blocks * n : 0);
  ForRanges(context.parallel, tokens, kTokenBlock, [&](int64_t begin, int64_t end) {
    ForwardPass pass(context, batch);
    double* load = block_load.data() + begin / kTokenBlock * n;
    if (smooth) std::fill_n(load, n, 0.0);
    for (int64_t t = begin; t < end; ++t) {
      pass.Choose(t, draw);
      if (smooth) pass.AddProbabilities(t, load);
    }
  });
  std::fill_n(batch.importance, n, 0.0);
  std::fill_n(batch.load, n, 0.0);
  for (int64_t i = 0; i < tokens * batch.k; ++i) {
    batch.importance[batch.expert[i]] += batch.gate[i];
    if (!smooth) batch.load[batch.expert[i]] += 1;
  }
  if (!smooth) return;
  for (int64_t block = 0; block < blocks; ++block) {
    const double* from = block_load.data() + block * n;
    for (int64_t i = 0; i < n; ++i) batch.load[i] += from[i];
  }
}

// One token's backward pass.
class BackwardPass {
 public:
  BackwardPass(const Context& context, const GateBatch& batch, const float* dload)
      : batch_(batch),
        n_(batch.clean.cols),
        k_(batch.k),
        floats_(context.scratch, n_ + 5 * Padded(k_ + 1)),
        dload_(dload),
        outside_(floats_.data()),
        dlogit_(outside_ + n_),
        clean_(dlogit_ + Padded(k_ + 1)),
        raw_(clean_ + Padded(k_ + 1)),
        factor_(raw_ + Padded(k_ + 1)),
        slope_(factor_ + Padded(k_ + 1)) {
    if (dload != nullptr) std::copy_n(dload, n_, outside_);
  }

  void Run(int64_t t, const float* dgate, float* dclean, float* draw) {
    const int32_t* expert = batch_.expert + t * k_;
    std::memset(dclean, 0, n_ * sizeof(float));
    if (batch_.with_noise) std::memset(draw, 0, n_ * sizeof(float));
    // The softmax over the survivors.
    const float* gate = batch_.gate + t * k_;
    double mean = 0;
    for (int64_t j = 0; j < k_; ++j) mean += static_cast<double>(gate[j]) * dgate[j];
    for (int64_t j = 0; j < k_; ++j) {
      dlogit_[j] = static_cast<float>(gate[j] * (dgate[j] - mean));
    }
    int64_t touched = k_;
    if (dload_ != nullptr) {
      Load(t, expert, dclean, draw);
      touched = k_ + 1;  // dlogit_[k] is that of the (k+1)-th largest
    }
    // Through H to the clean logit and, by the noise, to its scale.
    const int32_t next = batch_.threshold[2 * t + 1];
    const auto index = [&](int64_t j) { return j < k_ ? expert[j] : next; };
    for (int64_t j = 0; j < touched; ++j) dclean[index(j)] += dlogit_[j];
    if (!batch_.with_noise) return;
    const float* raw = batch_.raw.row(t);
    const float* noise = batch_.noise.row(t);
    for (int64_t j = 0; j < touched; ++j) raw_[j] = raw[index(j)];
    ForLanes(touched, [&](auto, int64_t j) {
      _mm256_storeu_ps(slope_ + j, NoiseScale(_mm256_loadu_ps(raw_ + j)).slope);
    });
    for (int64_t j = 0; j < touched; ++j) {
      draw[index(j)] += dlogit_[j] * noise[index(j)] * slope_[j];
    }
  }

 private:
  // H of one expert, as the forward pass made it.
  Vec LogitOf(int64_t t, int32_t i) const {
    return NoisyLogit(Splat(batch_.clean.row(t)[i]),
                      NoiseScale(Splat(batch_.raw.row(t)[i])).value,
                      Splat(batch_.noise.row(t)[i]));
  }

  // Adds the gradient through P (eq. 9): by clean logit and noise scale into dclean and draw, by
  // the two thresholds into dlogit_.
  void Load(int64_t t, const int32_t* expert, float* dclean, float* draw) {
    const float* clean = batch_.clean.row(t);
    const float* raw = batch_.raw.row(t);
    const int32_t kth_expert = batch_.threshold[2 * t];
    const Vec kth = LogitOf(t, kth_expert);
    const Vec next = LogitOf(t, batch_.threshold[2 * t + 1]);

    for (int64_t j = 0; j < k_; ++j) outside_[expert[j]] = 0;
    Vec outside_sum = _mm256_setzero_ps();
    ForLanes(n_, [&](auto lanes, int64_t i) {
      const ProbabilityGradient gradient(lanes.Load(clean + i), lanes.Load(raw + i), kth,
                                         lanes.Load(outside_ + i));
      lanes.Store(dclean + i, gradient.dclean);
      lanes.Store(draw + i, gradient.draw);
      outside_sum = _mm256_add_ps(outside_sum, gradient.dclean);
    });
    for (int64_t j = 0; j < k_; ++j) outside_[expert[j]] = dload_[expert[j]];

    for (int64_t j = 0; j < k_; ++j) {
      clean_[j] = clean[expert[j]];
      raw_[j] = raw[expert[j]];
      factor_[j] = dload_[expert[j]];
    }
    ForLanes(k_, [&](auto lanes, int64_t j) {
      const ProbabilityGradient gradient(lanes.Load(clean_ + j), lanes.Load(raw_ + j),
                                         next, lanes.Load(factor_ + j));
      lanes.Store(clean_ + j, gradient.dclean);
      lanes.Store(raw_ + j, gradient.draw);
    });
    float inside_sum = 0;
    for (int64_t j = 0; j < k_; ++j) {
      dclean[expert[j]] += clean_[j];
      draw[expert[j]] += raw_[j];
      inside_sum += clean_[j];
      if (expert[j] == kth_expert) dlogit_[j] -= SumLanes(outside_sum);
    }
    dlogit_[k_] = -inside_sum;
  }

  const GateBatch& batch_;
  const int64_t n_;
  const int64_t k_;
  const Scratch<float> floats_;
  const float* const dload_;
  float* const
      outside_;  // [n] dload, with zeros at the survivors while a token is worked on
  // [k + 1], in the order of batch.expert, then the expert with the (k+1)-th largest H.
  float* const dlogit_;
  float* const clean_;
  float* const raw_;
  float* const factor_;
  float* const slope_;
};

}  // namespace

void NoisyTopKForward(const Context& context, const GateBatch& batch) {
  Forward(context, batch, /*draw=*/true);
}

void TopKForwardWithNoise(const Context& context, const GateBatch& batch) {
  Forward(context, batch, /*draw=*/false);
}

void NoisyTopKBackward(const Context& context, const GateBatch& batch, const float* dgate,
                       const float* dload, Matrix dclean, Matrix draw) {
  CheckGateBatch(batch);
  CheckGateGradients(batch, dclean, draw);
  if (!SmoothLoad(batch)) dload = nullptr;
  ForRanges(context.parallel, batch.clean.rows, kTokenBlock,
            [&](int64_t begin, int64_t end) {
              BackwardPass pass(context, batch, dload);
              for (int64_t t = begin; t < end; ++t) {
                pass.Run(t, dgate + t * batch.k, dclean.row(t),
                         batch.with_noise ? draw.row(t) : nullptr);
              }
            });
}

}  // namespace moe::cpu
