// Experts whose matrices and moments lie in the host's memory have the bits of those on the device.
#include <cstring>

#include "common/tensor/bfloat16.h"
#include "tests/kernels/kernel_test.h"

namespace moe {
namespace {

using HostExpertsTest = KernelTest;

constexpr int64_t kInput = 20, kHidden = 36;
constexpr int64_t kWeights = kInput * kHidden;
constexpr size_t kMatrices = 2;
const std::vector<int64_t> kRows = {3, 0, 17, 1, 9, 40};

// Weights and moments of all experts in blocks of one kind of memory.
template <typename Weight>
struct Memory {
  // host: in the host's memory, else in the backend's.
  Memory(Backend& backend, bool host) : backend(backend) {
    const auto block = [&](size_t bytes) -> char* {
      if (!host) return on_device.emplace_back(backend, bytes).data();
      return on_host.emplace_back(bytes).data();
    };
    for (size_t i = 0; i < kRows.size() * kMatrices; ++i) {
      w.push_back(reinterpret_cast<Weight*>(block(kWeights * sizeof(Weight))));
      for (std::vector<float*>* moment : {&m, &v}) {
        moment->push_back(reinterpret_cast<float*>(block(kWeights * sizeof(float))));
        backend.Zero(moment->back(), kWeights * sizeof(float));
      }
    }
  }
  void SetWeights(size_t i, const HostMatrix& values) {
    std::vector<Weight> converted;
    for (float value : values.values) {
      if constexpr (std::is_same_v<Weight, float>) {
        converted.push_back(value);
      } else {
        converted.push_back(ToBfloat16(value));
      }
    }
    backend.Upload(converted.data(), w[i], kWeights * sizeof(Weight));
  }
  ExpertRows Expert(size_t e, int64_t begin) const {
    ExpertRows expert;
    expert.begin = begin;
    expert.rows = kRows[e];
    const auto of_expert = std::span(w).subspan(e * kMatrices, kMatrices);
    if constexpr (std::is_same_v<Weight, float>) {
      expert.w = of_expert;
    } else {
      expert.w16 = of_expert;
    }
    return expert;
  }
  template <typename T>
  std::vector<char> Bytes(const T* memory) const {
    std::vector<char> bytes(kWeights * sizeof(T));
    backend.Download(memory, bytes.data(), bytes.size());
    return bytes;
  }

  Backend& backend;
  std::vector<Array<char>> on_device;
  std::vector<std::vector<char>> on_host;
  std::vector<Weight*> w;
  std::vector<float*> m, v;
};

// What one step gives: y, dgate, dx, the square sums, and all weights and moments after it.
template <typename Weight>
std::vector<std::vector<char>> Step(Backend& backend, Memory<Weight>& memory,
                                    SecondMoment second_moment, int64_t count) {
  Random random(count);
  std::vector<ExpertRows> experts;
  int64_t total = 0;
  for (size_t e = 0; e < kRows.size(); ++e) {
    experts.push_back(memory.Expert(e, total));
    total += kRows[e];
  }
  const DeviceMatrix x(backend, random.Normal(total, kInput));
  const DeviceMatrix dy(backend, random.Normal(total, kInput));
  const DeviceMatrix gate(backend, random.Normal(1, total));
  const DeviceMatrix hidden(backend, total, kHidden), dhidden(backend, total, kHidden);
  const DeviceMatrix y(backend, total, kInput), dx(backend, total, kInput);
  const DeviceMatrix dgate(backend, 1, total);
  const Matrix hidden_out[] = {hidden.view()}, dhidden_out[] = {dhidden.view()};
  const ConstMatrix hidden_in[] = {hidden.view()}, dhidden_in[] = {dhidden.view()};
  backend.ExpertForward(experts, x.view(), hidden_out, y.view());
  backend.ExpertBackward(experts, ConstMatrix(), dy.view(), gate.data(), hidden_in,
                         dgate.data(), dhidden_out, dx.view());
  OptimizerStep step;
  step.kind = OptimizerStep::Kind::kAdam;
  step.second_moment = second_moment;
  step.adam.rate = 0.01f;
  step.adam.beta1 = second_moment == SecondMoment::kFull ? 0.9f : 0;
  step.adam.count = count;
  step.rounding = {7, static_cast<uint32_t>(count)};
  const std::vector<OptimizerStep> steps(kMatrices, step);
  std::vector<ExpertUpdate> updates;
  for (size_t e = 0; e < kRows.size(); ++e) {
    ExpertUpdate& update = updates.emplace_back();
    update.expert = experts[e];
    update.m = std::span(memory.m).subspan(e * kMatrices, kMatrices);
    update.v = std::span(memory.v).subspan(e * kMatrices, kMatrices);
    update.steps = steps;
  }
  std::vector<double> sums(kMatrices * kRows.size());
  backend.ExpertSquareSums(experts, x.view(), hidden_in, dhidden_in, dy.view(), sums);
  backend.ExpertUpdates(updates, x.view(), hidden_in, dhidden_in, dy.view());

  std::vector<std::vector<char>> results;
  const auto keep = [&](const auto& values) {
    const char* const bytes = reinterpret_cast<const char*>(values.data());
    results.emplace_back(bytes, bytes + values.size() * sizeof(values[0]));
  };
  for (const DeviceMatrix* matrix : {&y, &dgate, &dx}) keep(matrix->Get().values);
  keep(sums);
  for (size_t i = 0; i < memory.w.size(); ++i) {
    results.push_back(memory.Bytes(memory.w[i]));
    results.push_back(memory.Bytes(memory.m[i]));
    results.push_back(memory.Bytes(memory.v[i]));
  }
  return results;
}

template <typename Weight>
void CompareKindsOfMemory(Backend& backend) {
  for (SecondMoment kind :
       {SecondMoment::kFull, SecondMoment::kFactored, SecondMoment::kPerRow}) {
    Memory<Weight> device(backend, false), host(backend, true);
    Random random(99);
    for (size_t i = 0; i < device.w.size(); ++i) {
      const HostMatrix values = random.Normal(1, kWeights, 0.2f);
      device.SetWeights(i, values);
      host.SetWeights(i, values);
    }
    for (int64_t count = 1; count <= 4; ++count) {
      const auto expected = Step(backend, device, kind, count);
      const auto got = Step(backend, host, kind, count);
      ASSERT_EQ(expected.size(), got.size());
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(expected[i], got[i]) << "result " << i << " of step " << count;
      }
      // What is changed from outside between two steps counts.
      const HostMatrix values = random.Normal(1, kWeights, 0.2f);
      device.SetWeights(5, values);
      host.SetWeights(5, values);
      for (Memory<Weight>* memory : {&device, &host}) {
        backend.Zero(memory->v[8], kWeights * sizeof(float));
        backend.Copy(memory->w[5], memory->w[1], kWeights * sizeof(Weight));
      }
    }
  }
}

TEST_P(HostExpertsTest, Floats) { CompareKindsOfMemory<float>(backend()); }
TEST_P(HostExpertsTest, Bfloat16) { CompareKindsOfMemory<Bfloat16>(backend()); }

INSTANTIATE_TEST_SUITE_P(Devices, HostExpertsTest, testing::ValuesIn(Devices()),
                         DeviceName);

}  // namespace
}  // namespace moe
