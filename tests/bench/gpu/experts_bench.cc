// Speed of experts on a GPU, as lines for tests/bench/gpu/table.py:
//
//   ours KIND D H EXPERTS TOKENS FORWARD STEP DENSE
//
// with TFLOP/s of the forward pass, of forward, backward and update, and of dense products with as many
// floating-point operations as the forward pass. Ends when the seconds of the first argument are over.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "common/kernels/backend.h"
#include "common/kernels/cuda/cuda_backend.h"

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Sizes {
  int64_t d, h, experts, tokens;  // tokens of each expert
  int64_t rows() const { return experts * tokens; }
  // Of the forward pass.
  double flops() const {
    return 4.0 * static_cast<double>(rows()) * static_cast<double>(d * h);
  }
};

// Waits for all that the backend has to do.
void Wait(Backend& backend, const float* memory) {
  float value;
  backend.Download(memory, &value, sizeof value);
}

// Seconds of one call, after one that isn't measured.
template <typename Fn>
double Measure(Backend& backend, const float* memory, const Fn& fn) {
  constexpr double kLeast = 0.1;
  fn();
  Wait(backend, memory);
  int calls = 0;
  const auto start = Clock::now();
  do {
    fn();
    ++calls;
    // Not behind the queue's back.
    if (calls % 4 == 0 || SecondsSince(start) > kLeast / 2) Wait(backend, memory);
  } while (SecondsSince(start) < kLeast);
  Wait(backend, memory);
  return SecondsSince(start) / calls;
}

// Small numbers, from a generator, over and over.
template <typename T>
void Fill(Backend& backend, T* to, int64_t size) {
  const int64_t unit = std::min<int64_t>(size, 1 << 20);
  std::vector<float> values(unit);
  FillNormal({1, 2}, 0, values);
  std::vector<T> converted;
  for (float value : values) {
    if constexpr (std::is_same_v<T, float>) {
      converted.push_back(value * 0.03f);
    } else {
      converted.push_back(ToBfloat16(value * 0.03f));
    }
  }
  backend.Upload(converted.data(), to, unit * sizeof(T));
  for (int64_t at = unit; at < size; at += unit) {
    backend.Copy(to, to + at, std::min(unit, size - at) * sizeof(T));
  }
}

template <typename Weight>
void Time(Backend& backend, const std::string& kind, const Sizes& s) {
  const int64_t of_matrix = s.d * s.h;
  Array<Weight> weights(backend, 2 * s.experts * of_matrix);
  Fill(backend, weights.data(), weights.size());
  const Tensor moments(backend, 2 * s.experts, s.d + s.h);
  backend.Zero(moments.data(), moments.size() * sizeof(float));
  const Tensor x(backend, s.rows(), s.d), y(backend, s.rows(), s.d),
      dx(backend, s.rows(), s.d), hidden(backend, s.rows(), s.h),
      dhidden(backend, s.rows(), s.h), gate(backend, 1, s.rows()),
      dgate(backend, 1, s.rows());
  Fill(backend, x.data(), x.size());
  Fill(backend, gate.data(), gate.size());

  std::vector<Weight*> w;
  std::vector<float*> v;
  for (int64_t i = 0; i < 2 * s.experts; ++i) {
    w.push_back(weights.data() + i * of_matrix);
    v.push_back(moments.view().row(i));
  }
  OptimizerStep step;
  step.kind = OptimizerStep::Kind::kAdam;
  step.second_moment = SecondMoment::kFactored;
  step.adam.beta1 = 0;
  step.adam.rate = 1e-6f;
  const std::vector<OptimizerStep> steps(2, step);
  std::vector<ExpertRows> experts;
  std::vector<ExpertUpdate> updates;
  for (int64_t e = 0; e < s.experts; ++e) {
    ExpertRows& expert = experts.emplace_back();
    expert.begin = e * s.tokens;
    expert.rows = s.tokens;
    if constexpr (std::is_same_v<Weight, float>) {
      expert.w = std::span(w).subspan(2 * e, 2);
    } else {
      expert.w16 = std::span(w).subspan(2 * e, 2);
    }
    updates.push_back(
        {.expert = expert, .m = {}, .v = std::span(v).subspan(2 * e, 2), .steps = steps});
  }
  const Matrix hidden_out[] = {hidden.view()}, dhidden_out[] = {dhidden.view()};
  const ConstMatrix hidden_in[] = {hidden.view()}, dhidden_in[] = {dhidden.view()};
  const auto forward = [&] {
    backend.ExpertForward(experts, x.view(), hidden_out, y.view());
  };
  const double of_forward = Measure(backend, y.data(), forward);
  const double of_step = Measure(backend, y.data(), [&] {
    forward();
    backend.ExpertBackward(experts, ConstMatrix(), y.view(), gate.data(), hidden_in,
                           dgate.data(), dhidden_out, dx.view());
    backend.ExpertUpdates(updates, x.view(), hidden_in, dhidden_in, y.view());
  });
  const Tensor dense(backend, s.d, s.h);
  Fill(backend, dense.data(), dense.size());
  const double of_dense = Measure(backend, y.data(), [&] {
    backend.Gemm(Transpose::kNo, Transpose::kNo, 1, x.view(), dense.view(), 0,
                 hidden.view());
    backend.Gemm(Transpose::kNo, Transpose::kYes, 1, hidden.view(), dense.view(), 0,
                 y.view());
  });
  const double tera = s.flops() / 1e12;
  std::printf("ours %s %lld %lld %lld %lld %.2f %.2f %.2f\n", kind.c_str(),
              static_cast<long long>(s.d), static_cast<long long>(s.h),
              static_cast<long long>(s.experts), static_cast<long long>(s.tokens),
              tera / of_forward, 3 * tera / of_step, tera / of_dense);
  std::fflush(stdout);
}

