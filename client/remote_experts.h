// ExpertClient over the servers of a cluster.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "client/expert_client.h"
#include "client/server_set.h"

namespace moe {

class RemoteExperts final : public ExpertClient {
 public:
  // servers must outlive the client.
  explicit RemoteExperts(ServerSet& servers) : servers_(servers) {}

  const ExpertLayout& layout(MixtureId mixture) const override;
  absl::Status SendForward(const v1::FrameId& id,
                           std::span<const ForwardCall> calls) override;
  absl::Status SendForwardAgain(const v1::FrameId& id,
                                std::span<const uint32_t> replicas) override;
  absl::Status AwaitForward(const v1::FrameId& id, std::span<const ForwardResult> results,
                            BalanceTotals* totals) override;
  absl::Status SendBackward(const v1::FrameId& id,
                            std::span<const BackwardCall> calls) override;
  absl::Status AwaitBackward(const v1::FrameId& id,
                             std::span<const BackwardResult> results) override;

 private:
  ServerSet& servers_;
};

}  // namespace moe
