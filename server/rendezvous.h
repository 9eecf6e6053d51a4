// Joins what all R replicas send for one thing: the frames of a mixture's call in a wave, or
// the closes of a step. Knows who is missing, and keeps replies for those who ask again.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/job/mixtures.h"
#include "proto/moe/v1/expert.pb.h"
#include "server/reply_sink.h"

namespace moe {

struct RendezvousKey {
  v1::Mode mode = v1::MODE_TRAIN;
  uint64_t step = 0;
  // Frames only.
  uint32_t wave = 0;
  uint32_t layer = 0;
  uint32_t mixture = 0;
  uint32_t call = 0;

  MixtureId mixture_id() const { return {layer, mixture}; }
  friend auto operator<=>(const RendezvousKey&, const RendezvousKey&) = default;
};

enum class RendezvousKind { kForward, kBackward, kClose, kApply };

// "forward step 17 wave 0 layer 1", of a recurrent mixture "... time step 3"; "close step 17"
std::string Describe(RendezvousKind kind, const RendezvousKey& key);

// Something that isn't complete yet.
struct Waiting {
  absl::Time since;
  std::vector<uint32_t> missing;
  // Describe().
  std::string what;
};
// Whether the part of some replicas has come before, and if so whether it got its answer once more.
enum class Again { kNo, kWaits, kAnswered };
// "replicas 2,3 (worker/w1) in forward step 17 wave 0 layer 1"; worker_of: [R].
std::string Describe(const Waiting& waiting, std::span<const std::string> worker_of);

// All of one kind, by key. Not thread-safe.
template <typename Part>
class Rendezvous {
 public:
  // [R]. Replicas that came in one message share a part.
  using Parts = std::vector<std::shared_ptr<const Part>>;
  using Response = std::shared_ptr<const v1::ExchangeResponse>;

  Rendezvous(RendezvousKind kind, uint32_t replicas) : kind_(kind), replicas_(replicas) {}

  RendezvousKind kind() const { return kind_; }

  // If the part of these replicas (ascending) has come before it needs no more attention,
  // and `sink` is answered now or later. INVALID_ARGUMENT if only that of some has come.
  absl::StatusOr<Again> AnswerAgain(const RendezvousKey& key,
                                    std::span<const uint32_t> replicas,
                                    const std::shared_ptr<ReplySink>& sink) {
    const auto it = entries_.find(key);
    if (it == entries_.end()) return Again::kNo;
    Entry& entry = it->second;
    const size_t come = std::count_if(replicas.begin(), replicas.end(),
                                      [&](uint32_t r) { return entry.come[r]; });
    if (come == 0) return Again::kNo;
    if (come < replicas.size()) {
      return absl::InvalidArgumentError(
          Describe(kind_, key) +
          ": comes again for some of its replicas and first for others");
    }
    for (Caller& caller : entry.callers) {
      if (!std::equal(replicas.begin(), replicas.end(), caller.replicas.begin(),
                      caller.replicas.end())) {
        continue;
      }
      if (caller.response != nullptr) {
        sink->Send(caller.response);
        return Again::kAnswered;
      }
      caller.sink = sink;
      return Again::kWaits;
    }
    return absl::InvalidArgumentError(Describe(kind_, key) +
                                      ": comes again with other replicas");
  }

  // Whether this replica's part has come.
  bool Has(const RendezvousKey& key, uint32_t replica) const {
    const auto it = entries_.find(key);
    return it != entries_.end() && it->second.come[replica];
  }

  // Adds what AnswerAgain did not know; parts[i] is of replicas[i]. All parts when the
  // last has come.
  std::optional<Parts> Add(const RendezvousKey& key, std::span<const uint32_t> replicas,
                           std::span<const std::shared_ptr<const Part>> parts,
                           std::shared_ptr<ReplySink> sink, absl::Time now) {
    Entry& entry = entries_[key];
    if (entry.parts.empty()) {
      entry.since = now;
      entry.parts.resize(replicas_);
      entry.come.resize(replicas_);
    }
    for (size_t i = 0; i < replicas.size(); ++i) {
      entry.parts[replicas[i]] = parts[i];
      entry.come[replicas[i]] = true;
    }
    entry.callers.push_back(
        {std::move(sink), {replicas.begin(), replicas.end()}, /*response=*/nullptr});
    if (std::find(entry.come.begin(), entry.come.end(), false) != entry.come.end()) {
      return std::nullopt;
    }
    entry.complete = true;
    return std::move(entry.parts);
  }

  // Answers everyone, and keeps the answers until Forget. make: the response for some
  // replicas.
  void Finish(const RendezvousKey& key,
              const std::function<Response(std::span<const uint32_t>)>& make) {
    const auto it = entries_.find(key);
    if (it == entries_.end()) return;
    for (Caller& caller : it->second.callers) {
      caller.response = make(caller.replicas);
      caller.sink->Send(caller.response);
      caller.sink = nullptr;
    }
  }

  // A part of this rendezvous that came already, if any.
  const Part* AnyPart(const RendezvousKey& key) const {
    const auto it = entries_.find(key);
    if (it == entries_.end()) return nullptr;
    for (const auto& part : it->second.parts) {
      if (part != nullptr) return part.get();
    }
    return nullptr;
  }

  void Forget(const std::function<bool(const RendezvousKey&)>& which) {
    std::erase_if(entries_, [&](const auto& entry) { return which(entry.first); });
  }

  // The one that has waited longest.
  std::optional<Waiting> Oldest() const {
    std::optional<Waiting> oldest;
    for (const auto& [key, entry] : entries_) {
      if (entry.complete || (oldest.has_value() && oldest->since <= entry.since))
        continue;
      oldest.emplace();
      oldest->since = entry.since;
      oldest->what = Describe(kind_, key);
      for (uint32_t r = 0; r < replicas_; ++r) {
        if (!entry.come[r]) oldest->missing.push_back(r);
      }
    }
    return oldest;
  }

 private:
  struct Caller {
    std::shared_ptr<ReplySink> sink;  // until it is answered
    std::vector<uint32_t> replicas;
    Response response;
  };
  struct Entry {
    absl::Time since;
    Parts parts;             // [R] until complete
    std::vector<bool> come;  // [R]
    bool complete = false;
    std::vector<Caller> callers;
  };

  const RendezvousKind kind_;
  const uint32_t replicas_;
  std::map<RendezvousKey, Entry> entries_;
};

}  // namespace moe