// What the arrays take, with what an update needs besides.
double Gib(const Sizes& s, size_t weight_bytes) {
  const double floats =
      static_cast<double>(s.rows()) * static_cast<double>(3 * s.d + 2 * s.h);
  const double weights = 2.0 * static_cast<double>(s.experts * s.d * s.h);
  return (4 * floats + static_cast<double>(weight_bytes) * weights) / (1 << 30) + 4;
}

}  // namespace
}  // namespace moe

// Arguments: seconds, GiB of the card.
int main(int argc, char** argv) {
  using namespace moe;
  const double seconds = argc > 1 ? std::atof(argv[1]) : 150;
  const double gib = argc > 2 ? std::atof(argv[2]) : 70;
  const bool small = argc > 3;  // a trial of the program itself
  const auto start = Clock::now();
  struct Kind {
    std::string name;
    bool tf32, bfloat16;
  };
  std::vector<std::pair<int64_t, int64_t>> widths = {
      {512, 1024}, {1024, 4096}, {1024, 8192}};
  std::vector<int64_t> tokens = {256, 1024, 64, 16}, experts = {64, 256};
  if (small) {
    widths = {{16, 32}};
    tokens = {4, 16};
    experts = {3};
  }
  for (const Kind& kind : {Kind{"tf32", true, false}, Kind{"fp32", false, false},
                           Kind{"bf16-weights", true, true}}) {
    std::string error;
    const std::unique_ptr<Backend> backend = MakeCudaBackend(
        {.tf32 = kind.tf32, .expert_cache_bytes = int64_t{1} << 30}, &error);
    if (backend == nullptr) {
      std::fprintf(stderr, "experts_bench: %s\n", error.c_str());
      return 1;
    }
    std::printf("device %s\n", backend->Description().c_str());
    for (const auto& [d, h] : widths) {
      for (int64_t n : experts) {
        for (int64_t t : tokens) {
          const Sizes sizes{d, h, n, t};
          const char* why = nullptr;
          if (Gib(sizes, kind.bfloat16 ? 2 : 4) > gib) why = "memory";
          if (SecondsSince(start) > seconds) why = "time";
          if (why != nullptr) {
            std::printf("ours %s %lld %lld %lld %lld %s\n", kind.name.c_str(),
                        static_cast<long long>(d), static_cast<long long>(h),
                        static_cast<long long>(n), static_cast<long long>(t), why);
          } else if (kind.bfloat16) {
            Time<Bfloat16>(*backend, kind.name, sizes);
          } else {
            Time<float>(*backend, kind.name, sizes);
          }
        }
      }
    }
  }
  return 0;
}
