// Copies on the device of matrices that lie in the host's memory, up to a budget: what was used last
// stays, the rest streams by.
//
// The host's memory is always up to date: whoever changes a matrix on the device writes it back in the
// same operation. Whoever changes it on the host says so with Forget (Backend::Upload, Copy and Zero
// do).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "common/kernels/cuda/memory.h"

namespace moe::cuda {

// One thread at a time. Used in rounds: Begin; Get for every matrix; Ready; the kernels that use them; End.
// The copies of the next round cross while this one's kernels run.
class ExpertCache {
 public:
  // compute: the stream of the kernels; outlives the object.
  ExpertCache(cudaStream_t compute, int64_t budget_bytes);
  ~ExpertCache();
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  int64_t budget() const { return budget_; }
  // Bytes of a round's matrices that leave room for the next round's.
  int64_t round_bytes() const { return budget_ / 2; }
  // Of all copies.
  int64_t bytes() const { return bytes_; }
  int64_t hits() const { return hits_; }

  void Begin();
  // Where the copy is, for this round's kernels; with keep for later rounds too, if there is room. A round
  // that takes more than the budget gets it all the same.
  void* Get(const void* host, size_t bytes, bool keep);
  void Ready();
  void End();

  // The host's memory from here on is changed, or free.
  void Forget(const void* host, size_t bytes);

 private:
  struct Copy {
    char* device = nullptr;
    size_t bytes = 0;
    int64_t round = 0;  // that used it last
    bool keep = false;
  };
  using Copies = std::map<const char*, Copy>;

  // The oldest that this round doesn't use, until so many more bytes fit.
  void MakeRoom(size_t bytes);
  Copies::iterator Drop(Copies::iterator it);

  const cudaStream_t compute_;
  const int64_t budget_;
  cudaStream_t copy_ = nullptr;
  cudaEvent_t copied_ = nullptr;
  // Recorded at the end of even and of odd rounds.
  cudaEvent_t done_[2];
  // Null until the first copy.
  std::unique_ptr<UploadRing> uploads_;
  Copies copies_;  // by host address
  std::multimap<int64_t, const char*> by_round_;
  int64_t bytes_ = 0;
  int64_t hits_ = 0;
  int64_t round_ = 0;
};

}  // namespace moe::cuda
