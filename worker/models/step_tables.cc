#include "worker/models/step_tables.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "glog/logging.h"

namespace moe {
namespace {

template <typename T>
std::vector<float> Downloaded(const T& memory) {
  std::vector<float> host(memory.size());
  memory.Download(host);
  return host;
}

}  // namespace

std::vector<int32_t> DistinctWords(std::vector<int32_t> words) {
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  if (!words.empty() && words.front() < 0) words.erase(words.begin());
  return words;
}

int32_t PlaceOf(std::span<const int32_t> words, int32_t word) {
  const auto at = std::lower_bound(words.begin(), words.end(), word);
  CHECK(at != words.end() && *at == word) << word;
  return static_cast<int32_t>(at - words.begin());
}

TableGradients ZeroGradients(Backend& backend, const StepTables& tables, int64_t d) {
  const auto rows = [](const TableRows& table) {
    return static_cast<int64_t>(table.words.size());
  };
  TableGradients gradients;
  gradients.input = Tensor(backend, rows(tables.input), d);
  gradients.candidate_w = Tensor(backend, rows(tables.candidates->rows), d);
  gradients.candidate_b = Array<float>(backend, rows(tables.candidates->rows));
  gradients.target_w = Tensor(backend, rows(tables.target), d);
  gradients.target_b = Array<float>(backend, rows(tables.target));
  gradients.input.Zero();
  gradients.candidate_w.Zero();
  gradients.candidate_b.Zero();
  gradients.target_w.Zero();
  gradients.target_b.Zero();
  return gradients;
}

SparseRows EmbeddingGradients(const StepTables& tables, const TableGradients& gradients) {
  const std::vector<int32_t>& words = tables.input.words;
  return {std::vector<uint32_t>(words.begin(), words.end()), Downloaded(gradients.input)};
}

SparseRows SoftmaxGradients(const StepTables& tables, const TableGradients& gradients) {
  const int64_t d = gradients.candidate_w.cols();
  // w and b of each row side by side, rows in the order of `words`.
  const auto joined = [&](const std::vector<int32_t>& words, const Tensor& w,
                          const Array<float>& b) {
    const std::vector<float> of_w = Downloaded(w);
    const std::vector<float> of_b = Downloaded(b);
    std::vector<size_t> order(words.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](size_t i, size_t j) { return words[i] < words[j]; });
    SparseRows rows;
    rows.value.reserve(words.size() * (d + 1));
    for (const size_t i : order) {
      rows.row.push_back(static_cast<uint32_t>(words[i]));
      const auto from = of_w.begin() + static_cast<int64_t>(i) * d;
      rows.value.insert(rows.value.end(), from, from + d);
      rows.value.push_back(of_b[i]);
    }
    return rows;
  };
  SparseRows sum =
      joined(tables.candidates->rows.words, gradients.candidate_w, gradients.candidate_b);
  AddSum(joined(tables.target.words, gradients.target_w, gradients.target_b), &sum);
  return sum;
}

}  // namespace moe
