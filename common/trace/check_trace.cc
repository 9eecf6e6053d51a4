#include "common/trace/check_trace.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"

namespace moe {
namespace {

template <typename... Parts>
absl::Status Wrong(const Parts&... parts) {
  return absl::DataLossError(absl::StrCat(parts...));
}

// One server's part in a generation, record by record.
class PartCheck {
 public:
  PartCheck(const std::string& file, const TracePart& part, TraceSummary* summary)
      : file_(file), part_(part), summary_(*summary), version_(part.start_step) {
    for (uint32_t r = 0; r < part.replicas; ++r) {
      expected_.insert(ReplicaName("close", r));
      if (part.clips) expected_.insert(ReplicaName("scale", r));
      for (const TraceMixture& m : part.mixtures) {
        for (uint32_t wave = 0; wave < part.waves; ++wave) {
          for (uint32_t call = 0; call < m.calls; ++call) {
            for (const char* kind : {"forward", "backward"}) {
              expected_.insert(FrameName(kind, wave, m.layer, m.mixture, call, r));
            }
          }
        }
      }
    }
    for (const std::string& shard : part.shards) {
      if (absl::StartsWith(shard, "replica/")) expected_.insert(StateName(shard));
      if (absl::StartsWith(shard, "dense/")) trees_.insert("gradient/" + shard);
      if (absl::StartsWith(shard, "embedding/") || absl::StartsWith(shard, "softmax/")) {
        trees_.insert("rows/" + shard);
      }
    }
  }

  // end: steps below it count. may_end_early: others have them, too.
  absl::Status Run(uint64_t end, bool may_end_early) {
    for (const TraceRecord& record : part_.records) {
      if (record.generation != part_.generation) {
        return Wrong(Where(record), " is of generation ", record.generation);
      }
      switch (record.event) {
        case TraceEvent::kReceived:
          RETURN_IF_ERROR(Receive(record));
          break;
        case TraceEvent::kApplied:
          RETURN_IF_ERROR(Apply(record));
          break;
        case TraceEvent::kIgnored:
        case TraceEvent::kAnswered:
          RETURN_IF_ERROR(Again(record));
          break;
        case TraceEvent::kStepTaken:
          RETURN_IF_ERROR(Take(record, end));
          break;
      }
    }
    if (version_ < end && !may_end_early) {
      return Wrong(Where(), " step ", version_, " was not taken, though steps below ",
                   end, " count: the trace ends too early");
    }
    return absl::OkStatus();
  }

 private:
  // Replicas that a node's name covers.
  struct Covered {
    std::string tree;  // "gradient/dense/0"
    uint64_t first = 0;
    uint64_t last = 0;
  };

  std::string Where() const {
    return absl::StrCat(file_, ": ", part_.server, " in generation ", part_.generation,
                        ":");
  }
  std::string Where(const TraceRecord& record) const {
    return absl::StrCat(Where(), " step ", record.step, " ", record.what);
  }

  absl::Status CheckStep(const TraceRecord& record, const char* what) const {
    if (record.step == version_) return absl::OkStatus();
    return Wrong(Where(record), " was ", what, " while step ", version_,
                 " was in progress");
  }

  absl::Status Receive(const TraceRecord& record) {
    RETURN_IF_ERROR(CheckStep(record, "received"));
    if (received_.emplace(record.what, record.incarnation).second) {
      return absl::OkStatus();
    }
    return Wrong(Where(record), " was received twice as if for the first time");
  }

  absl::Status Again(const TraceRecord& record) {
    (record.event == TraceEvent::kIgnored ? summary_.ignored : summary_.answered) += 1;
    if (record.step < version_) return absl::OkStatus();
    RETURN_IF_ERROR(CheckStep(record, "received again"));
    return CheckSender(record, "came again");
  }

  absl::Status CheckSender(const TraceRecord& record, const char* what) const {
    const auto received = received_.find(record.what);
    if (received == received_.end()) {
      return Wrong(Where(record), " ", what, " but was never received");
    }
    if (received->second == record.incarnation) return absl::OkStatus();
    return Wrong(Where(record), " ", what, " from incarnation ", record.incarnation,
                 " but was received from incarnation ", received->second);
  }

  absl::Status Apply(const TraceRecord& record) {
    RETURN_IF_ERROR(CheckStep(record, "applied"));
    RETURN_IF_ERROR(CheckSender(record, "was applied"));
    if (applied_.insert(record.what).second) return absl::OkStatus();
    return Wrong(Where(record), " was applied twice");
  }

  absl::Status Take(const TraceRecord& record, uint64_t end) {
    if (record.step != version_) {
      return Wrong(Where(), " step ", record.step, " was taken while step ", version_,
                   " was in progress");
    }
    std::map<std::string, std::vector<Covered>> nodes;
    for (const std::string& what : applied_) {
      if (expected_.contains(what)) continue;
      const std::optional<Covered> covered = Parse(what);
      if (!covered.has_value() || !trees_.contains(covered->tree)) {
        return Wrong(Where(), " step ", version_, " ", what,
                     " was applied, which nothing here takes");
      }
      nodes[covered->tree].push_back(*covered);
    }
    for (const std::string& what : expected_) {
      if (!applied_.contains(what)) {
        return Wrong(Where(), " step ", version_, " ", what,
                     " is missing: the step was taken without it");
      }
    }
    for (const std::string& tree : trees_) RETURN_IF_ERROR(CheckTree(tree, nodes[tree]));
    if (version_ < end) {
      summary_.applied += applied_.size();
    } else {
      ++summary_.rolled_back;
    }
    ++version_;
    received_.clear();
    applied_.clear();
    return absl::OkStatus();
  }

