// The arithmetic of the system, behind one interface for each kind of device.
//
// Memory: pointers and matrices passed to an operation point into memory that this backend
// allocated (Array, Tensor), except where a comment says "host". Callers never dereference device
// memory; they Upload and Download. Operations are issued in order and each sees the results of
// those before it; Download waits for them.
//
// Bits: a result depends on the arguments' values and logical sizes alone, never on addresses,
// strides, the number of threads or what else runs (docs/design/bits.md). Sums over rows run in row
// order unless a comment says otherwise.
//
// Threads: an instance may be called from several threads at once, on disjoint outputs.
//
// Shapes that don't fit are a broken invariant of the caller and abort the process: whatever a user
// or the network can get wrong is checked before it comes here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/random/random.h"
#include "common/tensor/bfloat16.h"
#include "common/tensor/matrix.h"

namespace moe {

enum class Transpose { kNo, kYes };

// One expert's rows within an expert-major batch of p rows. An expert with m hidden layers of the
// widths h_1 .. h_m has m + 1 matrices.
struct ExpertRows {
  // Host memory, the caller's: W_1 [d, h_1], W_2 [h_1, h_2], .., W_(m+1) [h_m, o]. Empty if the
  // matrices are bf16, and then they are w16; products and sums are of floats with both.
  std::span<float* const> w;
  int64_t begin = 0;  // first row of the expert in the batch
  int64_t rows = 0;
  std::span<Bfloat16* const> w16 = {};

  size_t matrices() const { return w.empty() ? w16.size() : w.size(); }
};

// Adam's parameters for one update (Kingma & Ba 2015). `count` is the number of updates of this
// tensor, this one included: 1, 2, ... With beta1 = 0 there is no first moment m.
struct AdamStep {
  float rate = 0;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float epsilon = 1e-8f;
  int64_t count = 1;
};

// What Adam keeps as the second moment v of a matrix [r, c] with the gradient g.
enum class SecondMoment {
  // [r, c]: averages of g^2.
  kFull,
  // [r + c]: averages R [r] and C [c] of the means of g^2 over rows and over columns. The second
  // moment is R C^T / mean(R) (appendix D), and 0 if that mean is.
  kFactored,
  // [r]: averages of the means of g^2 over rows, each for all elements of its row.
  kPerRow,
};

// One tensor's optimizer update. Gradients are multiplied by `gradient_scale` first.
struct OptimizerStep {
  enum class Kind { kSgd, kAdam };
  Kind kind = Kind::kSgd;
  AdamStep adam;  // kSgd uses its rate only
  SecondMoment second_moment = SecondMoment::kFull;
  float gradient_scale = 1;
  // Of the random bits that round a new bf16 value x to one of its two neighbours, so that x is the
  // expected value. Element (r, c) of the tensor uses half c % 2, the lower first, of word c / 2 of
  // FillBits(rounding, r).
  RandomKey rounding = {};
};

// One expert's update from the rows of a whole step.
struct ExpertUpdate {
  ExpertRows expert;
  // Of each matrix, host memory: Adam's moments, and the update. m and v may be empty, or their
  // pointers null, where an update has no such moment.
  std::span<float* const> m;
  std::span<float* const> v;
  std::span<const OptimizerStep> steps;
};

// What noisy top-k gating keeps of T tokens and n experts from forward to backward.
struct GateBatch {
  ConstMatrix clean;  // [T, n] x W_g
  ConstMatrix raw;    // [T, n] x W_noise; ignored (may be empty) without noise
  Matrix noise;       // [T, n] the standard normal draws; ignored without noise
  int32_t k = 0;
  bool with_noise = false;
  RandomKey key;  // of the draws; column = expert
  // Host, [T]: row of each token's draws; empty: its place in the batch.
  std::span<const int32_t> draw_row;
  int32_t* expert = nullptr;  // [T, k] chosen experts, ascending within a token
  float* gate = nullptr;      // [T, k] their gates, in the same order
  // [T, 2] the experts that hold the k-th and the (k+1)-th largest H; the second is -1 if k == n.
  int32_t* threshold = nullptr;
  double* importance = nullptr;  // [n] sum over tokens of G(x)_i (eq. 6)
  // [n] sum over tokens of P(x, i) (eq. 8-10), in fixed blocks of tokens; counts of chosen tokens
  // without noise or if k == n.
  double* load = nullptr;
};

// Of one token's choices among n experts, a bit for each.
constexpr int64_t ChosenBytes(int64_t n) { return (n + 7) / 8; }

// Splits work over threads. Nested use is allowed; the calling thread takes part.
class Parallel {
 public:
  virtual ~Parallel() = default;
  // Calls fn(i) for each i in [0, n) and returns when all have returned.
  virtual void For(int64_t n, const std::function<void(int64_t)>& fn) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu: avx2 fma, OpenBLAS 0.3.21 Haswell, 2 threads"; avx512 where kernels use it.
  virtual std::string Description() const = 0;
  virtual Parallel& parallel() = 0;

