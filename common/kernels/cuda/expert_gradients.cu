// Weight gradients of experts, and what becomes of them: an update or a sum of squares.
#include <algorithm>

#include "common/kernels/arguments.h"
#include "common/kernels/cuda/block.h"
#include "common/kernels/cuda/expert_rounds.h"
#include "common/kernels/cuda/experts.h"
#include "common/kernels/cuda/gemm.h"
#include "common/kernels/cuda/optimizer.h"

namespace moe::cuda {
namespace {

constexpr unsigned kThreads = 256;

// dW_1 = x^T dhidden_1, dW_i = hidden_(i-1)^T dhidden_i and dW_(m+1) = hidden_m^T gated_dy, or without a
// hidden layer x^T gated_dy; matrices count from 0.
struct Gradients {
  Gradients(ConstMatrix x, std::span<const ConstMatrix> hidden,
            std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy)
      : left({x}), right(dhidden.begin(), dhidden.end()) {
    CheckExpertGradients(x, hidden, dhidden, gated_dy);
    left.insert(left.end(), hidden.begin(), hidden.end());
    right.push_back(gated_dy);
  }

  size_t matrices() const { return left.size(); }
  Shape shape(size_t matrix) const { return {left[matrix].cols, right[matrix].cols}; }
  int64_t stride(size_t matrix) const { return AlignedStride(right[matrix].cols); }
  // Of one expert's gradients.
  int64_t floats() const {
    int64_t sum = 0;
    for (size_t i = 0; i < matrices(); ++i) {
      sum += AlignedStride(shape(i).rows * stride(i));
    }
    return sum;
  }

  // For each of these experts and each matrix the gradient, in `scratch`.
  std::vector<Matrix> Form(const Context& context, std::span<const ExpertRows> experts,
                           std::span<const size_t> which, float* scratch) const {
    std::vector<Matrix> gradients;
    std::vector<Product> products;
    for (size_t e : which) {
      const ExpertRows& expert = experts[e];
      CheckExpertRows(expert, left[0]);
      for (size_t i = 0; i < matrices(); ++i) {
        const Matrix& gradient =
            gradients.emplace_back(scratch, shape(i).rows, shape(i).cols, stride(i));
        scratch += AlignedStride(shape(i).rows * stride(i));
        products.push_back({Transpose::kYes, Transpose::kNo,
                            left[i].Rows(expert.begin, expert.rows),
                            right[i].Rows(expert.begin, expert.rows), gradient});
      }
    }
    Products(context, products);
    return gradients;
  }

  std::vector<ConstMatrix> left;
  std::vector<ConstMatrix> right;
};

float* At(std::span<float* const> pointers, size_t i) {
  return pointers.empty() ? nullptr : pointers[i];
}

// Floats of a second moment.
int64_t SecondMomentSize(const OptimizerStep& step, Shape shape) {
  switch (step.second_moment) {
    case SecondMoment::kFull:
      return shape.size();
    case SecondMoment::kFactored:
      return shape.rows + shape.cols;
    case SecondMoment::kPerRow:
      return shape.rows;
  }
  return 0;
}

// What an update changes, and where it lies on the host if it isn't the device's memory.
class UpdateState {
 public:
  explicit UpdateState(const Context& context) : context_(context) {}

  // keep: for later operations too.
  template <typename T>
  T* OnDevice(T* memory, int64_t size, bool keep) {
    if (memory == nullptr || context_.memory->Has(memory)) return memory;
    const size_t bytes = size * sizeof(T);
    void* const device = context_.experts->Get(memory, bytes, keep);
    back_.push_back({device, memory, bytes});
    return static_cast<T*>(device);
  }
  // After the kernels.
  void WriteBack() const {
    for (const Copy& copy : back_) {
      context_.downloads->Download(copy.device, copy.host, copy.bytes);
    }
  }

 private:
  struct Copy {
    const void* device;
    void* host;
    size_t bytes;
  };

