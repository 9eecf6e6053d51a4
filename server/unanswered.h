// Which of a worker's requests of a kind have no answer yet, so that they stay few.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "absl/status/status.h"

namespace moe {

// Not thread-safe.
class Unanswered {
 public:
  // Whether the message with this sequence has no answer yet.
  bool Contains(uint64_t sequence) const {
    return first_.contains(sequence) || again_.contains(sequence);
  }
  // One more, if there are fewer than `most`; one that was handled before takes the place of none that
  // comes first, and there may be more of them. FAILED_PRECONDITION names the worker and says what it
  // asks for.
  absl::Status Add(uint64_t sequence, bool again, int64_t most, const std::string& worker,
                   const char* what);
  void Remove(uint64_t sequence, bool again);

 private:
  std::multiset<uint64_t> first_;
  std::multiset<uint64_t> again_;
};

}  // namespace moe
