// Memory for the hidden activations of a server's experts. What it has no room for is computed
// again when it is needed (appendix D): the same function on the same rows, hence the same
// bits. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

namespace moe {

class ActivationBudget {
 public:
  // 0: no limit.
  explicit ActivationBudget(int64_t bytes) : limit_(bytes) {}

  // Whether so many more may be kept; counts them then.
  bool Take(int64_t bytes) {
    const int64_t before = kept_.fetch_add(bytes);
    if (limit_ == 0 || before + bytes <= limit_) return true;
    kept_ -= bytes;
    return false;
  }
  void Return(int64_t bytes) { kept_ -= bytes; }

 private:
  const int64_t limit_;
  std::atomic<int64_t> kept_ = 0;
};

}  // namespace moe
