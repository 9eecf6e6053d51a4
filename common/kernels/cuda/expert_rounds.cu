#include <bit>

#include "common/kernels/cuda/elements.h"
#include "common/kernels/cuda/expert_rounds.h"

namespace moe::cuda {
namespace {

struct Widening {
  const Bfloat16* from;
  float* to;
  int64_t size;
};

constexpr unsigned kThreads = 256;
constexpr unsigned kParts = 64;  // blocks that share a matrix

__global__ void WidenKernel(const Widening* all) {
  const Widening one = all[blockIdx.x];
  for (int64_t i = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
       i < one.size; i += static_cast<int64_t>(gridDim.y) * blockDim.x) {
    one.to[i] = std::bit_cast<float>(static_cast<uint32_t>(one.from[i].bits) << 16);
  }
}

}  // namespace

std::vector<size_t> WithRows(std::span<const ExpertRows> experts) {
  std::vector<size_t> which;
  for (size_t i = 0; i < experts.size(); ++i) {
    if (experts[i].rows > 0) which.push_back(i);
  }
  return which;
}

int64_t CachedBytes(const Context& context, const ExpertRows& expert,
                    std::span<const Shape> shapes) {
  int64_t bytes = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const void* const w =
        expert.w16.empty() ? static_cast<const void*>(expert.w[i]) : expert.w16[i];
    if (context.memory->Has(w)) continue;
    bytes += shapes[i].size() * (expert.w16.empty() ? sizeof(float) : sizeof(Bfloat16));
  }
  return bytes;
}

int64_t FloatBytes(const ExpertRows& expert, std::span<const Shape> shapes) {
  int64_t bytes = 0;
  if (expert.w16.empty()) return bytes;
  for (const Shape& shape : shapes) bytes += shape.size() * sizeof(float);
  return bytes;
}

RoundWeights::RoundWeights(const Context& context, std::span<const ExpertRows> experts,
                           std::span<const size_t> which, std::span<const Shape> shapes)
    : shapes_(shapes.begin(), shapes.end()) {
  const auto on_device = [&](const auto* w, int64_t size) {
    if (context.memory->Has(w)) return w;
    return static_cast<decltype(w)>(
        context.experts->Get(w, size * sizeof(*w), /*keep=*/true));
  };
  std::vector<Widening> widenings;
  for (size_t e : which) {
    for (size_t i = 0; i < shapes_.size(); ++i) {
      const int64_t size = shapes_[i].size();
      if (size == 0) {
        pointers_.push_back(nullptr);
        continue;
      }
      if (experts[e].w16.empty()) {
        const float* const w = experts[e].w[i];
        pointers_.push_back(on_device(w, size));
        continue;
      }
      const Bfloat16* const w16 = experts[e].w16[i];
      float* const floats = floats_.emplace_back(context, size).data();
      widenings.push_back({on_device(w16, size), floats, size});
      pointers_.push_back(floats);
    }
  }
  context.experts->Ready();
  if (widenings.empty()) return;
  const OnDevice<Widening> list(context, widenings);
  Launch(context, WidenKernel, dim3(static_cast<unsigned>(widenings.size()), kParts),
         kThreads, list.data());
}

}  // namespace moe::cuda
