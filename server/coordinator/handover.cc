#include "server/coordinator/handover.h"

#include <algorithm>
#include <utility>

#include "common/job/placement.h"

namespace moe {
namespace {

// Workers end a step together, and an evaluation that belongs to it.
constexpr absl::Duration kPatience = absl::Seconds(3);

}  // namespace

void AddAddresses(const Layout& layout,
                  google::protobuf::RepeatedPtrField<v1::ServerAddress>* servers) {
  for (const auto& [server, address] : layout.addresses) {
    v1::ServerAddress* const entry = servers->Add();
    entry->set_server(server);
    entry->set_address(address);
  }
}

void Handover::Begin() {
  Cancel();
  stopped_.clear();
  gone_on_ = 0;
}

void Handover::Plan(Layout next, const Layout& present) {
  next_ = std::move(next);
  next_->placement.set_version(++version_);
  receivers_.clear();
  for (int i = 0; i < next_->placement.shards_size(); ++i) {
    const std::vector<std::string> before = HostsOf(present.placement.shards(i));
    for (const std::string& server : HostsOf(next_->placement.shards(i))) {
      if (std::find(before.begin(), before.end(), server) == before.end()) {
        receivers_.insert(server);
      }
    }
  }
}

void Handover::Cancel() { next_.reset(); }

v1::Upcoming Handover::Message(const Layout& present) const {
  v1::Upcoming upcoming;
  *upcoming.mutable_job() = present.job;
  *upcoming.mutable_placement() = next_->placement;
  *upcoming.mutable_present() = present.placement;
  AddAddresses(present, upcoming.mutable_servers());
  return upcoming;
}

bool Handover::Ready(const MemberTable& members) const {
  return std::all_of(receivers_.begin(), receivers_.end(), [&](const std::string& id) {
    const MemberRecord* const member = members.Find(id);
    return member != nullptr && member->arrived == version_;
  });
}

std::optional<uint64_t> Handover::AllStopped(
    const std::vector<std::string>& workers) const {
  for (const auto& [steps, stopped] : stopped_) {
    const bool all = std::all_of(workers.begin(), workers.end(), [&](const auto& worker) {
      return stopped.workers.contains(worker);
    });
    if (all) return steps;
  }
  return std::nullopt;
}

void Handover::AddStopped(const std::string& worker, uint64_t steps, absl::Time now) {
  Stopped& stopped = stopped_[steps];
  stopped.workers.insert(worker);
  stopped.since = std::min(stopped.since, now);
}

std::optional<uint64_t> Handover::StoppedInVain(const std::vector<std::string>& workers,
                                                absl::Time now) const {
  if (AllStopped(workers).has_value()) return std::nullopt;
  for (const auto& [steps, stopped] : stopped_) {
    if (now - stopped.since >= kPatience) return steps;
  }
  return std::nullopt;
}

void Handover::GoOn(uint64_t steps) {
  gone_on_ = steps;
  stopped_.erase(steps);
}

}  // namespace moe