  const Context& context_;
  std::vector<Copy> back_;
};

// sums[row]: of the squares of a row. A block has a row.
__global__ void RowSquaresKernel(ConstView gradient, double* sums) {
  const float* const row = gradient.row(blockIdx.x);
  double sum = 0;
  for (int64_t c = threadIdx.x; c < gradient.cols; c += blockDim.x) {
    const double value = row[c];
    sum = fma(value, value, sum);
  }
  sum = BlockSum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

}  // namespace

void ExpertUpdates(const Context& context, std::span<const ExpertUpdate> updates,
                   ConstMatrix x, std::span<const ConstMatrix> hidden,
                   std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy) {
  const Gradients of(x, hidden, dhidden, gated_dy);
  const size_t matrices = of.matrices();
  std::vector<ExpertRows> experts;
  for (const ExpertUpdate& update : updates) {
    Check(update.expert.matrices() == matrices && update.steps.size() == matrices,
          "a matrix more than hidden layers, and its update");
    Check((update.m.empty() || update.m.size() == matrices) &&
              (update.v.empty() || update.v.size() == matrices),
          "the moments of each matrix");
    for (size_t i = 0; i < matrices; ++i) {
      const OptimizerStep& step = update.steps[i];
      const bool adam = step.kind == OptimizerStep::Kind::kAdam;
      Check(!adam || At(update.v, i) != nullptr, "a second moment");
      Check(!adam || step.adam.beta1 == 0 || At(update.m, i) != nullptr,
            "a first moment");
    }
    experts.push_back(update.expert);
  }
  std::vector<Shape> shapes;
  for (size_t i = 0; i < matrices; ++i) shapes.push_back(of.shape(i));
  const auto moments = [&](size_t e, size_t i) {
    const OptimizerStep& step = updates[e].steps[i];
    const bool adam = step.kind == OptimizerStep::Kind::kAdam;
    struct {
      int64_t m, v;
    } sizes{adam && step.adam.beta1 != 0 ? shapes[i].size() : 0,
            adam ? SecondMomentSize(step, shapes[i]) : 0};
    return sizes;
  };
  const auto cached = [&](size_t e) {
    int64_t bytes = CachedBytes(context, experts[e], shapes);
    if (bytes == 0) return bytes;
    for (size_t i = 0; i < matrices; ++i) {
      bytes += (moments(e, i).m + moments(e, i).v) * static_cast<int64_t>(sizeof(float));
    }
    return bytes;
  };
  const int64_t floats = of.floats();
  ForRounds(
      context, WithRows(experts), cached,
      [&](size_t) { return floats * static_cast<int64_t>(sizeof(float)); },
      [&](std::span<const size_t> which) {
        context.experts->Begin();
        const Scratch<float> scratch(context,
                                     floats * static_cast<int64_t>(which.size()));
        const std::vector<Matrix> gradients =
            of.Form(context, experts, which, scratch.data());
        UpdateState lent(context);
        std::vector<OptimizerStep> steps;
        std::vector<MatrixState> states;
        for (size_t e : which) {
          const ExpertUpdate& update = updates[e];
          for (size_t i = 0; i < matrices; ++i) {
            MatrixState state{.gradient = gradients[states.size()]};
            const int64_t size = shapes[i].size();
            if (experts[e].w16.empty()) {
              state.w = lent.OnDevice(experts[e].w[i], size, /*keep=*/true);
            } else {
              state.w16 = lent.OnDevice(experts[e].w16[i], size, /*keep=*/true);
            }
            const auto sizes = moments(e, i);
            if (sizes.m > 0) state.m = lent.OnDevice(At(update.m, i), sizes.m, false);
            if (sizes.v > 0) state.v = lent.OnDevice(At(update.v, i), sizes.v, false);
            states.push_back(state);
            steps.push_back(update.steps[i]);
          }
        }
        context.experts->Ready();
        UpdateMatrices(context, steps, states);
        lent.WriteBack();
        context.experts->End();
      });
}

void ExpertSquareSums(const Context& context, std::span<const ExpertRows> experts,
                      ConstMatrix x, std::span<const ConstMatrix> hidden,
                      std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy,
                      std::span<double> sums) {
  const Gradients of(x, hidden, dhidden, gated_dy);
  const size_t matrices = of.matrices();
  Check(sums.size() == matrices * experts.size(), "a sum for each matrix of each expert");
  std::fill(sums.begin(), sums.end(), 0.0);
  const int64_t floats = of.floats();
  ForRounds(
      context, WithRows(experts), [](size_t) { return int64_t{0}; },
      [&](size_t) { return floats * static_cast<int64_t>(sizeof(float)); },
      [&](std::span<const size_t> which) {
        const Scratch<float> scratch(context,
                                     floats * static_cast<int64_t>(which.size()));
        const std::vector<Matrix> gradients =
            of.Form(context, experts, which, scratch.data());
        int64_t rows = 0;
        for (const Matrix& gradient : gradients) rows += gradient.rows;
        const Scratch<double> row_sums(context, rows);
        int64_t begin = 0;
        for (const Matrix& gradient : gradients) {
          Launch(context, RowSquaresKernel, dim3(static_cast<unsigned>(gradient.rows)),
                 kThreads, gradient, row_sums.data() + begin);
          begin += gradient.rows;
        }
        std::vector<double> host(rows);
        context.downloads->Download(row_sums.data(), host.data(), rows * sizeof(double));
        const double* next = host.data();
        for (size_t place = 0; place < which.size(); ++place) {
          for (size_t i = 0; i < matrices; ++i) {
            double& sum = sums[which[place] * matrices + i];
            for (int64_t r = 0; r < of.shape(i).rows; ++r) sum += *next++;
          }
        }
      });
}

}  // namespace moe::cuda
