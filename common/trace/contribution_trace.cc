#include "common/trace/contribution_trace.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/string_view.h"

namespace moe {
namespace {

using Fields = std::vector<std::string>;

template <typename Number>
bool Parse(const std::string& field, Number* number) {
  uint64_t value = 0;
  if (!absl::SimpleAtoi(field, &value)) return false;
  *number = static_cast<Number>(value);
  return *number == value;
}

bool ParseHead(const Fields& f, TracePart* part) {
  if (f.size() < 10) return false;
  part->server = f[2];
  part->job = absl::StrJoin(f.begin() + 9, f.end(), " ");
  return Parse(f[1], &part->generation) && Parse(f[3], &part->incarnation) &&
         Parse(f[4], &part->start_step) && Parse(f[5], &part->replicas) &&
         Parse(f[6], &part->waves) && Parse(f[7], &part->clips) &&
         Parse(f[8], &part->job_shards);
}

bool ParseLine(const Fields& f, std::vector<TracePart>* parts) {
  if (f[0] == "G") return ParseHead(f, &parts->emplace_back());
  if (parts->empty() || f[0].size() != 1) return false;
  TracePart& part = parts->back();
  switch (f[0][0]) {
    case 'M': {
      TraceMixture& mixture = part.mixtures.emplace_back();
      return f.size() == 4 && Parse(f[1], &mixture.layer) &&
             Parse(f[2], &mixture.mixture) && Parse(f[3], &mixture.calls);
    }
    case 'H':
      if (f.size() != 2 && (f.size() != 3 || f[2] != "2")) return false;
      part.shards.push_back(f[1]);
      if (f.size() == 3) part.copied.insert(f[1]);
      return true;
    case 'R':
    case 'I':
    case 'K':
    case 'A': {
      if (f.size() != 5) return false;
      TraceRecord& record = part.records.emplace_back();
      record.event = static_cast<TraceEvent>(f[0][0]);
      record.what = f[3];
      return Parse(f[1], &record.generation) && Parse(f[2], &record.step) &&
             Parse(f[4], &record.incarnation);
    }
    case 'V': {
      TraceRecord& record = part.records.emplace_back();
      record.event = TraceEvent::kStepTaken;
      return f.size() == 3 && Parse(f[1], &record.generation) &&
             Parse(f[2], &record.step);
    }
    default:
      return false;
  }
}

}  // namespace

std::string FrameName(std::string_view kind, uint32_t wave, uint32_t layer,
                      uint32_t mixture, uint32_t call, uint32_t replica) {
  return absl::StrCat(ToAbsl(kind), "/wave", wave, "/layer", layer, "/mixture", mixture,
                      "/call", call, "/replica", replica);
}

std::string NodeName(std::string_view kind, std::string_view shard, uint32_t level,
                     uint32_t index) {
  return absl::StrCat(ToAbsl(kind), "/", ToAbsl(shard), "@", level, ".", index);
}

std::string StateName(std::string_view shard) {
  return absl::StrCat("state/", ToAbsl(shard));
}

std::string ReplicaName(std::string_view kind, uint32_t replica) {
  return absl::StrCat(ToAbsl(kind), "/replica", replica);
}

std::string TraceHead(const TracePart& part) {
  std::string head =
      absl::StrCat("G ", part.generation, " ", part.server, " ", part.incarnation, " ",
                   part.start_step, " ", part.replicas, " ", part.waves, " ",
                   part.clips ? 1 : 0, " ", part.job_shards, " ", part.job, "\n");
  for (const TraceMixture& mixture : part.mixtures) {
    absl::StrAppend(&head, "M ", mixture.layer, " ", mixture.mixture, " ", mixture.calls,
                    "\n");
  }
  for (const std::string& shard : part.shards) {
    absl::StrAppend(&head, "H ", shard, part.copied.contains(shard) ? " 2\n" : "\n");
  }
  return head;
}

std::string TraceLine(const TraceRecord& record) {
  const char event[] = {static_cast<char>(record.event), '\0'};
  std::string line = absl::StrCat(event, " ", record.generation, " ", record.step);
  if (record.event != TraceEvent::kStepTaken) {
    absl::StrAppend(&line, " ", record.what, " ", record.incarnation);
  }
  line += '\n';
  return line;
}

absl::StatusOr<std::vector<TracePart>> ParseTrace(std::string_view text) {
  std::vector<TracePart> parts;
  size_t number = 0;
  while (true) {
    const size_t end = text.find('\n');
    if (end == text.npos) return parts;
    const std::string line(text.substr(0, end));
    text.remove_prefix(end + 1);
    ++number;
    if (!ParseLine(absl::StrSplit(line, ' '), &parts)) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": \"", line, "\" is no line of a trace"));
    }
  }
}

}  // namespace moe
