#include <algorithm>

#include "common/kernels/arguments.h"
#include "common/kernels/cuda/block.h"
#include "common/kernels/cuda/elements.h"
#include "common/kernels/cuda/expert_rounds.h"
#include "common/kernels/cuda/experts.h"
#include "common/kernels/cuda/gemm.h"

namespace moe::cuda {
namespace {

struct Span {
  int64_t begin;
  int64_t rows;
};

// The experts' rows of the batch, as few spans as possible.
std::vector<Span> SpansOf(std::span<const ExpertRows> experts,
                          std::span<const size_t> which) {
  std::vector<Span> spans;
  for (size_t e : which) spans.push_back({experts[e].begin, experts[e].rows});
  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  std::vector<Span> joined;
  for (const Span& span : spans) {
    if (!joined.empty() && joined.back().begin + joined.back().rows == span.begin) {
      joined.back().rows += span.rows;
    } else {
      joined.push_back(span);
    }
  }
  return joined;
}

template <typename T>
BasicMatrix<T> RowsOf(BasicMatrix<T> x, const Span& span) {
  return x.Rows(span.begin, span.rows);
}

// NaN stays.
struct ReluBody {
  View x;
  __device__ void operator()(int64_t r, int64_t c) const {
    float& value = x.row(r)[c];
    if (value < 0) value = 0;
  }
};

// gradient *= 1[hidden > 0]
struct ReluBackwardBody {
  ConstView hidden;
  View gradient;
  __device__ void operator()(int64_t r, int64_t c) const {
    if (!(hidden.row(r)[c] > 0)) gradient.row(r)[c] = 0;
  }
};

// u = dL/dvalue without the gate: dgate = <value, u>, and u becomes gate * u, times 1[value > 0] if
// `relu`. A block has a row.
__global__ void GateRowsKernel(ConstView value, const float* gate, bool relu, View u,
                               float* dgate) {
  const int64_t r = blockIdx.x;
  const float* const of_value = value.row(r);
  float* const of_u = u.row(r);
  const float factor = gate[r];
  double dot = 0;
  for (int64_t c = threadIdx.x; c < u.cols; c += blockDim.x) {
    const float gradient = of_u[c];
    dot = fma(static_cast<double>(of_value[c]), static_cast<double>(gradient), dot);
    of_u[c] = !relu || of_value[c] > 0 ? factor * gradient : 0;
  }
  dot = BlockSum(dot);
  if (threadIdx.x == 0) dgate[r] = static_cast<float>(dot);
}

void CheckExperts(std::span<const ExpertRows> experts, ConstMatrix batch,
                  size_t matrices) {
  for (const ExpertRows& e : experts) {
    CheckExpertRows(e, batch);
    Check(e.rows == 0 || e.matrices() == matrices, "a matrix more than hidden layers");
  }
}

// fn(which, their first matrices as `shapes` says).
template <typename Fn>
void ForRoundsOfWeights(const Context& context, std::span<const ExpertRows> experts,
                        std::span<const Shape> shapes, const Fn& fn) {
  const std::vector<size_t> busy = WithRows(experts);
  ForRounds(
      context, busy, [&](size_t e) { return CachedBytes(context, experts[e], shapes); },
      [&](size_t e) { return FloatBytes(experts[e], shapes); },
      [&](std::span<const size_t> which) {
        context.experts->Begin();
        fn(which, RoundWeights(context, experts, which, shapes));
        context.experts->End();
      });
}

}  // namespace

void ExpertForward(const Context& context, std::span<const ExpertRows> experts,
                   ConstMatrix x, std::span<const Matrix> hidden, Matrix y) {
  const size_t depth = hidden.size();
  CheckExpertForward(x, hidden, y);
  CheckExperts(experts, x, depth + 1);
  std::vector<Matrix> out(hidden.begin(), hidden.end());
  if (y.data != nullptr) out.push_back(y);
  std::vector<Shape> shapes;
  for (size_t i = 0; i < out.size(); ++i) {
    shapes.push_back({i == 0 ? x.cols : out[i - 1].cols, out[i].cols});
  }
  ForRoundsOfWeights(
      context, experts, shapes,
      [&](std::span<const size_t> which, const RoundWeights& weights) {
        const std::vector<Span> spans = SpansOf(experts, which);
        for (size_t i = 0; i < out.size(); ++i) {
          std::vector<Product> products;
          for (size_t place = 0; place < which.size(); ++place) {
            const Span rows{experts[which[place]].begin, experts[which[place]].rows};
            products.push_back({Transpose::kNo, Transpose::kNo,
                                RowsOf(i == 0 ? x : ConstMatrix(out[i - 1]), rows),
                                weights.w(place, i), RowsOf(out[i], rows)});
          }
          Products(context, products);
          if (i == depth) return;
          for (const Span& span : spans) {
            ForEachElement(context, span.rows, out[i].cols,
                           ReluBody{RowsOf(out[i], span)});
          }
        }
      });
}

void ExpertBackward(const Context& context, std::span<const ExpertRows> experts,
                    ConstMatrix x, ConstMatrix dy, const float* gate,
                    std::span<const ConstMatrix> hidden, float* dgate,
                    std::span<const Matrix> dhidden, Matrix dx) {
  const size_t depth = hidden.size();
  CheckExpertBackward(x, dy, hidden, dhidden, dx);
  CheckExperts(experts, dy, depth + 1);
  // gradients[i] is by the input of matrix i; without dx the first matrix isn't needed.
  std::vector<Matrix> gradients = {dx};
  gradients.insert(gradients.end(), dhidden.begin(), dhidden.end());
  const size_t first = dx.data == nullptr ? 1 : 0;
  std::vector<Shape> shapes;
  for (size_t i = 0; i <= depth; ++i) {
    shapes.push_back({gradients[i].cols, i == depth ? dy.cols : gradients[i + 1].cols});
  }
  if (first == 1) {
    // Of unknown width, and not asked for.
    shapes[0] = {0, 0};
  }
  ForRoundsOfWeights(
      context, experts, shapes,
      [&](std::span<const size_t> which, const RoundWeights& weights) {
        const std::vector<Span> spans = SpansOf(experts, which);
        for (size_t i = depth + 1; i-- > first;) {
          const ConstMatrix from = i == depth ? dy : ConstMatrix(gradients[i + 1]);
          std::vector<Product> products;
          for (size_t place = 0; place < which.size(); ++place) {
            const Span rows{experts[which[place]].begin, experts[which[place]].rows};
            products.push_back({Transpose::kNo, Transpose::kYes, RowsOf(from, rows),
                                weights.w(place, i), RowsOf(gradients[i], rows)});
          }
          Products(context, products);
          for (const Span& span : spans) {
            const Matrix gradient = RowsOf(gradients[i], span);
            if (i == depth) {
              const ConstMatrix value = depth == 0 ? x : hidden[depth - 1];
              Launch(context, GateRowsKernel, dim3(static_cast<unsigned>(span.rows)),
                     ThreadsFor(gradient.cols), RowsOf(value, span), gate + span.begin,
                     depth > 0, gradient, dgate + span.begin);
            } else if (i > 0) {
              ForEachElement(context, span.rows, gradient.cols,
                             ReluBackwardBody{RowsOf(hidden[i - 1], span), gradient});
            }
          }
        }
      });
}

}  // namespace moe::cuda
