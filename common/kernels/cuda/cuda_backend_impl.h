// The operations of Backend on one GPU; each stands in the file of its topic.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "common/kernels/backend.h"
#include "common/kernels/cpu/thread_pool.h"
#include "common/kernels/cuda/context.h"
#include "common/kernels/cuda/cuda_backend.h"
#include "common/kernels/cuda/expert_cache.h"

namespace moe::cuda {

// Thread-safe: operations are put on one stream, one at a time.
//
// An address that isn't in memory of this backend is the host's: Upload, Download, Copy and Zero take
// both kinds, and so do the matrices and moments of experts.
class CudaBackend : public Backend {
 public:
  // The GPU exists and fits.
  explicit CudaBackend(const CudaOptions& options);
  ~CudaBackend() override;

  std::string Description() const override { return description_; }
  Parallel& parallel() override { return pool_; }
  const ExpertCache& expert_cache() const { return *experts_; }

  void* Allocate(size_t bytes) override;
  void Free(void* memory) override;
  void Upload(const void* host, void* device, size_t bytes) override;
  void Download(const void* device, void* host, size_t bytes) override;
  void Copy(const void* from, void* to, size_t bytes) override;
  void Zero(void* memory, size_t bytes) override;

  void Gemm(Transpose ta, Transpose tb, float alpha, ConstMatrix a, ConstMatrix b,
            float beta, Matrix c) override;
  void BroadcastRow(const float* row, Matrix out) override;
  void AddColumnSums(ConstMatrix x, float* sums) override;
  void Add(int64_t n, const float* x, float* y) override;
  double SquareSum(int64_t n, const float* x) override;
  bool AllFinite(ConstMatrix x) override;

  void GatherRows(ConstMatrix x, std::span<const int32_t> index, const float* scale,
                  Matrix out) override;
  void ScatterAddRows(ConstMatrix x, std::span<const int32_t> index, Matrix out) override;
  void CombineRows(ConstMatrix x, std::span<const int32_t> offset,
                   std::span<const int32_t> position, const float* weight,
                   Matrix out) override;

  void SigmoidForward(ConstMatrix x, Matrix y) override;
  void SigmoidBackward(ConstMatrix y, ConstMatrix dy, Matrix dx) override;
  void DropoutForward(RandomKey key, float rate, ConstMatrix x, ConstMatrix residual,
                      Matrix y) override;
  void DropoutBackward(RandomKey key, float rate, ConstMatrix dy, Matrix dx) override;

  void LstmCellForward(Matrix gates, ConstMatrix c_prev, Matrix c, Matrix tanh_c,
                       Matrix h) override;
  void LstmCellBackward(ConstMatrix gates, ConstMatrix c_prev, ConstMatrix tanh_c,
                        ConstMatrix dh, Matrix dc, Matrix dgates) override;

  double SoftmaxCrossEntropy(Matrix logits, std::span<const int32_t> target,
                             float gradient_scale) override;
  void LogSumExp(ConstMatrix x, float* largest, double* sum) override;
  void LogSoftmax(Matrix x) override;

  void TargetLogits(ConstMatrix x, ConstMatrix w, const float* bias,
                    std::span<const int32_t> index, std::span<const int32_t> hit,
                    Matrix logits) override;
  void TargetLogitsBackward(ConstMatrix dlogits, ConstMatrix x, ConstMatrix w,
                            std::span<const int32_t> index, Matrix dw, float* dbias,
                            Matrix dx) override;

  void NoisyTopKForward(const GateBatch& batch) override;
  void NoisyTopKBackward(const GateBatch& batch, const float* dgate, const float* dload,
                         Matrix dclean, Matrix draw) override;

  void ChooseLargest(ConstMatrix x, int64_t m, RandomKey key, uint8_t* chosen) override;
  void ChooseAbove(ConstMatrix x, const float* threshold, std::span<const int32_t> target,
                   uint8_t* chosen) override;
  void CountAbove(ConstMatrix x, const float* threshold, int32_t* count) override;
  int64_t CountChosen(int64_t tokens, int64_t n, const uint8_t* chosen,
                      int32_t* offset) override;
  void ChosenSoftmaxForward(ConstMatrix x, const uint8_t* chosen, const int32_t* offset,
                            int32_t* expert, float* gate) override;
  void ChosenSoftmaxBackward(const int32_t* offset, const int32_t* expert,
                             const float* gate, const float* dgate, Matrix dx) override;

  void ExpertForward(std::span<const ExpertRows> experts, ConstMatrix x,
                     std::span<const Matrix> hidden, Matrix y) override;
  void ExpertBackward(std::span<const ExpertRows> experts, ConstMatrix x, ConstMatrix dy,
                      const float* gate, std::span<const ConstMatrix> hidden,
                      float* dgate, std::span<const Matrix> dhidden, Matrix dx) override;
  void ExpertUpdates(std::span<const ExpertUpdate> updates, ConstMatrix x,
                     std::span<const ConstMatrix> hidden,
                     std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy) override;
  void ExpertSquareSums(std::span<const ExpertRows> experts, ConstMatrix x,
                        std::span<const ConstMatrix> hidden,
                        std::span<const ConstMatrix> dhidden, ConstMatrix gated_dy,
                        std::span<double> sums) override;

  void OptimizerUpdate(const OptimizerStep& step, ConstMatrix g, float* w, float* m,
                       float* v) override;
  void UpdateRows(const OptimizerStep& step, std::span<const int32_t> index,
                  std::span<const int64_t> count, ConstMatrix g, Matrix w, Matrix m,
                  Matrix v) override;

 private:
  // The right to put an operation on the stream.
  class Turn;
  // CUDA keeps the current device by thread.
  void UseDevice() const;

  const CudaOptions options_;
  cpu::ThreadPool pool_;
  std::string description_;
  std::mutex mutex_;
  cudaStream_t stream_ = nullptr;
  cublasHandle_t blas_ = nullptr;
  void* workspace_ = nullptr;
  std::unique_ptr<DeviceMemory> memory_;
  std::unique_ptr<UploadRing> uploads_;
  std::unique_ptr<Downloads> downloads_;
  std::unique_ptr<ExpertCache> experts_;
  Context context_;
};

}  // namespace moe::cuda
