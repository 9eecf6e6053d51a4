#include <algorithm>

#include "common/kernels/cuda/elements.h"
#include "common/kernels/cuda/row_lists.h"
#include "common/kernels/cuda/rows.h"

namespace moe::cuda {
namespace {

void CheckIndices(std::span<const int32_t> index, int64_t rows) {
  for (int32_t i : index) Check(i >= 0 && i < rows, "0 <= index < rows");
}

struct GatherBody {
  ConstView x;
  const int32_t* index;
  const float* scale;
  View out;
  __device__ void operator()(int64_t r, int64_t c) const {
    const float value = x.row(index[r])[c];
    out.row(r)[c] = scale == nullptr ? value : scale[r] * value;
  }
};

struct ScatterAddBody {
  ConstView x;
  const int32_t* target;
  const int32_t* begin;
  const int32_t* place;
  View out;
  __device__ void operator()(int64_t list, int64_t c) const {
    float* const to = out.row(target[list]) + c;
    float sum = *to;
    for (int32_t j = begin[list]; j < begin[list + 1]; ++j) sum += x.row(place[j])[c];
    *to = sum;
  }
};

struct CombineBody {
  ConstView x;
  const int32_t* offset;
  const int32_t* position;
  const float* weight;
  View out;
  __device__ void operator()(int64_t r, int64_t c) const {
    float sum = 0;
    for (int32_t j = offset[r]; j < offset[r + 1]; ++j) {
      sum = fmaf(weight == nullptr ? 1.0f : weight[j], x.row(position[j])[c], sum);
    }
    out.row(r)[c] = sum;
  }
};

}  // namespace

RowLists::RowLists(std::span<const int32_t> index, int64_t rows) {
  // A stable counting sort.
  std::vector<int32_t> count(rows + 1);
  for (int32_t i : index) {
    if (i >= 0) ++count[i + 1];
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (count[r + 1] > 0) {
      target.push_back(static_cast<int32_t>(r));
      begin.push_back(count[r]);
    }
    count[r + 1] += count[r];
  }
  begin.push_back(count[rows]);
  place.resize(count[rows]);
  for (size_t at = 0; at < index.size(); ++at) {
    if (index[at] >= 0) place[count[index[at]]++] = static_cast<int32_t>(at);
  }
}

void GatherRows(const Context& context, ConstMatrix x, std::span<const int32_t> index,
                const float* scale, Matrix out) {
  Check(static_cast<int64_t>(index.size()) == out.rows, "an index for each row");
  Check(x.cols == out.cols, "equal columns");
  CheckIndices(index, x.rows);
  const OnDevice<int32_t> indices(context, index);
  ForEachElement(context, out.rows, out.cols, GatherBody{x, indices.data(), scale, out});
}

void ScatterAddRows(const Context& context, ConstMatrix x, std::span<const int32_t> index,
                    Matrix out) {
  Check(static_cast<int64_t>(index.size()) == x.rows, "an index for each row");
  Check(x.cols == out.cols, "equal columns");
  CheckIndices(index, out.rows);
  const RowLists lists(index, out.rows);
  const OnDevice<int32_t> target(context, lists.target), begin(context, lists.begin),
      place(context, lists.place);
  ForEachElement(context, static_cast<int64_t>(lists.target.size()), x.cols,
                 ScatterAddBody{x, target.data(), begin.data(), place.data(), out});
}

void CombineRows(const Context& context, ConstMatrix x, std::span<const int32_t> offset,
                 std::span<const int32_t> position, const float* weight, Matrix out) {
  Check(static_cast<int64_t>(offset.size()) == out.rows + 1, "rows + 1 offsets");
  Check(x.cols == out.cols, "equal columns");
  Check(offset.front() >= 0 && offset.back() <= static_cast<int64_t>(position.size()) &&
            std::is_sorted(offset.begin(), offset.end()),
        "ascending offsets within position");
  CheckIndices(position, x.rows);
  const OnDevice<int32_t> offsets(context, offset), positions(context, position);
  ForEachElement(context, out.rows, out.cols,
                 CombineBody{x, offsets.data(), positions.data(), weight, out});
}

}  // namespace moe::cuda
