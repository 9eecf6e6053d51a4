// The change over to other members at the end of a step, with the shards as that step left them:
//   planned    the layout is fixed; servers fetch in advance what will come to them
//   ready      they have; workers are asked to stop after a step
//   stopped    all workers have: the next generation can begin
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "server/coordinator/layout.h"
#include "server/coordinator/member_table.h"

namespace moe {

// The addresses as a state has them.
void AddAddresses(const Layout& layout,
                  google::protobuf::RepeatedPtrField<v1::ServerAddress>* servers);

// Not thread-safe.
class Handover {
 public:
  // A generation begins: nothing is planned, nobody has stopped.
  void Begin();

  void Plan(Layout next, const Layout& present);
  void Cancel();
  bool planned() const { return next_.has_value(); }
  const Layout& next() const { return *next_; }
  // Of the placement that is planned; 0: none.
  uint64_t version() const { return planned() ? version_ : 0; }
  // What servers are told; planned.
  v1::Upcoming Message(const Layout& present) const;
  // Whether each server has fetched what it could; planned.
  bool Ready(const MemberTable& members) const;

  // The worker has stopped after so many steps.
  void AddStopped(const std::string& worker, uint64_t steps, absl::Time now);
  // After how many steps all of these workers have; none if they haven't.
  std::optional<uint64_t> AllStopped(const std::vector<std::string>& workers) const;
  // After how many steps some of them have stopped and the others haven't, for so long; none if there
  // is no such case. A worker that had no answer to its report doesn't know that it should, and the
  // others' wait would be in vain.
  std::optional<uint64_t> StoppedInVain(const std::vector<std::string>& workers,
                                        absl::Time now) const;
  // They may go on.
  void GoOn(uint64_t steps);
  bool MayGoOn(uint64_t steps) const { return steps <= gone_on_; }

 private:
  std::optional<Layout> next_;
  // Of every plan another, since the servers must not take one for another.
  uint64_t version_ = 1;
  // That get shards.
  std::set<std::string> receivers_;
  struct Stopped {
    std::set<std::string> workers;
    absl::Time since = absl::InfiniteFuture();
  };
  std::map<uint64_t, Stopped> stopped_;  // by steps
  uint64_t gone_on_ = 0;
};

}  // namespace moe
