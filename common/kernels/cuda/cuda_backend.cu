#include <cstring>

#include "common/kernels/cuda/activations.h"
#include "common/kernels/cuda/cuda_backend.h"
#include "common/kernels/cuda/cuda_backend_impl.h"
#include "common/kernels/cuda/experts.h"
#include "common/kernels/cuda/gating.h"
#include "common/kernels/cuda/gemm.h"
#include "common/kernels/cuda/optimizer.h"
#include "common/kernels/cuda/reductions.h"
#include "common/kernels/cuda/rows.h"
#include "common/kernels/cuda/softmax.h"
#include "common/kernels/cuda/strict_gating.h"

namespace moe::cuda {
namespace {

// As for the CPU.
constexpr int kMostThreads = 1024;
constexpr size_t kUploadSegment = size_t{4} << 20;
// What cuBLAS may use; its own, which it takes if it is given none, isn't the same for all streams.
constexpr size_t kWorkspace = size_t{32} << 20;

std::string Describe(const CudaOptions& options, cublasHandle_t blas) {
  cudaDeviceProp properties;
  CheckOk(cudaGetDeviceProperties(&properties, options.device));
  int version = 0;
  CheckOk(cublasGetVersion(blas, &version));
  return std::string("cuda: ") + properties.name + ", sm_" +
         std::to_string(properties.major) + std::to_string(properties.minor) +
         ", cuBLAS " + std::to_string(version) + (options.tf32 ? ", tf32" : ", fp32");
}

int64_t CacheBytes(const CudaOptions& options) {
  if (options.expert_cache_bytes > 0) return options.expert_cache_bytes;
  size_t free = 0;
  size_t total = 0;
  CheckOk(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free / 2);
}

}  // namespace

class CudaBackend::Turn {
 public:
  explicit Turn(CudaBackend& backend) : lock_(backend.mutex_) { backend.UseDevice(); }

