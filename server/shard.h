// What every kind of shard can do, beside its part in a step. Engine thread only
// (engine.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/io/safetensors.h"
#include "common/job/model_plan.h"
#include "proto/moe/v1/checkpoint.pb.h"
#include "proto/moe/v1/status.pb.h"
#include "server/copy_budget.h"
#include "server/shard_cut.h"

namespace moe {

class Shard {
 public:
  virtual ~Shard() = default;

  virtual const ShardSpec& spec() const = 0;
  // The state before the first step.
  virtual void Initialize() = 0;
  // The state in a file that Write made; an error names the file and what doesn't fit, or
  // is CapacityTier::Allocate's.
  virtual absl::Status Restore(const SafetensorsFile& file) = 0;
  // The state as it is now, to be written by another thread while steps go on. The one before has
  // been written, or is void. The shard outlives it.
  virtual std::shared_ptr<ShardCut> BeginCut(CopyBudget& copies) = 0;
  // Of its parameters but the untouched ones, in logical order.
  virtual std::vector<v1::TensorDigest> Digests() const = 0;
  // Ascending.
  virtual std::vector<v1::UntouchedTensors> Untouched() const { return {}; }
  // All but the version.
  virtual void FillStatus(v1::ShardStatus* status) const = 0;

  // ---- the state in pieces, in which a shard moves from server to server
  virtual int64_t pieces() const = 0;
  // Differs whenever the piece does; 0: as Initialize leaves it.
  virtual uint64_t PieceVersion(int64_t piece) const = 0;
  virtual std::string Piece(int64_t piece) const = 0;
  // What PieceVersion and Piece said of another copy of the shard. INVALID_ARGUMENT, with the sizes, if
  // it isn't of that; else an error is CapacityTier::Allocate's.
  virtual absl::Status SetPiece(int64_t piece, uint64_t version,
                                std::string_view content) = 0;
};

// Of a piece that doesn't have the bytes that it should.
absl::Status WrongPiece(const ShardSpec& spec, int64_t piece, size_t bytes,
                        size_t expected);

}  // namespace moe
