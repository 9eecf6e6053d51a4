#include "common/kernels/cpu/cpu_backend.h"

#include <cblas.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "common/kernels/cpu/activations.h"
#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/chosen_softmax.h"
#include "common/kernels/cpu/experts.h"
#include "common/kernels/cpu/few_rows_kernels.h"
#include "common/kernels/cpu/flush_denormals.h"
#include "common/kernels/cpu/gating.h"
#include "common/kernels/cpu/gemm.h"
#include "common/kernels/cpu/lstm_cell.h"
#include "common/kernels/cpu/memory.h"
#include "common/kernels/cpu/optimizer.h"
#include "common/kernels/cpu/reductions.h"
#include "common/kernels/cpu/rows.h"
#include "common/kernels/cpu/sampled_softmax.h"
#include "common/kernels/cpu/softmax.h"
#include "common/kernels/cpu/strict_gating.h"

namespace moe::cpu {
namespace {

// More than any machine has use for; far more, and it can't start them.
constexpr int kMostThreads = 1024;

std::string Describe(int threads) {
  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...": the name and the version are enough.
  std::string blas = openblas_get_config();
  blas.resize(std::min(blas.size(), blas.find(' ', blas.find(' ') + 1)));
  return std::string(HasAvx512() ? "cpu: avx512, " : "cpu: avx2 fma, ") + blas + " " +
         openblas_get_corename() + ", " + std::to_string(threads) +
         (threads == 1 ? " thread" : " threads");
}

}  // namespace

CpuBackend::CpuBackend(int threads)
    : pool_(threads), context_{pool_, scratch_}, description_(Describe(threads)) {
  Check(threads >= 1, "at least one thread");
  // Threads share whole products, never the inside of one.
  openblas_set_num_threads(1);
}

void* CpuBackend::Allocate(size_t bytes) { return AllocateAligned(bytes); }

void CpuBackend::Free(void* memory) { FreeAligned(memory); }

void CpuBackend::Upload(const void* host, void* device, size_t bytes) {
  Copy(host, device, bytes);
}

void CpuBackend::Download(const void* device, void* host, size_t bytes) {
  Copy(device, host, bytes);
}

void CpuBackend::Copy(const void* from, void* to, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

void CpuBackend::Zero(void* memory, size_t bytes) {
  if (bytes > 0) std::memset(memory, 0, bytes);
}

void CpuBackend::Gemm(Transpose ta, Transpose tb, float alpha, ConstMatrix a,
                      ConstMatrix b, float beta, Matrix c) {
  const FlushDenormals flush;
  cpu::Gemm(context_, ta, tb, alpha, a, b, beta, c);
}

void CpuBackend::BroadcastRow(const float* row, Matrix out) {
  const FlushDenormals flush;
  cpu::BroadcastRow(context_, row, out);
}

void CpuBackend::AddColumnSums(ConstMatrix x, float* sums) {
  const FlushDenormals flush;
  cpu::AddColumnSums(context_, x, sums);
}

void CpuBackend::Add(int64_t n, const float* x, float* y) {
  const FlushDenormals flush;
  cpu::Add(context_, n, x, y);
}

double CpuBackend::SquareSum(int64_t n, const float* x) {
  const FlushDenormals flush;
  return cpu::SquareSum(context_, n, x);
}

bool CpuBackend::AllFinite(ConstMatrix x) {
  const FlushDenormals flush;
  return cpu::AllFinite(context_, x);
}

void CpuBackend::GatherRows(ConstMatrix x, std::span<const int32_t> index,
                            const float* scale, Matrix out) {
  const FlushDenormals flush;
  cpu::GatherRows(context_, x, index, scale, out);
}

void CpuBackend::ScatterAddRows(ConstMatrix x, std::span<const int32_t> index,
                                Matrix out) {
  const FlushDenormals flush;
  cpu::ScatterAddRows(context_, x, index, out);
}

void CpuBackend::CombineRows(ConstMatrix x, std::span<const int32_t> offset,
                             std::span<const int32_t> position, const float* weight,
                             Matrix out) {
  const FlushDenormals flush;
  cpu::CombineRows(context_, x, offset, position, weight, out);
}

void CpuBackend::SigmoidForward(ConstMatrix x, Matrix y) {
  const FlushDenormals flush;
  cpu::SigmoidForward(context_, x, y);
}

void CpuBackend::SigmoidBackward(ConstMatrix y, ConstMatrix dy, Matrix dx) {
  const FlushDenormals flush;
  cpu::SigmoidBackward(context_, y, dy, dx);
}

void CpuBackend::DropoutForward(RandomKey key, float rate, ConstMatrix x,
                                ConstMatrix residual, Matrix y) {
  const FlushDenormals flush;
  cpu::DropoutForward(context_, key, rate, x, residual, y);
}

void CpuBackend::DropoutBackward(RandomKey key, float rate, ConstMatrix dy, Matrix dx) {
  const FlushDenormals flush;
  cpu::DropoutBackward(context_, key, rate, dy, dx);
}

void CpuBackend::LstmCellForward(Matrix gates, ConstMatrix c_prev, Matrix c,
                                 Matrix tanh_c, Matrix h) {
  const FlushDenormals flush;
  cpu::LstmCellForward(context_, gates, c_prev, c, tanh_c, h);
}

void CpuBackend::LstmCellBackward(ConstMatrix gates, ConstMatrix c_prev,
                                  ConstMatrix tanh_c, ConstMatrix dh, Matrix dc,
                                  Matrix dgates) {
  const FlushDenormals flush;
  cpu::LstmCellBackward(context_, gates, c_prev, tanh_c, dh, dc, dgates);
}

double CpuBackend::SoftmaxCrossEntropy(Matrix logits, std::span<const int32_t> target,
                                       float gradient_scale) {
  const FlushDenormals flush;
  return cpu::SoftmaxCrossEntropy(context_, logits, target, gradient_scale);
}

void CpuBackend::LogSumExp(ConstMatrix x, float* largest, double* sum) {
  const FlushDenormals flush;
  cpu::LogSumExp(context_, x, largest, sum);
}

void CpuBackend::LogSoftmax(Matrix x) {
  const FlushDenormals flush;
  cpu::LogSoftmax(context_, x);
}

void CpuBackend::TargetLogits(ConstMatrix x, ConstMatrix w, const float* bias,
                              std::span<const int32_t> index,
                              std::span<const int32_t> hit, Matrix logits) {
  const FlushDenormals flush;
  cpu::TargetLogits(context_, x, w, bias, index, hit, logits);
}

void CpuBackend::TargetLogitsBackward(ConstMatrix dlogits, ConstMatrix x, ConstMatrix w,
                                      std::span<const int32_t> index, Matrix dw,
                                      float* dbias, Matrix dx) {
  const FlushDenormals flush;
  cpu::TargetLogitsBackward(context_, dlogits, x, w, index, dw, dbias, dx);
}

void CpuBackend::NoisyTopKForward(const GateBatch& batch) {
  const FlushDenormals flush;
  cpu::NoisyTopKForward(context_, batch);
}

void CpuBackend::NoisyTopKBackward(const GateBatch& batch, const float* dgate,
                                   const float* dload, Matrix dclean, Matrix draw) {
  const FlushDenormals flush;
  cpu::NoisyTopKBackward(context_, batch, dgate, dload, dclean, draw);
}

void CpuBackend::ChooseLargest(ConstMatrix x, int64_t m, RandomKey key, uint8_t* chosen) {
  const FlushDenormals flush;
  cpu::ChooseLargest(context_, x, m, key, chosen);
}

void CpuBackend::ChooseAbove(ConstMatrix x, const float* threshold,
                             std::span<const int32_t> target, uint8_t* chosen) {
  const FlushDenormals flush;
  cpu::ChooseAbove(context_, x, threshold, target, chosen);
}

void CpuBackend::CountAbove(ConstMatrix x, const float* threshold, int32_t* count) {
  const FlushDenormals flush;
  cpu::CountAbove(context_, x, threshold, count);
}

int64_t CpuBackend::CountChosen(int64_t tokens, int64_t n, const uint8_t* chosen,
                                int32_t* offset) {
  return cpu::CountChosen(tokens, n, chosen, offset);
}

void CpuBackend::ChosenSoftmaxForward(ConstMatrix x, const uint8_t* chosen,
                                      const int32_t* offset, int32_t* expert,
                                      float* gate) {
  const FlushDenormals flush;
  cpu::ChosenSoftmaxForward(context_, x, chosen, offset, expert, gate);
}

void CpuBackend::ChosenSoftmaxBackward(const int32_t* offset, const int32_t* expert,
                                       const float* gate, const float* dgate, Matrix dx) {
  const FlushDenormals flush;
  cpu::ChosenSoftmaxBackward(context_, offset, expert, gate, dgate, dx);
}

void CpuBackend::ExpertForward(std::span<const ExpertRows> experts, ConstMatrix x,
                               std::span<const Matrix> hidden, Matrix y) {
  const FlushDenormals flush;
  cpu::ExpertForward(context_, experts, x, hidden, y);
}

void CpuBackend::ExpertBackward(std::span<const ExpertRows> experts, ConstMatrix x,
                                ConstMatrix dy, const float* gate,
                                std::span<const ConstMatrix> hidden, float* dgate,
                                std::span<const Matrix> dhidden, Matrix dx) {
  const FlushDenormals flush;
  cpu::ExpertBackward(context_, experts, x, dy, gate, hidden, dgate, dhidden, dx);
}

void CpuBackend::ExpertUpdates(std::span<const ExpertUpdate> updates, ConstMatrix x,
                               std::span<const ConstMatrix> hidden,
                               std::span<const ConstMatrix> dhidden,
                               ConstMatrix gated_dy) {
  const FlushDenormals flush;
  cpu::ExpertUpdates(context_, updates, x, hidden, dhidden, gated_dy);
}

void CpuBackend::ExpertSquareSums(std::span<const ExpertRows> experts, ConstMatrix x,
                                  std::span<const ConstMatrix> hidden,
                                  std::span<const ConstMatrix> dhidden,
                                  ConstMatrix gated_dy, std::span<double> sums) {
  const FlushDenormals flush;
  cpu::ExpertSquareSums(context_, experts, x, hidden, dhidden, gated_dy, sums);
}

void CpuBackend::OptimizerUpdate(const OptimizerStep& step, ConstMatrix g, float* w,
                                 float* m, float* v) {
  const FlushDenormals flush;
  cpu::OptimizerUpdate(context_, step, g, w, m, v);
}

void CpuBackend::UpdateRows(const OptimizerStep& step, std::span<const int32_t> index,
                            std::span<const int64_t> count, ConstMatrix g, Matrix w,
                            Matrix m, Matrix v) {
  const FlushDenormals flush;
  cpu::UpdateRows(context_, step, index, count, g, w, m, v);
}

}  // namespace moe::cpu

namespace moe {

std::unique_ptr<Backend> MakeCpuBackend(int threads, std::string* error) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    *error = "this processor lacks AVX2 or FMA";
    return nullptr;
  }
  if (threads > cpu::kMostThreads) {
    *error = "--threads is " + std::to_string(threads) + "; it must be at most " +
             std::to_string(cpu::kMostThreads);
    return nullptr;
  }
  return std::make_unique<cpu::CpuBackend>(threads);
}

}  // namespace moe
