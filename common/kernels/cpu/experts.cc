#include "common/kernels/cpu/experts.h"

#include <algorithm>

#include "common/kernels/arguments.h"
#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/few_rows.h"
#include "common/kernels/cpu/gemm.h"
#include "common/kernels/cpu/ranges.h"
#include "common/kernels/cpu/simd.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

// A block's operands are packed anew, so blocks are long; they exist so that an expert with most
// of the rows doesn't leave the other threads idle.
constexpr int64_t kRowBlock = 512;

// Some rows of one expert.
struct RowTask {
  int32_t expert;
  Range rows;  // within the batch
};

// Calls fn(expert, block of rows) for all blocks of all experts, longest first.
template <typename Fn>
void ForRowBlocks(const Context& context, std::span<const ExpertRows> experts,
                  ConstMatrix batch, const Fn& fn) {
  const auto parts = [](const ExpertRows& e) {
    return (e.rows + kRowBlock - 1) / kRowBlock;
  };
  int64_t count = 0;
  for (const ExpertRows& e : experts) {
    CheckExpertRows(e, batch);
    count += parts(e);
  }
  const Scratch<RowTask> tasks(context.scratch, count);
  RowTask* task = tasks.data();
  for (size_t i = 0; i < experts.size(); ++i) {
    const ExpertRows& e = experts[i];
    for (int64_t part = 0; part < parts(e); ++part) {
      const Range range = Part(e.rows, parts(e), part);
      *task++ = {static_cast<int32_t>(i), {e.begin + range.begin, e.begin + range.end}};
    }
  }
  std::sort(tasks.data(), task, [](const RowTask& a, const RowTask& b) {
    return a.rows.size() > b.rows.size();
  });
  ForEach(context.parallel, count,
          [&](int64_t i) { fn(experts[tasks[i].expert], tasks[i].rows); });
}

template <typename Weights>
void FewRows(Transpose t, ConstMatrix a, Weights w, Matrix c) {
  t == Transpose::kNo ? FewRowsProduct(a, w, c) : FewRowsProductTransposed(a, w, c);
}

// c = a op(W) for one of the expert's matrices, [rows, cols]; the bits for bf16 are those for the
// same numbers as floats.
void Product(const Context& context, Transpose t, ConstMatrix a, const ExpertRows& expert,
             size_t matrix, int64_t rows, int64_t cols, Matrix c) {
  const bool few = c.rows <= MostFewRows() && rows > 0;
  if (expert.w16.empty()) {
    const ConstMatrix w(expert.w[matrix], rows, cols);
    return few ? FewRows(t, a, w, c) : Sgemm(Transpose::kNo, t, 1, a, w, 0, c);
  }
  const ConstBfloat16Matrix w16(expert.w16[matrix], rows, cols);
  if (few) return FewRows(t, a, w16, c);
  const Scratch<float> w(context.scratch, w16.size());
  ForLanes(w16.size(), [&](auto lanes, int64_t i) {
    lanes.Store(w.data() + i, lanes.Load(w16.data + i));
  });
  Sgemm(Transpose::kNo, t, 1, a, ConstMatrix(w.data(), rows, cols), 0, c);
}

void Relu(Matrix x) {
  const Vec zero = _mm256_setzero_ps();
  for (int64_t r = 0; r < x.rows; ++r) {
    float* row = x.row(r);
    // The second operand is returned for NaN, which must not vanish here.
    ForLanes(x.cols, [&](auto lanes, int64_t i) {
      lanes.Store(row + i, _mm256_max_ps(zero, lanes.Load(row + i)));
    });
  }
}

// u [d] = dL/dx without the gate: returns <x, u>, and u becomes gate * u.
float LinearGateRow(int64_t d, float gate, const float* x, float* u) {
  const Vec factor = Splat(gate);
  Vec dot = _mm256_setzero_ps();
  ForLanes(d, [&](auto lanes, int64_t i) {
    const Vec gradient = lanes.Load(u + i);
    dot = _mm256_fmadd_ps(lanes.Load(x + i), gradient, dot);
    lanes.Store(u + i, _mm256_mul_ps(factor, gradient));
  });
  return SumLanes(dot);
}

