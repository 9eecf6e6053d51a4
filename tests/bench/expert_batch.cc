#include "tests/bench/expert_batch.h"

#include <algorithm>
#include <span>
#include <utility>

#include "tests/bench/bench_backend.h"

namespace moe {

OptimizerStep StepOf(int64_t kept, float rate) {
  OptimizerStep step;
  step.kind = OptimizerStep::Kind::kAdam;
  step.adam.rate = rate;
  if (kept == kFull) return step;
  step.adam.beta1 = 0;
  step.second_moment = SecondMoment::kFactored;
  return step;
}

ExpertBatch::ExpertBatch(Backend& backend, int64_t d, int64_t h, int64_t rows,
                         int64_t kept)
    : d(d),
      h(h),
      count(std::max<int64_t>(2, (int64_t{96} << 20) / (2 * d * h * 4))),
      total(count * rows),
      x(MakeNormal(backend, total, d)),
      dy(MakeNormal(backend, total, d)),
      gate(MakeNormal(backend, 1, total)),
      y(backend, total, d),
      dgate(backend, 1, total),
      dx(backend, total, d),
      steps(2, StepOf(kept, 1e-6f)) {
  hidden.push_back(MakeNormal(backend, total, h));
  dhidden.push_back(MakeNormal(backend, total, h));
  for (int64_t e = 0; e < count; ++e) {
    for (int i = 0; i < 2; ++i) {
      Tensor floats = MakeNormal(backend, d, h, 0.02f);
      if (kept == kBfloat16) {
        std::vector<float> host(d * h);
        floats.Download(host);
        std::vector<Bfloat16> bits;
        for (float value : host) bits.push_back(ToBfloat16(value));
        halves.emplace_back(backend, d * h).Upload(bits);
        w16.push_back(halves.back().data());
      } else {
        w.push_back(weights.emplace_back(std::move(floats)).data());
      }
    }
    for (std::vector<float*>* pointers : {&m, &v}) {
      for (int i = 0; i < 2; ++i) {
        Tensor& moment = moments.emplace_back(backend, d, h);
        moment.Zero();
        pointers->push_back(moment.data());
      }
    }
  }
  for (int64_t e = 0; e < count; ++e) {
    ExpertRows& expert = experts.emplace_back();
    expert.begin = e * rows;
    expert.rows = rows;
    if (kept == kBfloat16) {
      expert.w16 = std::span(w16).subspan(2 * e, 2);
    } else {
      expert.w = std::span(w).subspan(2 * e, 2);
    }
    ExpertUpdate update;
    update.expert = experts.back();
    update.m = std::span(m).subspan(2 * e, 2);
    update.v = std::span(v).subspan(2 * e, 2);
    update.steps = steps;
    updates.push_back(update);
  }
}

}  // namespace moe