  // ---- memory
  // Aligned for every operation. Never null for bytes > 0; aborts when memory runs out.
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* memory) = 0;
  virtual void Upload(const void* host, void* device, size_t bytes) = 0;
  virtual void Download(const void* device, void* host, size_t bytes) = 0;
  virtual void Copy(const void* from, void* to, size_t bytes) = 0;
  virtual void Zero(void* memory, size_t bytes) = 0;

  // ---- general
  // c = alpha op(a) op(b) + beta c; beta 0 doesn't read c.
  virtual void Gemm(Transpose ta, Transpose tb, float alpha, ConstMatrix a, ConstMatrix b,
                    float beta, Matrix c) = 0;
  // Every row of out = row [out.cols].
  virtual void BroadcastRow(const float* row, Matrix out) = 0;
  // sums[c] += sum over rows of x.
  virtual void AddColumnSums(ConstMatrix x, float* sums) = 0;
  // y += x.
  virtual void Add(int64_t n, const float* x, float* y) = 0;
  // Sum of squares in fixed blocks, in double.
  virtual double SquareSum(int64_t n, const float* x) = 0;
  virtual bool AllFinite(ConstMatrix x) = 0;

  // ---- rows
  // out row i = x row index[i], times scale[i] unless scale is null. index is host memory.
  virtual void GatherRows(ConstMatrix x, std::span<const int32_t> index,
                          const float* scale, Matrix out) = 0;
  // out row index[i] += x row i, i ascending; indices may repeat. index is host memory.
  virtual void ScatterAddRows(ConstMatrix x, std::span<const int32_t> index,
                              Matrix out) = 0;
  // out row r = sum over j in [offset[r], offset[r+1]) ascending of weight[j] * x row position[j];
  // zero where there is none; weight null: 1. offset and position are host memory.
  virtual void CombineRows(ConstMatrix x, std::span<const int32_t> offset,
                           std::span<const int32_t> position, const float* weight,
                           Matrix out) = 0;

  // ---- activations
  virtual void SigmoidForward(ConstMatrix x, Matrix y) = 0;
  // dx = dy * y * (1 - y); dx may be dy.
  virtual void SigmoidBackward(ConstMatrix y, ConstMatrix dy, Matrix dx) = 0;
  // y = mask * x / (1 - rate) [+ residual unless its data is null]; rate 0 keeps all. The mask of
  // element (row, column) is a function of key. y may be x.
  virtual void DropoutForward(RandomKey key, float rate, ConstMatrix x,
                              ConstMatrix residual, Matrix y) = 0;
  // dx = mask * dy / (1 - rate); dx may be dy.
  virtual void DropoutBackward(RandomKey key, float rate, ConstMatrix dy, Matrix dx) = 0;

  // ---- LSTM cell, B lanes, H units; gates in the order input, forget, candidate, output
  // gates: [B, 4H] pre-activations in, activations out. c, tanh_c, h: [B, H] out.
  virtual void LstmCellForward(Matrix gates, ConstMatrix c_prev, Matrix c, Matrix tanh_c,
                               Matrix h) = 0;
  // gates, c_prev, tanh_c as the forward left them. dh: [B, H] dL/dh. dc: [B, H] in dL/dc from the
  // next time step, out dL/dc_prev. dgates: [B, 4H] out, w.r.t. the pre-activations; may be gates.
  virtual void LstmCellBackward(ConstMatrix gates, ConstMatrix c_prev, ConstMatrix tanh_c,
                                ConstMatrix dh, Matrix dc, Matrix dgates) = 0;

  // ---- softmax cross-entropy
  // logits: [T, V]. target: host, [T], -1 = not counted (its dlogits are 0). Returns the sum of
  // -ln p(target) in double, in row order. If gradient_scale is not 0, logits become
  // gradient_scale * (p - onehot).
  virtual double SoftmaxCrossEntropy(Matrix logits, std::span<const int32_t> target,
                                     float gradient_scale) = 0;

  // largest[r] = max of row r of x, sum[r] = sum of e^(x(r, c) - largest[r]); host memory, [rows].
  virtual void LogSumExp(ConstMatrix x, float* largest, double* sum) = 0;

