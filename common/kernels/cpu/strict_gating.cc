#include "common/kernels/cpu/strict_gating.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "common/kernels/cpu/check.h"
#include "common/kernels/cpu/simd.h"
#include "common/kernels/cpu/thread_pool.h"

namespace moe::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements
constexpr int64_t kColumnPanel = 256;

// Integers in the order of the numbers; NaN is the largest, -0 and 0 are one.
__m256i OrderOf(Vec x) {
  const __m256i bits = _mm256_castps_si256(_mm256_add_ps(x, _mm256_setzero_ps()));
  const __m256i flipped =
      _mm256_xor_si256(bits, _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1));
  const Vec nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(flipped,
                            _mm256_set1_epi32(std::numeric_limits<int32_t>::max()),
                            _mm256_castps_si256(nan));
}

unsigned BitsOf(__m256i mask) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(mask)));
}

bool None(__m256i mask) { return _mm256_testz_si256(mask, mask) != 0; }

// Eight columns at a time, one in each lane.
class ColumnChooser {
 public:
  ColumnChooser(const Context& context, ConstMatrix x, int64_t m, RandomKey key,
                uint8_t* chosen)
      : x_(x),
        m_(m),
        key_(key),
        chosen_(chosen),
        order_(context.scratch, x.rows * kLanes) {}

  // Columns [8 block, 8 block + 8).
  void Run(int64_t block) {
    const int64_t columns = std::min(kLanes, x_.cols - block * kLanes);
    Load(block, columns);
    const __m256i bar = FindBar();
    const __m256i tied = TiedLanes(bar);
    // All above the bar, and those on it too unless there are too many of them.
    const __m256i below =
        _mm256_add_epi32(bar, _mm256_andnot_si256(tied, _mm256_set1_epi32(-1)));
    const unsigned valid = (1u << columns) - 1;
    const int64_t bytes = ChosenBytes(x_.cols);
    for (int64_t t = 0; t < x_.rows; ++t) {
      chosen_[t * bytes + block] =
          static_cast<uint8_t>(BitsOf(_mm256_cmpgt_epi32(Order(t), below)) & valid);
    }
    alignas(32) int32_t bars[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(bars), bar);
    for (unsigned bits = BitsOf(tied) & valid; bits != 0; bits &= bits - 1) {
      const int lane = std::countr_zero(bits);
      ChooseTied(block, lane, bars[lane]);
    }
  }

 private:
  __m256i Order(int64_t t) const {
    return _mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(order_.data() + t * kLanes));
  }

  void Load(int64_t block, int64_t columns) {
    const auto load = [&](auto lanes) {
      for (int64_t t = 0; t < x_.rows; ++t) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(order_.data() + t * kLanes),
                            OrderOf(lanes.Load(x_.row(t) + block * kLanes)));
      }
    };
    if (columns == kLanes) {
      load(AllLanes{});
    } else {
      load(FirstLanes(columns));
    }
  }

  // In each lane the number of tokens whose order is at least `bar`.
  __m256i CountFrom(__m256i bar) const {
    __m256i below = _mm256_setzero_si256();
    for (int64_t t = 0; t < x_.rows; ++t) {
      below = _mm256_sub_epi32(below, _mm256_cmpgt_epi32(bar, Order(t)));
    }
    return _mm256_sub_epi32(_mm256_set1_epi32(static_cast<int>(x_.rows)), below);
  }

  // A bar that exactly m tokens reach, or, where ties allow none, the highest that more than m
  // reach. By bisection: about log2 of the range over the gap to the next token's.
  __m256i FindBar() const {
    __m256i low = Order(0);
    __m256i high = low;
    for (int64_t t = 1; t < x_.rows; ++t) {
      low = _mm256_min_epi32(low, Order(t));
      high = _mm256_max_epi32(high, Order(t));
    }
    const __m256i m = _mm256_set1_epi32(static_cast<int>(m_));
    const __m256i one = _mm256_set1_epi32(1);
    // At least m tokens reach `low`; fewer reach high + 1.
    while (true) {
      const __m256i range = _mm256_sub_epi32(high, low);  // unsigned
      const __m256i open = _mm256_xor_si256(
          _mm256_cmpeq_epi32(range, _mm256_setzero_si256()), _mm256_set1_epi32(-1));
      if (None(open)) return low;
      const __m256i half =
          _mm256_add_epi32(_mm256_srli_epi32(range, 1), _mm256_and_si256(range, one));
      const __m256i middle = _mm256_add_epi32(low, half);
      const __m256i count = CountFrom(middle);
      const __m256i too_few = _mm256_cmpgt_epi32(m, count);
      const __m256i exact = _mm256_cmpeq_epi32(m, count);
      low = _mm256_blendv_epi8(low, middle, _mm256_andnot_si256(too_few, open));
      high = _mm256_blendv_epi8(high, _mm256_sub_epi32(middle, one),
                                _mm256_and_si256(too_few, open));
      high = _mm256_blendv_epi8(high, middle, _mm256_and_si256(exact, open));
    }
  }

  __m256i TiedLanes(__m256i bar) const {
    return _mm256_cmpgt_epi32(CountFrom(bar), _mm256_set1_epi32(static_cast<int>(m_)));
  }

  // Fills one column up to m with tokens on the bar.
  void ChooseTied(int64_t block, int lane, int32_t bar) {
    std::vector<uint64_t> tied;  // the random bits above the token
    int64_t missing = m_;
    for (int64_t t = 0; t < x_.rows; ++t) {
      const int32_t order = order_[t * kLanes + lane];
      if (order > bar) --missing;
      if (order != bar) continue;
      const uint64_t bits = Bits(key_, t, block * kLanes + lane);
      tied.push_back(bits << 32 | static_cast<uint64_t>(t));
    }
    std::nth_element(tied.begin(), tied.begin() + missing, tied.end());
    for (int64_t j = 0; j < missing; ++j) {
      const int64_t t = static_cast<uint32_t>(tied[j]);
      chosen_[t * ChosenBytes(x_.cols) + block] |= static_cast<uint8_t>(1u << lane);
    }
  }

  const ConstMatrix x_;
  const int64_t m_;
  const RandomKey key_;
  uint8_t* const chosen_;
  const Scratch<int32_t> order_;  // [T, 8]
};