// u [h] = dL/dhidden without the gate: returns <hidden, u>, and u becomes gate * u * 1[hidden > 0].
float GateRow(int64_t h, float gate, const float* hidden, float* u) {
  const Vec zero = _mm256_setzero_ps();
  const Vec factor = Splat(gate);
  Vec dot = zero;
  ForLanes(h, [&](auto lanes, int64_t i) {
    const Vec value = lanes.Load(hidden + i);
    const Vec gradient = lanes.Load(u + i);
    dot = _mm256_fmadd_ps(value, gradient, dot);
    const Vec active = _mm256_cmp_ps(value, zero, _CMP_GT_OQ);
    lanes.Store(u + i, _mm256_and_ps(_mm256_mul_ps(factor, gradient), active));
  });
  return SumLanes(dot);
}

// gradient *= 1[hidden > 0]
void ReluBackward(ConstMatrix hidden, Matrix gradient) {
  const Vec zero = _mm256_setzero_ps();
  for (int64_t r = 0; r < hidden.rows; ++r) {
    const float* value = hidden.row(r);
    float* row = gradient.row(r);
    ForLanes(hidden.cols, [&](auto lanes, int64_t i) {
      const Vec active = _mm256_cmp_ps(lanes.Load(value + i), zero, _CMP_GT_OQ);
      lanes.Store(row + i, _mm256_and_ps(lanes.Load(row + i), active));
    });
  }
}

}  // namespace

void ExpertForward(const Context& context, std::span<const ExpertRows> experts,
                   ConstMatrix x, std::span<const Matrix> hidden, Matrix y) {
  const size_t depth = hidden.size();
  CheckExpertForward(x, hidden, y);
  ForRowBlocks(context, experts, x, [&](const ExpertRows& e, Range rows) {
    Check(e.matrices() == depth + 1, "a matrix more than hidden layers");
    ConstMatrix in = Rows(x, rows);
    for (size_t i = 0; i < depth; ++i) {
      const Matrix out = Rows(hidden[i], rows);
      Product(context, Transpose::kNo, in, e, i, in.cols, out.cols, out);
      Relu(out);
      in = out;
    }
    if (y.data == nullptr) return;
    Product(context, Transpose::kNo, in, e, depth, in.cols, y.cols, Rows(y, rows));
  });
}

void ExpertBackward(const Context& context, std::span<const ExpertRows> experts,
                    ConstMatrix x, ConstMatrix dy, const float* gate,
                    std::span<const ConstMatrix> hidden, float* dgate,
                    std::span<const Matrix> dhidden, Matrix dx) {
  const size_t depth = hidden.size();
  CheckExpertBackward(x, dy, hidden, dhidden, dx);
  ForRowBlocks(context, experts, dy, [&](const ExpertRows& e, Range rows) {
    Check(e.matrices() == depth + 1, "a matrix more than hidden layers");
    if (depth == 0) {
      Product(context, Transpose::kYes, Rows(dy, rows), e, 0, dx.cols, dy.cols,
              Rows(dx, rows));
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        dgate[r] = LinearGateRow(dx.cols, gate[r], x.row(r), dx.row(r));
      }
      return;
    }
    const ConstMatrix last = hidden.back();
    Matrix gradient = Rows(dhidden.back(), rows);
    Product(context, Transpose::kYes, Rows(dy, rows), e, depth, last.cols, dy.cols,
            gradient);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      dgate[r] = GateRow(last.cols, gate[r], last.row(r), dhidden.back().row(r));
    }
    for (size_t i = depth - 1; i > 0; --i) {
      const Matrix before = Rows(dhidden[i - 1], rows);
      Product(context, Transpose::kYes, gradient, e, i, before.cols, gradient.cols,
              before);
      ReluBackward(Rows(hidden[i - 1], rows), before);
      gradient = before;
    }
    if (dx.data == nullptr) return;
    Product(context, Transpose::kYes, gradient, e, 0, dx.cols, gradient.cols,
            Rows(dx, rows));
  });
}

}  // namespace moe::cpu
