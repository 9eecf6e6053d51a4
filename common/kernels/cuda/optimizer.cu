#include <algorithm>
#include <bit>
#include <cmath>

#include "common/kernels/cuda/block.h"
#include "common/kernels/cuda/elements.h"
#include "common/kernels/cuda/optimizer.h"
#include "common/random/element.h"

namespace moe::cuda {
namespace {

constexpr unsigned kThreads = 256;
// Blocks that share a matrix, at most.
constexpr int64_t kParts = 256;
// Columns that are a block's share of a row.
constexpr int64_t kShare = 4096;
// Columns whose rounding comes from one block of random words.
constexpr int64_t kRounded = 8;

// A matrix's update with its constants worked out.
struct Task {
  MatrixState state;
  bool adam;
  SecondMoment second_moment;
  float scale;
  float rate;            // of SGD
  float corrected_rate;  // rate / (1 - beta1^count)
  float beta1;
  float beta2;
  float root_correction;  // 1 / sqrt(1 - beta2^count)
  float epsilon;
  RandomKey rounding;
  // Of a factored second moment: [cols] square roots of the corrected C, and 1 / mean(R), or 0.
  float* col_roots;
  double* inverse_mean;

  __host__ __device__ bool takes_means() const {
    return adam && second_moment != SecondMoment::kFull;
  }
  __host__ __device__ bool factored() const {
    return adam && second_moment == SecondMoment::kFactored;
  }
};

Task MakeTask(const OptimizerStep& step, const MatrixState& state) {
  Task task = {};
  task.state = state;
  task.adam = step.kind == OptimizerStep::Kind::kAdam;
  task.second_moment = step.second_moment;
  task.scale = step.gradient_scale;
  task.rate = step.adam.rate;
  task.beta1 = step.adam.beta1;
  task.beta2 = step.adam.beta2;
  task.epsilon = step.adam.epsilon;
  task.rounding = step.rounding;
  const double count = static_cast<double>(step.adam.count);
  Check(!task.adam || count >= 1, "updates count from 1");
  task.corrected_rate = static_cast<float>(
      task.rate / (1 - std::pow(static_cast<double>(task.beta1), count)));
  task.root_correction = static_cast<float>(
      1 / std::sqrt(1 - std::pow(static_cast<double>(task.beta2), count)));
  Check((state.w == nullptr) != (state.w16 == nullptr) || state.gradient.size() == 0,
        "parameters of one type");
  const bool adam = task.adam && state.gradient.size() > 0;
  Check(!adam || state.v != nullptr, "a second moment");
  Check(!adam || task.beta1 == 0 || state.m != nullptr, "a first moment");
  return task;
}

__device__ float Average(const Task& task, float before, double square) {
  return fmaf(task.beta2, before, (1 - task.beta2) * static_cast<float>(square));
}

// v[row]: the new averages of the rows' mean squares. A block has rows blockIdx.y, + gridDim.y, ...
__global__ void RowMeansKernel(const Task* tasks) {
  const Task task = tasks[blockIdx.x];
  if (!task.takes_means()) return;
  const ConstView g = task.state.gradient;
  for (int64_t r = blockIdx.y; r < g.rows; r += gridDim.y) {
    const float* const row = g.row(r);
    double sum = 0;
    for (int64_t c = threadIdx.x; c < g.cols; c += blockDim.x) {
      const double value = row[c];
      sum = fma(value, value, sum);
    }
    sum = BlockSum(sum) * (static_cast<double>(task.scale) * task.scale);
    if (threadIdx.x == 0) {
      float& v = task.state.v[r];
      v = Average(task, v, sum / static_cast<double>(g.cols));
    }
  }
}

// v[rows + column] likewise, and its square root. A thread has a column, its rows in order.
__global__ void ColumnMeansKernel(const Task* tasks) {
  const Task task = tasks[blockIdx.x];
  if (!task.factored()) return;
  const ConstView g = task.state.gradient;
  const double scale = static_cast<double>(task.scale) * task.scale;
  for (int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
       c < g.cols; c += static_cast<int64_t>(gridDim.y) * blockDim.x) {
    double sum = 0;
    for (int64_t r = 0; r < g.rows; ++r) {
      const double value = g.row(r)[c];
      sum = fma(value, value, sum);
    }
    float& v = task.state.v[g.rows + c];
    v = Average(task, v, scale * sum / static_cast<double>(g.rows));
    task.col_roots[c] = sqrtf(v) * task.root_correction;
  }
}

__global__ void InverseMeanKernel(const Task* tasks) {
  const Task task = tasks[blockIdx.x];
  if (!task.factored()) return;
  const int64_t rows = task.state.gradient.rows;
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) sum += task.state.v[r];
  sum = BlockSum(sum);
  if (threadIdx.x == 0) {
    *task.inverse_mean = sum > 0 ? static_cast<double>(rows) / sum : 0;
  }
}

__device__ float LoadWeight(const MatrixState& state, int64_t i) {
  return state.w != nullptr
             ? state.w[i]
             : std::bit_cast<float>(static_cast<uint32_t>(state.w16[i].bits) << 16);
}

// half: 16 random bits, which round a bf16 number (backend.h).
__device__ void StoreWeight(const MatrixState& state, int64_t i, float value,
                            uint32_t half) {
  if (state.w != nullptr) {
    state.w[i] = value;
    return;
  }
  uint32_t bits = std::bit_cast<uint32_t>(value);
  // A carry would make a number of NaN.
  if (value == value) bits += half;
  state.w16[i].bits = static_cast<uint16_t>(bits >> 16);
}

__device__ void UpdateElement(const Task& task, int64_t r, int64_t c, float row_root,
                              uint32_t half) {
  const MatrixState& state = task.state;
  const int64_t i = r * state.gradient.cols + c;
  const float gradient = task.scale * state.gradient.row(r)[c];
  const float before = LoadWeight(state, i);
  if (!task.adam) {
    StoreWeight(state, i, fmaf(-task.rate, gradient, before), half);
    return;
  }
  float mean = gradient;
  if (task.beta1 != 0) {
    mean = fmaf(task.beta1, state.m[i], (1 - task.beta1) * gradient);
    state.m[i] = mean;
  }
  float denominator;
  if (task.second_moment == SecondMoment::kFull) {
    const float square =
        fmaf(task.beta2, state.v[i], (1 - task.beta2) * (gradient * gradient));
    state.v[i] = square;
    denominator = fmaf(sqrtf(square), task.root_correction, task.epsilon);
  } else if (task.second_moment == SecondMoment::kFactored) {
    denominator = fmaf(row_root, task.col_roots[c], task.epsilon);
  } else {
    denominator = fmaf(row_root, task.root_correction, task.epsilon);
  }
  StoreWeight(state, i, before - task.corrected_rate * mean / denominator, half);
}

// A block has shares blockIdx.y, + gridDim.y, ... of the matrix, a share being kShare columns of a row.
__global__ void ApplyKernel(const Task* tasks) {
  const Task task = tasks[blockIdx.x];
  const ConstView g = task.state.gradient;
  const int64_t of_row = (g.cols + kShare - 1) / kShare;
  for (int64_t share = blockIdx.y; share < g.rows * of_row; share += gridDim.y) {
    const int64_t r = share / of_row;
    const int64_t begin = share % of_row * kShare;
    const int64_t end = begin + kShare < g.cols ? begin + kShare : g.cols;
    float row_root = 0;
    if (task.factored()) {
      row_root = static_cast<float>(sqrt(task.state.v[r] * *task.inverse_mean));
    } else if (task.takes_means()) {
      row_root = sqrtf(task.state.v[r]);
    }
    if (task.state.w != nullptr) {
      for (int64_t c = begin + threadIdx.x; c < end; c += blockDim.x) {
        UpdateElement(task, r, c, row_root, 0);
      }
      continue;
    }
    for (int64_t first = begin + kRounded * threadIdx.x; first < end;
         first += kRounded * blockDim.x) {
      const std::array<uint32_t, 4> bits =
          BlockOfBits(task.rounding, r, first / kRounded);
      for (int64_t c = first; c < first + kRounded && c < end; ++c) {
        const uint32_t word = bits[(c - first) / 2];
        UpdateElement(task, r, c, row_root, c % 2 == 0 ? word & 0xFFFF : word >> 16);
      }
    }
  }
}

}  // namespace

