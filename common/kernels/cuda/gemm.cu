#include <algorithm>
#include <climits>
#include <deque>
#include <vector>

#include "common/kernels/cuda/elements.h"
#include "common/kernels/cuda/gemm.h"

namespace moe::cuda {
namespace {

cublasOperation_t ToCublas(Transpose t) {
  return t == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
}

// beta c, without reading it if beta is 0.
struct ScaleBody {
  float beta;
  View c;
  __device__ void operator()(int64_t row, int64_t column) const {
    float& value = c.row(row)[column];
    value = beta == 0 ? 0 : beta * value;
  }
};

void CopyRows(const Context& context, ConstMatrix from, Matrix to) {
  CheckOk(cudaMemcpy2DAsync(to.data, to.stride * sizeof(float), from.data,
                            from.stride * sizeof(float), from.cols * sizeof(float),
                            from.rows, cudaMemcpyDeviceToDevice, context.stream));
}

// The operands of products in a form that cuBLAS always treats alike.
class Operands {
 public:
  explicit Operands(const Context& context) : context_(context) {}

  ConstMatrix In(ConstMatrix x) { return IsAligned(x) ? Strided(x) : Copy(x, true); }
  // A place for c, with c's values if they are read.
  Matrix Out(Matrix c, bool read) {
    if (IsAligned(c)) return Strided(c);
    const Matrix copy = Copy(c, read);
    back_.push_back({copy, c});
    return copy;
  }
  // After the products.
  void WriteBack() {
    for (const auto& [from, to] : back_) CopyRows(context_, from, to);
  }

 private:
  static bool IsAligned(ConstMatrix x) {
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
           (x.rows <= 1 || x.stride % kStrideUnit == 0);
  }
  // Of one row the stride is free.
  template <typename T>
  static BasicMatrix<T> Strided(BasicMatrix<T> x) {
    return x.rows <= 1 ? BasicMatrix<T>(x.data, x.rows, x.cols, AlignedStride(x.cols))
                       : x;
  }
  Matrix Copy(ConstMatrix x, bool read) {
    const int64_t stride = AlignedStride(x.cols);
    const Scratch<float>& scratch = copies_.emplace_back(context_, x.rows * stride);
    const Matrix copy(scratch.data(), x.rows, x.cols, stride);
    if (read) CopyRows(context_, x, copy);
    return copy;
  }

  const Context& context_;
  std::deque<Scratch<float>> copies_;
  std::vector<std::pair<Matrix, Matrix>> back_;
};

// Sizes of c [m, n] = op(a) [m, k] op(b) [k, n].
struct Sizes {
  Sizes(Transpose ta, Transpose tb, ConstMatrix a, ConstMatrix b, ConstMatrix c)
      : m(c.rows), n(c.cols), k(ta == Transpose::kYes ? a.rows : a.cols) {
    Check((ta == Transpose::kYes ? a.cols : a.rows) == m, "op(a) has the rows of c");
    Check((tb == Transpose::kYes ? b.rows : b.cols) == n, "op(b) has the columns of c");
    Check((tb == Transpose::kYes ? b.cols : b.rows) == k,
          "op(a) has as many columns as op(b) has rows");
    Check(std::max({m, n, k, a.stride, b.stride, c.stride}) < INT_MAX - kStrideUnit,
          "sizes below 2^31");
  }
  bool empty() const { return m == 0 || n == 0; }

  int64_t m, n, k;
};

}  // namespace

// cuBLAS has columns where we have rows: it is given the transposed product, op(b)^T op(a)^T.
void Gemm(const Context& context, Transpose ta, Transpose tb, float alpha, ConstMatrix a,
          ConstMatrix b, float beta, Matrix c) {
  const Sizes s(ta, tb, a, b, c);
  if (s.empty()) return;
  if (s.k == 0) return ForEachElement(context, c.rows, c.cols, ScaleBody{beta, c});
  Operands operands(context);
  const ConstMatrix left = operands.In(a);
  const ConstMatrix right = operands.In(b);
  const Matrix out = operands.Out(c, beta != 0);
  CheckOk(cublasGemmEx(context.blas, ToCublas(tb), ToCublas(ta), static_cast<int>(s.n),
                       static_cast<int>(s.m), static_cast<int>(s.k), &alpha, right.data,
                       CUDA_R_32F, static_cast<int>(right.stride), left.data, CUDA_R_32F,
                       static_cast<int>(left.stride), &beta, out.data, CUDA_R_32F,
                       static_cast<int>(out.stride), context.compute,
                       CUBLAS_GEMM_DEFAULT));
  operands.WriteBack();
}

void Products(const Context& context, std::span<const Product> products) {
#if CUBLAS_VERSION >= 120500
  Operands operands(context);
  std::vector<cublasOperation_t> ta, tb;
  std::vector<int> m, n, k, lda, ldb, ldc;
  std::vector<const void*> a, b;
  std::vector<void*> c;
  for (const Product& p : products) {
    const Sizes s(p.ta, p.tb, p.a, p.b, p.c);
    if (s.empty()) continue;
    if (s.k == 0) {
      ForEachElement(context, p.c.rows, p.c.cols, ScaleBody{0, p.c});
      continue;
    }
    const ConstMatrix left = operands.In(p.a);
    const ConstMatrix right = operands.In(p.b);
    const Matrix out = operands.Out(p.c, false);
    ta.push_back(ToCublas(p.ta));
    tb.push_back(ToCublas(p.tb));
    m.push_back(static_cast<int>(s.m));
    n.push_back(static_cast<int>(s.n));
    k.push_back(static_cast<int>(s.k));
    a.push_back(left.data);
    b.push_back(right.data);
    c.push_back(out.data);
    lda.push_back(static_cast<int>(left.stride));
    ldb.push_back(static_cast<int>(right.stride));
    ldc.push_back(static_cast<int>(out.stride));
  }
  if (m.empty()) return;
  const std::vector<float> one(m.size(), 1.0f), zero(m.size(), 0.0f);
  const std::vector<int> group_size(m.size(), 1);
  const OnDevice<const void*> device_a(context, a), device_b(context, b);
  const OnDevice<void*> device_c(context, c);
  CheckOk(cublasGemmGroupedBatchedEx(
      context.blas, tb.data(), ta.data(), n.data(), m.data(), k.data(), one.data(),
      device_b.data(), CUDA_R_32F, ldb.data(), device_a.data(), CUDA_R_32F, lda.data(),
      zero.data(), device_c.data(), CUDA_R_32F, ldc.data(), static_cast<int>(m.size()),
      group_size.data(), context.compute));
  operands.WriteBack();
#else
  for (const Product& p : products) Gemm(context, p.ta, p.tb, 1, p.a, p.b, 0, p.c);
#endif
}

}  // namespace moe::cuda