 private:
  const std::lock_guard<std::mutex> lock_;
};

CudaBackend::CudaBackend(const CudaOptions& options)
    : options_(options), pool_(options.threads) {
  UseDevice();
  cudaMemPool_t pool;
  CheckOk(cudaDeviceGetDefaultMemPool(&pool, options.device));
  uint64_t keep_all = ~uint64_t{0};
  CheckOk(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_all));
  CheckOk(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  CheckOk(cublasCreate(&blas_));
  CheckOk(cublasSetStream(blas_, stream_));
  workspace_ = AllocateOnStream(kWorkspace, stream_);
  CheckOk(cublasSetWorkspace(blas_, workspace_, kWorkspace));
  description_ = Describe(options, blas_);
  memory_ = std::make_unique<DeviceMemory>(stream_);
  uploads_ = std::make_unique<UploadRing>(stream_, kUploadSegment);
  downloads_ = std::make_unique<Downloads>(stream_);
  experts_ = std::make_unique<ExpertCache>(stream_, CacheBytes(options));
  context_ = {.stream = stream_,
              .blas = blas_,
              .compute = options.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
              .memory = memory_.get(),
              .uploads = uploads_.get(),
              .downloads = downloads_.get(),
              .experts = experts_.get()};
}

CudaBackend::~CudaBackend() {
  UseDevice();
  experts_.reset();
  uploads_.reset();
  downloads_.reset();
  CheckOk(cudaFreeAsync(workspace_, stream_));
  CheckOk(cudaStreamSynchronize(stream_));
  CheckOk(cublasDestroy(blas_));
  CheckOk(cudaStreamDestroy(stream_));
}

void CudaBackend::UseDevice() const { CheckOk(cudaSetDevice(options_.device)); }

void* CudaBackend::Allocate(size_t bytes) {
  UseDevice();
  return memory_->Allocate(bytes);
}

void CudaBackend::Free(void* memory) {
  UseDevice();
  memory_->Free(memory);
}

void CudaBackend::Upload(const void* host, void* device, size_t bytes) {
  if (bytes == 0) return;
  const Turn turn(*this);
  if (memory_->Has(device)) return uploads_->Upload(host, device, bytes);
  std::memcpy(device, host, bytes);
  experts_->Forget(device, bytes);
}

void CudaBackend::Download(const void* device, void* host, size_t bytes) {
  if (bytes == 0) return;
  if (!memory_->Has(device)) {
    std::memcpy(host, device, bytes);
    return;
  }
  // Others go on meanwhile.
  UseDevice();
  downloads_->Download(device, host, bytes);
}

void CudaBackend::Copy(const void* from, void* to, size_t bytes) {
  if (bytes == 0) return;
  if (!memory_->Has(from)) return Upload(from, to, bytes);
  if (!memory_->Has(to)) {
    Download(from, to, bytes);
    const Turn turn(*this);
    return experts_->Forget(to, bytes);
  }
  const Turn turn(*this);
  CheckOk(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
}

void CudaBackend::Zero(void* memory, size_t bytes) {
  if (bytes == 0) return;
  const Turn turn(*this);
  if (memory_->Has(memory)) {
    return CheckOk(cudaMemsetAsync(memory, 0, bytes, stream_));
  }
  std::memset(memory, 0, bytes);
  experts_->Forget(memory, bytes);
}

void CudaBackend::Gemm(Transpose ta, Transpose tb, float alpha, ConstMatrix a,
                       ConstMatrix b, float beta, Matrix c) {
  const Turn turn(*this);
  cuda::Gemm(context_, ta, tb, alpha, a, b, beta, c);
}

void CudaBackend::BroadcastRow(const float* row, Matrix out) {
  const Turn turn(*this);
  cuda::BroadcastRow(context_, row, out);
}

void CudaBackend::AddColumnSums(ConstMatrix x, float* sums) {
  const Turn turn(*this);
  cuda::AddColumnSums(context_, x, sums);
}

void CudaBackend::Add(int64_t n, const float* x, float* y) {
  const Turn turn(*this);
  cuda::Add(context_, n, x, y);
}

double CudaBackend::SquareSum(int64_t n, const float* x) {
  const Turn turn(*this);
  return cuda::SquareSum(context_, n, x);
}

bool CudaBackend::AllFinite(ConstMatrix x) {
  const Turn turn(*this);
  return cuda::AllFinite(context_, x);
}

void CudaBackend::GatherRows(ConstMatrix x, std::span<const int32_t> index,
                             const float* scale, Matrix out) {
  const Turn turn(*this);
  cuda::GatherRows(context_, x, index, scale, out);
}

void CudaBackend::ScatterAddRows(ConstMatrix x, std::span<const int32_t> index,
                                 Matrix out) {
  const Turn turn(*this);
  cuda::ScatterAddRows(context_, x, index, out);
}

void CudaBackend::CombineRows(ConstMatrix x, std::span<const int32_t> offset,
                              std::span<const int32_t> position, const float* weight,
                              Matrix out) {
  const Turn turn(*this);
  cuda::CombineRows(context_, x, offset, position, weight, out);
}

void CudaBackend::SigmoidForward(ConstMatrix x, Matrix y) {
  const Turn turn(*this);
  cuda::SigmoidForward(context_, x, y);
}

void CudaBackend::SigmoidBackward(ConstMatrix y, ConstMatrix dy, Matrix dx) {
  const Turn turn(*this);
  cuda::SigmoidBackward(context_, y, dy, dx);
}

void CudaBackend::DropoutForward(RandomKey key, float rate, ConstMatrix x,
                                 ConstMatrix residual, Matrix y) {
  const Turn turn(*this);
  cuda::DropoutForward(context_, key, rate, x, residual, y);
}

void CudaBackend::DropoutBackward(RandomKey key, float rate, ConstMatrix dy, Matrix dx) {
  const Turn turn(*this);
  cuda::DropoutBackward(context_, key, rate, dy, dx);
}

void CudaBackend::LstmCellForward(Matrix gates, ConstMatrix c_prev, Matrix c,
                                  Matrix tanh_c, Matrix h) {
  const Turn turn(*this);
  cuda::LstmCellForward(context_, gates, c_prev, c, tanh_c, h);
}

void CudaBackend::LstmCellBackward(ConstMatrix gates, ConstMatrix c_prev,
                                   ConstMatrix tanh_c, ConstMatrix dh, Matrix dc,
                                   Matrix dgates) {
  const Turn turn(*this);
  cuda::LstmCellBackward(context_, gates, c_prev, tanh_c, dh, dc, dgates);
}

double CudaBackend::SoftmaxCrossEntropy(Matrix logits, std::span<const int32_t> target,
                                        float gradient_scale) {
  const Turn turn(*this);
  return cuda::SoftmaxCrossEntropy(context_, logits, target, gradient_scale);
}

void CudaBackend::LogSumExp(ConstMatrix x, float* largest, double* sum) {
  const Turn turn(*this);
  cuda::LogSumExp(context_, x, largest, sum);
}

void CudaBackend::LogSoftmax(Matrix x) {
  const Turn turn(*this);
  cuda::LogSoftmax(context_, x);
}

void CudaBackend::TargetLogits(ConstMatrix x, ConstMatrix w, const float* bias,
                               std::span<const int32_t> index,
                               std::span<const int32_t> hit, Matrix logits) {
  const Turn turn(*this);
  cuda::TargetLogits(context_, x, w, bias, index, hit, logits);
}

void CudaBackend::TargetLogitsBackward(ConstMatrix dlogits, ConstMatrix x, ConstMatrix w,
                                       std::span<const int32_t> index, Matrix dw,
                                       float* dbias, Matrix dx) {
  const Turn turn(*this);
  cuda::TargetLogitsBackward(context_, dlogits, x, w, index, dw, dbias, dx);
}

void CudaBackend::NoisyTopKForward(const GateBatch& batch) {
  const Turn turn(*this);
  cuda::NoisyTopKForward(context_, batch);
}

void CudaBackend::NoisyTopKBackward(const GateBatch& batch, const float* dgate,
                                    const float* dload, Matrix dclean, Matrix draw) {
  const Turn turn(*this);
  cuda::NoisyTopKBackward(context_, batch, dgate, dload, dclean, draw);
}

void CudaBackend::ChooseLargest(ConstMatrix x, int64_t m, RandomKey key,
                                uint8_t* chosen) {
  const Turn turn(*this);
  cuda::ChooseLargest(context_, x, m, key, chosen);
}

void CudaBackend::ChooseAbove(ConstMatrix x, const float* threshold,
                              std::span<const int32_t> target, uint8_t* chosen) {
  const Turn turn(*this);
  cuda::ChooseAbove(context_, x, threshold, target, chosen);
}

void CudaBackend::CountAbove(ConstMatrix x, const float* threshold, int32_t* count) {
  const Turn turn(*this);
  cuda::CountAbove(context_, x, threshold, count);
}

int64_t CudaBackend::CountChosen(int64_t tokens, int64_t n, const uint8_t* chosen,
                                 int32_t* offset) {
  const Turn turn(*this);
  return cuda::CountChosen(context_, tokens, n, chosen, offset);
}

void CudaBackend::ChosenSoftmaxForward(ConstMatrix x, const uint8_t* chosen,
                                       const int32_t* offset, int32_t* expert,
                                       float* gate) {
  const Turn turn(*this);
  cuda::ChosenSoftmaxForward(context_, x, chosen, offset, expert, gate);
}

void CudaBackend::ChosenSoftmaxBackward(const int32_t* offset, const int32_t* expert,
                                        const float* gate, const float* dgate,
                                        Matrix dx) {
  const Turn turn(*this);
  cuda::ChosenSoftmaxBackward(context_, offset, expert, gate, dgate, dx);
}

void CudaBackend::ExpertForward(std::span<const ExpertRows> experts, ConstMatrix x,
                                std::span<const Matrix> hidden, Matrix y) {
  const Turn turn(*this);
  cuda::ExpertForward(context_, experts, x, hidden, y);
}

void CudaBackend::ExpertBackward(std::span<const ExpertRows> experts, ConstMatrix x,
                                 ConstMatrix dy, const float* gate,
                                 std::span<const ConstMatrix> hidden, float* dgate,
                                 std::span<const Matrix> dhidden, Matrix dx) {
  const Turn turn(*this);
  cuda::ExpertBackward(context_, experts, x, dy, gate, hidden, dgate, dhidden, dx);
}

void CudaBackend::ExpertUpdates(std::span<const ExpertUpdate> updates, ConstMatrix x,
                                std::span<const ConstMatrix> hidden,
                                std::span<const ConstMatrix> dhidden,
                                ConstMatrix gated_dy) {
  const Turn turn(*this);
  cuda::ExpertUpdates(context_, updates, x, hidden, dhidden, gated_dy);
}

void CudaBackend::ExpertSquareSums(std::span<const ExpertRows> experts, ConstMatrix x,
                                   std::span<const ConstMatrix> hidden,
                                   std::span<const ConstMatrix> dhidden,
                                   ConstMatrix gated_dy, std::span<double> sums) {
  const Turn turn(*this);
  cuda::ExpertSquareSums(context_, experts, x, hidden, dhidden, gated_dy, sums);
}

void CudaBackend::OptimizerUpdate(const OptimizerStep& step, ConstMatrix g, float* w,
                                  float* m, float* v) {
  const Turn turn(*this);
  cuda::OptimizerUpdate(context_, step, g, w, m, v);
}

void CudaBackend::UpdateRows(const OptimizerStep& step, std::span<const int32_t> index,
                             std::span<const int64_t> count, ConstMatrix g, Matrix w,
                             Matrix m, Matrix v) {
  const Turn turn(*this);
  cuda::UpdateRows(context_, step, index, count, g, w, m, v);
}

}  // namespace moe::cuda

namespace moe {

std::unique_ptr<Backend> MakeCudaBackend(const CudaOptions& options, std::string* error) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    *error = std::string("CUDA finds no GPU: ") + cudaGetErrorString(status);
    return nullptr;
  }
  if (options.device < 0 || options.device >= count) {
    *error = "there is no GPU " + std::to_string(options.device) + ": this machine has " +
             std::to_string(count) + ", which are numbered from 0";
    return nullptr;
  }
  int major = 0;
  int pools = 0;
  cuda::CheckOk(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, options.device));
  cuda::CheckOk(
      cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, options.device));
  if (major < 8 || pools == 0) {
    *error = "GPU " + std::to_string(options.device) +
             " is too old: sm_80 (Ampere) or newer is needed";
    return nullptr;
  }
  if (options.threads > cuda::kMostThreads) {
    *error = "--threads is " + std::to_string(options.threads) + "; it must be at most " +
             std::to_string(cuda::kMostThreads);
    return nullptr;
  }
  return std::make_unique<cuda::CudaBackend>(options);
}

}  // namespace moe