// x > threshold, or NaN.
Vec Above(Vec x, Vec threshold) { return _mm256_cmp_ps(x, threshold, _CMP_NLE_UQ); }

}  // namespace

void ChooseLargest(const Context& context, ConstMatrix x, int64_t m, RandomKey key,
                   uint8_t* chosen) {
  Check(m >= 0 && m <= x.rows, "0 <= m <= T");
  Check(x.rows <= std::numeric_limits<int32_t>::max(), "tokens fit in 32 bits");
  // Of eight columns, a byte of each token's choices.
  const int64_t blocks = ChosenBytes(x.cols);
  if (m == 0) {
    std::fill_n(chosen, x.rows * blocks, uint8_t{0});
    return;
  }
  ForRanges(context.parallel, blocks, kGrain / (x.rows * kLanes) + 1,
            [&](int64_t begin, int64_t end) {
              ColumnChooser chooser(context, x, m, key, chosen);
              for (int64_t block = begin; block < end; ++block) chooser.Run(block);
            });
}

void ChooseAbove(const Context& context, ConstMatrix x, const float* threshold,
                 std::span<const int32_t> target, uint8_t* chosen) {
  Check(static_cast<int64_t>(target.size()) == x.rows, "a target for each row");
  const int64_t bytes = ChosenBytes(x.cols);
  ForRanges(context.parallel, x.rows, kGrain / (x.cols + 1) + 1,
            [&](int64_t begin, int64_t end) {
              for (int64_t t = begin; t < end; ++t) {
                uint8_t* row = chosen + t * bytes;
                if (target[t] < 0) {
                  std::fill_n(row, bytes, uint8_t{0});
                  continue;
                }
                const float* from = x.row(t);
                ForLanes(x.cols, [&](auto lanes, int64_t i) {
                  row[i / kLanes] = static_cast<uint8_t>(_mm256_movemask_ps(
                      Above(lanes.Load(from + i), lanes.Load(threshold + i))));
                });
              }
            });
}

void CountAbove(const Context& context, ConstMatrix x, const float* threshold,
                int32_t* count) {
  ForRanges(context.parallel, x.cols, kColumnPanel, [&](int64_t begin, int64_t end) {
    alignas(32) int32_t panel[kColumnPanel] = {};
    for (int64_t t = 0; t < x.rows; ++t) {
      const float* row = x.row(t) + begin;
      ForLanes(end - begin, [&](auto lanes, int64_t i) {
        __m256i* to = reinterpret_cast<__m256i*>(panel + i);
        const Vec above = Above(lanes.Load(row + i), lanes.Load(threshold + begin + i));
        _mm256_store_si256(
            to, _mm256_sub_epi32(_mm256_load_si256(to), _mm256_castps_si256(above)));
      });
    }
    std::copy_n(panel, end - begin, count + begin);
  });
}

}  // namespace moe::cpu