  std::optional<Covered> Parse(const std::string& what) const {
    const std::vector<std::string> halves = absl::StrSplit(what, '@');
    if (halves.size() != 2) return std::nullopt;
    const std::vector<std::string> node = absl::StrSplit(halves[1], '.');
    uint64_t level = 0;
    uint64_t index = 0;
    if (node.size() != 2 || !absl::SimpleAtoi(node[0], &level) || level > 32 ||
        !absl::SimpleAtoi(node[1], &index) || index >= part_.replicas) {
      return std::nullopt;
    }
    const uint64_t end = std::min<uint64_t>((index + 1) << level, part_.replicas);
    return Covered{halves[0], index << level, end};
  }

  // That the nodes cover every replica once.
  absl::Status CheckTree(const std::string& tree, std::vector<Covered> nodes) const {
    std::sort(nodes.begin(), nodes.end(),
              [](const Covered& a, const Covered& b) { return a.first < b.first; });
    uint64_t next = 0;
    for (const Covered& node : nodes) {
      if (node.first > next) break;
      if (node.first < next) {
        return Wrong(Where(), " step ", version_, " ", tree, " of replica ", node.first,
                     " was applied twice");
      }
      next = node.last;
    }
    if (next >= part_.replicas) return absl::OkStatus();
    return Wrong(Where(), " step ", version_, " ", tree, " of replica ", next,
                 " is missing: the step was taken without it");
  }

  const std::string& file_;
  const TracePart& part_;
  TraceSummary& summary_;
  std::set<std::string> expected_;
  // Of each of these nodes that cover all replicas.
  std::set<std::string> trees_;

  uint64_t version_;
  // Of the step in progress; what was received has its sender's incarnation.
  std::map<std::string, uint64_t> received_;
  std::set<std::string> applied_;
};

struct Located {
  const TraceFile* file;
  const TracePart* part;
};

uint64_t Taken(const TracePart& part) {
  return part.start_step +
         std::count_if(part.records.begin(), part.records.end(), [](const auto& record) {
           return record.event == TraceEvent::kStepTaken;
         });
}

// Steps that each shard of a generation has taken, on the server that took most.
std::map<std::string, uint64_t> TakenByShard(const std::vector<Located>& parts) {
  std::map<std::string, uint64_t> taken;
  for (const auto& [file, part] : parts) {
    const uint64_t of_part = Taken(*part);
    for (const std::string& shard : part->shards) {
      uint64_t& most = taken[shard];
      most = std::max(most, of_part);
    }
  }
  return taken;
}

// That the servers of a generation agree, and have all shards, each once, or twice where it has copies.
absl::Status CheckServers(uint64_t generation, const std::vector<Located>& parts) {
  const TracePart& first = *parts[0].part;
  std::map<std::string, std::vector<const TracePart*>> hosts;
  for (const auto& [file, part] : parts) {
    if (part->start_step != first.start_step || part->job != first.job ||
        part->job_shards != first.job_shards || part->replicas != first.replicas) {
      return Wrong("generation ", generation, ": ", part->server, " (", file->name,
                   ") is of another job or begins at another step than ", first.server);
    }
    for (const std::string& shard : part->shards) {
      std::vector<const TracePart*>& there = hosts[shard];
      there.push_back(part);
      const bool copied = part->copied.contains(shard);
      if (there.size() == 1) continue;
      if (there.size() == 2 && copied && there[0]->copied.contains(shard)) continue;
      return Wrong("generation ", generation, ": shard ", shard, " is on ",
                   there[0]->server, " and on ", part->server);
    }
  }
  if (hosts.size() == first.job_shards) return absl::OkStatus();
  return Wrong("generation ", generation, ": of ", first.job_shards, " shards only ",
               hosts.size(), " are in the traces: a server's trace is missing");
}

}  // namespace

absl::StatusOr<TraceSummary> CheckTraces(const std::vector<TraceFile>& files,
                                         std::optional<uint64_t> end) {
  std::map<uint64_t, std::vector<Located>> generations;
  for (const TraceFile& file : files) {
    for (const TracePart& part : file.parts) {
      generations[part.generation].push_back({&file, &part});
    }
  }
  if (generations.empty()) {
    return absl::InvalidArgumentError("no generation is in the traces");
  }
  TraceSummary summary;
  summary.generations = generations.size();
  // From the last one back: where a later one goes on nothing of an earlier one counts.
  uint64_t limit = std::numeric_limits<uint64_t>::max();
  if (end.has_value()) limit = *end;
  for (auto it = generations.rbegin(); it != generations.rend(); ++it) {
    const auto& [generation, parts] = *it;
    uint64_t counts = limit;
    const std::map<std::string, uint64_t> taken = TakenByShard(parts);
    if (it == generations.rbegin() && !end.has_value()) {
      for (const auto& [shard, steps] : taken) counts = std::min(counts, steps);
    }
    if (it == generations.rbegin()) summary.end = counts;
    const uint64_t start = parts[0].part->start_step;
    // Of a generation of which nothing counts some servers may not know.
    if (counts > start) RETURN_IF_ERROR(CheckServers(generation, parts));
    for (const auto& [file, part] : parts) {
      const bool others_have = std::all_of(
          part->shards.begin(), part->shards.end(), [&](const std::string& shard) {
            return part->copied.contains(shard) && taken.at(shard) >= counts;
          });
      RETURN_IF_ERROR(PartCheck(file->name, *part, &summary).Run(counts, others_have));
    }
    limit = std::min(limit, start);
  }
  summary.begin = limit;
  return summary;
}

}  // namespace moe