void UpdateMatrices(const Context& context, std::span<const OptimizerStep> steps,
                    std::span<const MatrixState> states) {
  Check(steps.size() == states.size(), "a step for each matrix");
  std::vector<Task> tasks;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t shares = 0;
  int64_t roots = 0;
  bool means = false;
  bool factored = false;
  for (size_t i = 0; i < steps.size(); ++i) {
    const ConstView& g = states[i].gradient;
    if (g.size() == 0) continue;
    const Task& task = tasks.emplace_back(MakeTask(steps[i], states[i]));
    rows = std::max(rows, g.rows);
    cols = std::max(cols, g.cols);
    shares = std::max(shares, g.rows * ((g.cols + kShare - 1) / kShare));
    means = means || task.takes_means();
    factored = factored || task.factored();
    if (task.factored()) roots += g.cols;
  }
  if (tasks.empty()) return;
  const Scratch<float> col_roots(context, roots);
  const Scratch<double> inverse_means(context, static_cast<int64_t>(tasks.size()));
  float* next = col_roots.data();
  for (size_t i = 0; i < tasks.size(); ++i) {
    tasks[i].inverse_mean = inverse_means.data() + i;
    if (!tasks[i].factored()) continue;
    tasks[i].col_roots = next;
    next += tasks[i].state.gradient.cols;
  }
  const OnDevice<Task> on_device(context, tasks);
  const auto count = static_cast<unsigned>(tasks.size());
  const auto parts = [](int64_t n) { return static_cast<unsigned>(std::min(n, kParts)); };
  if (means) {
    Launch(context, RowMeansKernel, dim3(count, parts(rows)), kThreads, on_device.data());
  }
  if (factored) {
    Launch(context, ColumnMeansKernel, dim3(count, parts(BlocksFor(cols, kThreads))),
           kThreads, on_device.data());
    Launch(context, InverseMeanKernel, dim3(count), kThreads, on_device.data());
  }
  Launch(context, ApplyKernel, dim3(count, parts(shares)), kThreads, on_device.data());
}

