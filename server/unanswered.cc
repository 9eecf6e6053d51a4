#include "server/unanswered.h"

#include "server/refusal.h"

namespace moe {
namespace {

// What a stream that broke may have left, and what is sent again on the next one.
constexpr int64_t kMoreAgain = 4;

}  // namespace

absl::Status Unanswered::Add(uint64_t sequence, bool again, int64_t most,
                             const std::string& worker, const char* what) {
  std::multiset<uint64_t>& sequences = again ? again_ : first_;
  const auto count = static_cast<int64_t>(sequences.size());
  if (count >= (again ? kMoreAgain * most : most)) {
    return Untimely(worker, " has ", count, " ", what,
                    " without an answer already; the next must wait for one");
  }
  sequences.insert(sequence);
  return absl::OkStatus();
}

void Unanswered::Remove(uint64_t sequence, bool again) {
  std::multiset<uint64_t>& sequences = again ? again_ : first_;
  sequences.erase(sequences.find(sequence));
}

}  // namespace moe
