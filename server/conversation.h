// What the replicas of a generation have said to a server so far, and whether what one of
// them says next may come now (expert.proto). Checks change nothing.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/moments.h"
#include "proto/moe/v1/expert.pb.h"
#include "server/frames.h"
#include "server/rendezvous.h"
#include "server/shard_set.h"

namespace moe {

class Conversation {
 public:
  using Forwards = Rendezvous<ForwardInput>;
  using Backwards = Rendezvous<BackwardInput>;
  using Closes = Rendezvous<CloseInput>;
  using Applies = Rendezvous<v1::ApplyRequest>;
  // One for each of some replicas.
  template <typename Part>
  using NewParts = std::vector<std::shared_ptr<const Part>>;

  struct Options {
    // Member id of this server.
    std::string server;
    uint64_t generation = 0;
    // Steps taken.
    uint64_t version = 0;
    uint32_t waves = 1;
    // [R]: member id of each replica's worker.
    std::vector<std::string> worker_of;
  };

  // shards outlives the conversation, which uses what is constant of them.
  Conversation(const ShardSet& shards, Options options);

  const Options& options() const { return options_; }
  uint64_t version() const { return version_; }
  std::vector<uint32_t> ReplicasOf(const std::string& worker) const;

  Forwards& forward() { return forward_; }
  Backwards& backward() { return backward_; }
  Closes& close() { return close_; }
  Applies& apply() { return apply_; }

  // ---- what is wrong at any time
  // That the replicas exist, ascend, and are the worker's.
  absl::Status CheckReplicas(const std::string& worker,
                             std::span<const uint32_t> replicas) const;
  // That the frame's mixture is here and its call, wave and mode exist.
  absl::StatusOr<const LayerShape*> CheckFrame(const v1::FrameId& id) const;

  // ---- what may come now; of replicas that CheckReplicas let pass
  absl::Status CheckForward(const RendezvousKey& key,
                            std::span<const uint32_t> replicas) const;
  absl::Status CheckBackward(const RendezvousKey& key,
                             std::span<const uint32_t> replicas) const;
  absl::Status CheckClose(uint64_t step, std::span<const uint32_t> replicas) const;
  absl::Status CheckApply(uint64_t step) const;
  // That it is the present version.
  absl::Status CheckVersion(uint64_t version) const;
  // Whether it is of an evaluation batch for which nobody waits any more.
  bool Over(const RendezvousKey& key) const {
    return key.mode == v1::MODE_EVALUATE && key.step < evaluation_;
  }

  // ---- whether new parts agree with what others sent; takes note of them
  void SettleRows(const RendezvousKey& key, std::span<const uint32_t> replicas,
                  const NewParts<ForwardInput>& parts);
  // [R] of the forward frames; after CheckBackward.
  const std::vector<int64_t>& RowsOf(const RendezvousKey& key) const {
    return forward_rows_.at(key);
  }
  absl::Status SettleMoments(MixtureId mixture, std::span<const uint32_t> replicas,
                             const NewParts<BackwardInput>& parts);
  absl::Status SettleClose(uint64_t step, const CloseInput& mine) const;
  absl::Status SettleScale(uint64_t step, double scale) const;

  // ---- progress
  // The frames' replies, of all replicas.
  void ForwardDone(const RendezvousKey& key, std::span<const v1::ForwardReply> replies);
  // The closed step's square sums are formed; from here on its scale is welcome.
  void AwaitScale(uint64_t step) { awaits_scale_ = step; }
  // The step in progress is over, and the version is the next.
  void Advance();
  // What has waited longest for parts that are missing.
  std::optional<Waiting> Oldest() const;
  // Whose closes of the step in progress are missing.
  std::vector<uint32_t> NotClosed() const;

 private:
  // A hierarchical mixture in the step in progress, from the last wave's replies on.
  struct Balance {
    // Of the experts that are here.
    Spread importance;
    Spread load;
    uint64_t tokens = 0;
    // Of the whole mixture; the first ones that came.
    std::optional<BalanceMoments> moments;
  };

  absl::Status CheckStep(uint64_t step) const;
  absl::Status CheckNotClosed(uint64_t step, std::span<const uint32_t> replicas) const;
  absl::Status CheckEvaluation(uint64_t batch, std::span<const uint32_t> replicas) const;
  // The frames of a pass, all mixtures that are here.
  std::vector<RendezvousKey> KeysOf(v1::Mode mode, uint64_t step) const;

  const ShardSet& shards_;
  const Options options_;
  const uint32_t replicas_;

  uint64_t version_;
  Forwards forward_;
  Backwards backward_;
  Closes close_;
  Applies apply_;
  // Rows of the forward frames of the step in progress, [R] each.
  std::map<RendezvousKey, std::vector<int64_t>> forward_rows_;
  std::map<MixtureId, Balance> balance_;
  // The step that awaits its scale.
  std::optional<uint64_t> awaits_scale_;
  // The newest evaluation batch of which a frame has been answered; 0 also before.
  uint64_t evaluation_ = 0;
};

}  // namespace moe