void OptimizerUpdate(const Context& context, const OptimizerStep& step, ConstMatrix g,
                     float* w, float* m, float* v) {
  Check(g.contiguous(), "a gradient without gaps");
  const MatrixState state{.gradient = g, .w = w, .m = m, .v = v};
  UpdateMatrices(context, {&step, 1}, {&state, 1});
}

void UpdateRows(const Context& context, const OptimizerStep& step,
                std::span<const int32_t> index, std::span<const int64_t> count,
                ConstMatrix g, Matrix w, Matrix m, Matrix v) {
  Check(static_cast<int64_t>(index.size()) == g.rows && count.size() == index.size(),
        "an index and a count for each row");
  Check(g.cols == w.cols, "equal columns");
  Check(step.second_moment != SecondMoment::kFactored, "no factored moment of a row");
  const auto row = [](const Matrix& moment, int64_t r) {
    return moment.data == nullptr ? nullptr : moment.row(r);
  };
  std::vector<OptimizerStep> steps(index.size(), step);
  std::vector<MatrixState> states;
  for (size_t i = 0; i < index.size(); ++i) {
    Check(index[i] >= 0 && index[i] < w.rows, "0 <= index < rows");
    Check(i == 0 || index[i - 1] < index[i], "ascending indices");
    steps[i].adam.count = count[i];
    const int64_t r = index[i];
    states.push_back({.gradient = g.Rows(static_cast<int64_t>(i), 1),
                      .w = w.row(r),
                      .m = row(m, r),
                      .v = row(v, r)});
  }
  UpdateMatrices(context, steps, states);
}

}  // namespace moe::cuda