  // Every row of x becomes ln Softmax(row).
  virtual void LogSoftmax(Matrix x) = 0;

  // ---- sampled softmax: logits [T, S + 1], of S candidates and, in the last column, of the target
  // Writes logits(t, S) = <x_t, row index[t] of w> + bias[index[t]], and -infinity to column hit[t],
  // so that a target that is a candidate too counts once; hit -1: none. index, hit: host, [T];
  // index -1: not counted.
  virtual void TargetLogits(ConstMatrix x, ConstMatrix w, const float* bias,
                            std::span<const int32_t> index, std::span<const int32_t> hit,
                            Matrix logits) = 0;
  // For each row t with index[t] >= 0, in row order, with g = dlogits(t, S): row index[t] of dw
  // += g x_t, dbias[index[t]] += g, dx_t += g * row index[t] of w.
  virtual void TargetLogitsBackward(ConstMatrix dlogits, ConstMatrix x, ConstMatrix w,
                                    std::span<const int32_t> index, Matrix dw,
                                    float* dbias, Matrix dx) = 0;

  // ---- noisy top-k gating (eq. 3-5, 8-10)
  // Reads clean, raw, k, with_noise, key, draw_row; writes the rest. A tie goes to the lower expert.
  virtual void NoisyTopKForward(const GateBatch& batch) = 0;
  // dgate: [T, k] dL/dG(x)_i of the chosen, importance's part included. dload: [n] dL/dLoad_i,
  // which flows through the clean logit, the noise scale and the threshold; null: none.
  // dclean, draw: [T, n] out; draw is ignored without noise.
  virtual void NoisyTopKBackward(const GateBatch& batch, const float* dgate,
                                 const float* dload, Matrix dclean, Matrix draw) = 0;

  // ---- gates under which a token has any number of the n experts
  // chosen: [T, ChosenBytes(n)]; bit i % 8 of byte i / 8 of a row says that the token has expert i.
  // The bits beyond n are 0.
  //
  // For each expert the m tokens with the largest of its column of x [T, n] (eq. 18), 0 <= m <= T.
  // Equal numbers: those with the smaller Bits(key, token, expert) first. NaN is the largest.
  virtual void ChooseLargest(ConstMatrix x, int64_t m, RandomKey key,
                             uint8_t* chosen) = 0;
  // For each token the experts with x(t, i) > threshold[i] (eq. 19), NaN included; none if its target
  // is -1. target: host, [T].
  virtual void ChooseAbove(ConstMatrix x, const float* threshold,
                           std::span<const int32_t> target, uint8_t* chosen) = 0;
  // count[i], [n]: tokens with x(t, i) > threshold[i], NaN included.
  virtual void CountAbove(ConstMatrix x, const float* threshold, int32_t* count) = 0;
  // offset: [T + 1] out, of each token's pairs (token, expert) in a list of all. Returns their
  // number p = offset[T].
  virtual int64_t CountChosen(int64_t tokens, int64_t n, const uint8_t* chosen,
                              int32_t* offset) = 0;
  // offset: from CountChosen. expert: [p] out, ascending within a token; gate: [p] out, Softmax over
  // the token's chosen x.
  virtual void ChosenSoftmaxForward(ConstMatrix x, const uint8_t* chosen,
                                    const int32_t* offset, int32_t* expert,
                                    float* gate) = 0;
  // dgate: [p]. dx: [T, n] out; zero where not chosen.
  virtual void ChosenSoftmaxBackward(const int32_t* offset, const int32_t* expert,
                                     const float* gate, const float* dgate,
                                     Matrix dx) = 0;

