#include "server/rendezvous.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moe {

std::string Describe(RendezvousKind kind, const RendezvousKey& key) {
  switch (kind) {
    case RendezvousKind::kClose:
      return absl::StrCat("close step ", key.step);
    case RendezvousKind::kApply:
      return absl::StrCat("apply step ", key.step);
    case RendezvousKind::kForward:
    case RendezvousKind::kBackward:
      break;
  }
  const char* pass = kind == RendezvousKind::kForward ? "forward" : "backward";
  const char* step = key.mode == v1::MODE_EVALUATE ? " evaluation " : " step ";
  return absl::StrCat(
      pass, step, key.step, " wave ", key.wave, " layer ", key.layer,
      key.mixture == kRecurrentMixture ? absl::StrCat(" time step ", key.call) : "");
}

std::string Describe(const Waiting& waiting, std::span<const std::string> worker_of) {
  std::map<std::string, std::vector<uint32_t>> missing;
  for (uint32_t r : waiting.missing) missing[worker_of[r]].push_back(r);
  const std::string whom =
      absl::StrJoin(missing, ", ", [](std::string* out, const auto& of_worker) {
        const auto& [worker, replicas] = of_worker;
        absl::StrAppend(out, replicas.size() == 1 ? "replica " : "replicas ",
                        absl::StrJoin(replicas, ","), " (", worker, ")");
      });
  return absl::StrCat(whom, " in ", waiting.what);
}

}  // namespace moe