  // ---- experts: ReLU(.. ReLU(x W_1) .. W_m) W_(m+1) on an expert-major batch of p rows; experts
  // in parallel. hidden, dhidden: one matrix for each hidden layer, first to last; m >= 0.
  // x: [p, d]; hidden: m times [p, h_i] out; y: [p, o] out.
  virtual void ExpertForward(std::span<const ExpertRows> experts, ConstMatrix x,
                             std::span<const Matrix> hidden, Matrix y) = 0;
  // dy: [p, o] dL/d(layer output) of each row, ungated. gate: [p]. With u = dy W_(m+1)^T:
  // dgate [p] = <hidden_m, u>, dhidden_m [p, h_m] = gate * u * 1[hidden_m > 0],
  // dhidden_(i-1) = dhidden_i W_i^T * 1[hidden_(i-1) > 0], dx [p, d] = dhidden_1 W_1^T.
  // Without a hidden layer dgate = <x, u> and dx = gate * u; x is ignored, and may be empty, if there
  // is one.
  virtual void ExpertBackward(std::span<const ExpertRows> experts, ConstMatrix x,
                              ConstMatrix dy, const float* gate,
                              std::span<const ConstMatrix> hidden, float* dgate,
                              std::span<const Matrix> dhidden, Matrix dx) = 0;
  // Forms dW_1 = x^T dhidden_1, dW_i = hidden_(i-1)^T dhidden_i and dW_(m+1) = hidden_m^T gated_dy
  // (gated_dy = gate * dy, [p, o]; without a hidden layer dW_1 = x^T gated_dy) over each expert's rows and applies the optimizer at once; no gradient
  // is kept, but for one matrix on each thread where an update takes means. Experts without rows are
  // untouched.
  virtual void ExpertUpdates(std::span<const ExpertUpdate> updates, ConstMatrix x,
                             std::span<const ConstMatrix> hidden,
                             std::span<const ConstMatrix> dhidden,
                             ConstMatrix gated_dy) = 0;
  // The square sums of each expert's dW_1 .. dW_(m+1): sums[(m + 1) e + i], host memory.
  virtual void ExpertSquareSums(std::span<const ExpertRows> experts, ConstMatrix x,
                                std::span<const ConstMatrix> hidden,
                                std::span<const ConstMatrix> dhidden,
                                ConstMatrix gated_dy, std::span<double> sums) = 0;

  // ---- optimizers
  // g: [r, c] without gaps; w, m: [r, c]; v: as step.second_moment says. m and v may be null where
  // the update has no such moment.
  virtual void OptimizerUpdate(const OptimizerStep& step, ConstMatrix g, float* w,
                               float* m, float* v) = 0;
  // Row index[i] of w [rows, c] is updated with row i of g, as if it were a tensor; count[i] is the
  // number of its updates, this one included, and step's is ignored. The second moment is full, v
  // [rows, c], or by rows, v [rows, 1]; m: [rows, c]. m and v may be empty where the update has no
  // such moment. index: ascending; index and count are host memory.
  virtual void UpdateRows(const OptimizerStep& step, std::span<const int32_t> index,
                          std::span<const int64_t> count, ConstMatrix g, Matrix w,
                          Matrix m, Matrix v) = 0;
};

// Memory of one backend, freed with the object. Not initialized.
template <typename T>
class Array {
 public:
  Array() = default;
  Array(Backend& backend, int64_t size)
      : backend_(&backend),
        size_(size),
        data_(size > 0 ? static_cast<T*>(backend.Allocate(size * sizeof(T))) : nullptr) {}
  ~Array() {
    if (data_ != nullptr) backend_->Free(data_);
  }
  Array(Array&& other) noexcept { *this = std::move(other); }
  Array& operator=(Array&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  void Zero() {
    if (size_ > 0) backend_->Zero(data_, size_ * sizeof(T));
  }
  void Upload(std::span<const T> host) {
    backend_->Upload(host.data(), data_, host.size_bytes());
  }
  void Download(std::span<T> host) const {
    backend_->Download(data_, host.data(), host.size_bytes());
  }

 private:
  Backend* backend_ = nullptr;
  int64_t size_ = 0;
  T* data_ = nullptr;
};

// A matrix with memory of its own. Not initialized.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Backend& backend, int64_t rows, int64_t cols)
      : memory_(backend, rows * cols), rows_(rows), cols_(cols) {}

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t size() const { return rows_ * cols_; }
  float* data() const { return memory_.data(); }
  Matrix view() const { return Matrix(memory_.data(), rows_, cols_); }
  Matrix Rows(int64_t begin, int64_t count) const { return view().Rows(begin, count); }
  void Zero() { memory_.Zero(); }
  void Upload(std::span<const float> host) { memory_.Upload(host); }
  void Download(std::span<float> host) const { memory_.Download(host); }

 private:
  Array<float> memory_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

// The views of tensors, as Matrix or as ConstMatrix.
template <typename View, typename Tensors>
std::vector<View> Views(const Tensors& tensors) {
  std::vector<View> views;
  for (const auto& tensor : tensors) views.push_back(tensor.view());
  return views;
}

// The CPU backend; threads >= 1 counts the calling thread. If the processor lacks AVX2 or FMA, or there
// are to be more than 1,024 threads, it returns null and sets *error.
std::unique_ptr<Backend> MakeCpuBackend(int threads, std::string* error);

// The numerics class of a backend, 16 hexadecimal digits: equal hashes, equal bits. Computed from
// fixed probe products and elementwise functions, about 10 ms.
std::string NumericsFingerprint(Backend& backend);

}  // namespace moe
