#include "common/trace/check_trace.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kReplicas = 3;
constexpr uint32_t kWaves = 2;

// A server with everything that a job has, and one with a dense shard more.
TracePart Head(uint64_t generation, const std::string& server, uint64_t start) {
  TracePart part;
  part.generation = generation;
  part.server = server;
  part.incarnation = 7;
  part.start_step = start;
  part.replicas = kReplicas;
  part.waves = kWaves;
  part.clips = true;
  part.job_shards = 5;
  part.job = "small job";
  if (server == "server/s0") {
    part.mixtures = {{1, 0, 2}};
    part.shards = {"dense/0", "layer1/group0", "embedding/rows0", "replica/2"};
  } else {
    part.shards = {"dense/1"};
  }
  return part;
}

void Add(TracePart* part, TraceEvent event, uint64_t step, const std::string& what) {
  part->records.push_back({event, part->generation, step, what, 4});
}

// What a step needs, as workers with the replicas 0 and 1, and 2, send it.
std::vector<std::string> Contributions(const TracePart& part) {
  std::vector<std::string> all;
  for (const char* kind : {"forward", "backward"}) {
    for (const TraceMixture& m : part.mixtures) {
      for (uint32_t call = 0; call < m.calls; ++call) {
        for (uint32_t wave = 0; wave < kWaves; ++wave) {
          for (uint32_t r = 0; r < kReplicas; ++r) {
            all.push_back(FrameName(kind, wave, m.layer, m.mixture, call, r));
          }
        }
      }
    }
  }
  for (const std::string& shard : part.shards) {
    const std::string kind = shard.starts_with("dense/")       ? "gradient"
                             : shard.starts_with("embedding/") ? "rows"
                                                               : "";
    if (!kind.empty()) {
      all.push_back(NodeName(kind, shard, 1, 0));
      all.push_back(NodeName(kind, shard, 0, 2));
    }
    if (shard.starts_with("replica/")) all.push_back(StateName(shard));
  }
  for (const char* kind : {"close", "scale"}) {
    for (uint32_t r = 0; r < kReplicas; ++r) all.push_back(ReplicaName(kind, r));
  }
  return all;
}

void Take(TracePart* part, uint64_t step) {
  for (const TraceEvent event : {TraceEvent::kReceived, TraceEvent::kApplied}) {
    for (const std::string& what : Contributions(*part)) Add(part, event, step, what);
  }
  Add(part, TraceEvent::kStepTaken, step, "");
}

// Two servers; generation 1 takes the steps 0 to 4, 2 goes on at 3 and takes 3 to 5.
std::vector<TraceFile> Good() {
  std::vector<TraceFile> files;
  for (const std::string server : {"server/s0", "server/s1"}) {
    TraceFile& file = files.emplace_back();
    file.name = server.substr(7) + ".9.trace";
    file.parts.push_back(Head(1, server, 0));
    for (uint64_t step = 0; step < 5; ++step) Take(&file.parts[0], step);
    // A kill's tail.
    Add(&file.parts[0], TraceEvent::kReceived, 5, Contributions(file.parts[0])[0]);
    file.parts.push_back(Head(2, server, 3));
    for (uint64_t step = 3; step < 6; ++step) Take(&file.parts[1], step);
  }
  return files;
}

// After a way through the text.
absl::StatusOr<TraceSummary> Check(const std::vector<TraceFile>& files,
                                   std::optional<uint64_t> end = std::nullopt) {
  std::vector<TraceFile> read;
  for (const TraceFile& file : files) {
    std::string text;
    for (const TracePart& part : file.parts) {
      text += TraceHead(part);
      for (const TraceRecord& record : part.records) text += TraceLine(record);
    }
    absl::StatusOr<std::vector<TracePart>> parts = ParseTrace(text + "A 2 5 torn");
    if (!parts.ok()) return parts.status();
    read.push_back({file.name, *std::move(parts)});
  }
  return CheckTraces(read, end);
}

TEST(CheckTrace, CountsWhatCounts) {
  const auto summary = Check(Good(), 6);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->generations, 2u);
  EXPECT_EQ(summary->begin, 0u);
  EXPECT_EQ(summary->end, 6u);
  EXPECT_EQ(summary->rolled_back, 4u);
  const size_t a_step = Contributions(Head(1, "server/s0", 0)).size() +
                        Contributions(Head(1, "server/s1", 0)).size();
  EXPECT_EQ(summary->applied, 6 * a_step);
  EXPECT_EQ(Check(Good())->end, 6u);
}

TEST(CheckTrace, WhatComesAgainMayComeAtAnyTime) {
  std::vector<TraceFile> files = Good();
  TracePart& part = files[0].parts[1];
  Add(&part, TraceEvent::kIgnored, 4, Contributions(part)[3]);
  Add(&part, TraceEvent::kReceived, 6, Contributions(part)[0]);
  Add(&part, TraceEvent::kAnswered, 6, Contributions(part)[0]);
  const auto summary = Check(files);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->ignored, 1u);
  EXPECT_EQ(summary->answered, 1u);
}

struct Doctored {
  std::string name;
  std::string message;
  std::function<void(std::vector<TraceFile>*)> change;
};

// The place of a record of server/s0 in generation 2.
size_t Find(const TracePart& part, TraceEvent event, uint64_t step,
            const std::string& what) {
  for (size_t i = 0; i < part.records.size(); ++i) {
    const TraceRecord& record = part.records[i];
    if (record.event == event && record.step == step && record.what == what) return i;
  }
  ADD_FAILURE() << what << " isn't there";
  return 0;
}

std::vector<Doctored> AllDoctored() {
  static const std::string kFrame = FrameName("backward", 1, 1, 0, 1, 2);
  static const std::string kNode = NodeName("gradient", "dense/0", 0, 2);
  const auto erase = [](TraceEvent event, const std::string& what) {
    return [=](std::vector<TraceFile>* files) {
      TracePart& part = (*files)[0].parts[1];
      part.records.erase(part.records.begin() + Find(part, event, 4, what));
    };
  };
  const auto repeat = [](TraceEvent event, const std::string& what) {
    return [=](std::vector<TraceFile>* files) {
      TracePart& part = (*files)[0].parts[1];
      const size_t at = Find(part, event, 4, what);
      const TraceRecord record = part.records[at];
      part.records.insert(part.records.begin() + at, record);
    };
  };
  const auto applied = [](size_t file, size_t part, uint64_t generation, uint64_t step,
                          const std::string& what) {
    return [=](std::vector<TraceFile>* files) {
      std::vector<TraceRecord>& records = (*files)[file].parts[part].records;
      records.push_back({TraceEvent::kApplied, generation, step, what, 4});
    };
  };
  const std::string where = "s0.9.trace: server/s0 in generation 2: step 4 ";
  return {
      {"AppliedTwice", where + kFrame + " was applied twice",
       repeat(TraceEvent::kApplied, kFrame)},
      {"ReceivedTwice", where + kFrame + " was received twice",
       repeat(TraceEvent::kReceived, kFrame)},
      {"NotApplied", where + kFrame + " is missing: the step was taken without it",
       erase(TraceEvent::kApplied, kFrame)},
      {"NotReceived", where + kFrame + " was applied but was never received",
       erase(TraceEvent::kReceived, kFrame)},
      {"GradientNotApplied", where + "gradient/dense/0 of replica 2 is missing",
       erase(TraceEvent::kApplied, kNode)},
      {"GradientAppliedTwice", where + "gradient/dense/0 of replica 2 was applied twice",
       [](std::vector<TraceFile>* files) {
         TracePart& part = (*files)[0].parts[1];
         const size_t at = Find(part, TraceEvent::kApplied, 4, kNode);
         for (const TraceEvent event : {TraceEvent::kApplied, TraceEvent::kReceived}) {
           TraceRecord record = part.records[at];
           record.event = event;
           record.what = NodeName("gradient", "dense/0", 1, 1);
           part.records.insert(part.records.begin() + at, record);
         }
       }},
      {"StateNotApplied", where + "state/replica/2 is missing",
       erase(TraceEvent::kApplied, StateName("replica/2"))},
      {"ScaleNotApplied", where + "scale/replica1 is missing",
       erase(TraceEvent::kApplied, ReplicaName("scale", 1))},
      {"AppliedInAStaleGeneration",
       absl::StrCat("server/s0 in generation 2: step 6 ", kFrame, " is of generation 1"),
       applied(0, 1, 1, 6, kFrame)},
      {"AppliedAfterTheStep",
       absl::StrCat("step 4 ", kFrame, " was applied while step 6 was in progress"),
       applied(0, 1, 2, 4, kFrame)},
      {"StepTakenTwice", "server/s1 in generation 2: step 5 was taken while step 6",
       [](std::vector<TraceFile>* files) {
         Add(&(*files)[1].parts[1], TraceEvent::kStepTaken, 5, "");
       }},
      {"TraceEndsTooEarly", "server/s1 in generation 2: step 5 was not taken",
       [](std::vector<TraceFile>* files) { (*files)[1].parts[1].records.pop_back(); }},
      {"OtherSender",
       "was applied from incarnation 5 but was received from incarnation 4",
       [](std::vector<TraceFile>* files) {
         TracePart& part = (*files)[0].parts[1];
         part.records[Find(part, TraceEvent::kApplied, 4, kFrame)].incarnation = 5;
       }},
      {"TraceMissing", "generation 2: of 5 shards only 4 are in the traces",
       [](std::vector<TraceFile>* files) { files->pop_back(); }},
      {"ShardTwice", "generation 2: shard dense/1 is on server/s0 and on server/s1",
       [](std::vector<TraceFile>* files) {
         (*files)[0].parts[1].shards.push_back("dense/1");
       }},
  };
}

class DoctoredTrace : public ::testing::TestWithParam<Doctored> {};

TEST_P(DoctoredTrace, IsFoundOut) {
  std::vector<TraceFile> files = Good();
  GetParam().change(&files);
  const absl::Status status = Check(files, 6).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(All, DoctoredTrace, ::testing::ValuesIn(AllDoctored()),
                         [](const auto& info) { return info.param.name; });

// A generation that was opened and lost before anything of it counted.
TEST(CheckTrace, AGenerationWithoutStepsNeedsNoTraces) {
  std::vector<TraceFile> files = Good();
  files[0].parts.push_back(Head(3, "server/s0", 6));
  for (TraceFile& file : files) {
    TracePart last = Head(4, file.parts[0].server, 6);
    Take(&last, 6);
    file.parts.push_back(last);
  }
  const auto summary = Check(files, 7);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->generations, 4u);
}

TEST(CheckTrace, LinesThatMakeNoSenseAreNamed) {
  for (const char* line : {"A 1 2 forward", "Z 1 2 3 4", "A 1 x forward 3", ""}) {
    const absl::Status status =
        ParseTrace(absl::StrCat(TraceHead(Head(1, "server/s0", 0)), line, "\n")).status();
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat("line 7: \"", line, "\" is no line of a trace")));
  }
  EXPECT_FALSE(ParseTrace("A 1 2 forward 4\n").ok()) << "before any generation";
}

// Three servers, of which each has a copy of everything but the replica's state, of two of them; s2 ends in
// step 3, before it is taken.
std::vector<TraceFile> WithCopies() {
  std::vector<TraceFile> files;
  for (const std::string server : {"server/s0", "server/s1", "server/s2"}) {
    TraceFile& file = files.emplace_back();
    file.name = server.substr(7) + ".9.trace";
    TracePart& part = file.parts.emplace_back(Head(1, "server/s0", 0));
    part.server = server;
    part.job_shards = 3;
    part.shards = server == "server/s0" ? std::vector<std::string>{"dense/0", "dense/1"}
                  : server == "server/s1"
                      ? std::vector<std::string>{"dense/1", "replica/0"}
                      : std::vector<std::string>{"replica/0", "dense/0"};
    part.copied = {part.shards.begin(), part.shards.end()};
    const uint64_t steps = server == "server/s2" ? 3 : 5;
    for (uint64_t step = 0; step < steps; ++step) Take(&part, step);
  }
  TracePart& lost = files[2].parts[0];
  Add(&lost, TraceEvent::kReceived, 3, Contributions(lost)[0]);
  return files;
}

TEST(CheckTrace, AServerMayBeLostWhileOthersHaveCopies) {
  for (const bool given : {true, false}) {
    const auto summary =
        Check(WithCopies(), given ? std::optional<uint64_t>(5) : std::nullopt);
    ASSERT_TRUE(summary.ok()) << summary.status();
    EXPECT_EQ(summary->end, 5u);
    EXPECT_EQ(summary->rolled_back, 0u);
  }
  auto files = WithCopies();
  files.pop_back();
  EXPECT_TRUE(Check(files, 5).ok());
}

TEST(CheckTrace, ALostServersStepsMustBeRight) {
  auto files = WithCopies();
  std::vector<TraceRecord>& records = files[2].parts[0].records;
  const auto applied =
      std::find_if(records.begin(), records.end(), [](const auto& record) {
        return record.event == TraceEvent::kApplied && record.step == 2;
      });
  records.erase(applied);
  const auto summary = Check(files, 5);
  EXPECT_THAT(std::string(summary.status().message()), HasSubstr("step 2"));
  EXPECT_THAT(std::string(summary.status().message()), HasSubstr("is missing"));
}

TEST(CheckTrace, BothCopiesMustNotEndEarly) {
  auto files = WithCopies();
  // It has dense/0 with s2.
  std::vector<TraceRecord>& records = files[0].parts[0].records;
  while (records.back().step == 4) records.pop_back();
  const auto summary = Check(files, 5);
  EXPECT_THAT(std::string(summary.status().message()),
              HasSubstr("the trace ends too early"));
}

TEST(CheckTrace, OnlyCopiesMayBeTwice) {
  auto files = WithCopies();
  files[0].parts[0].copied.erase("dense/0");
  const auto summary = Check(files, 5);
  EXPECT_THAT(std::string(summary.status().message()),
              HasSubstr("shard dense/0 is on server/s0 and on server/s2"));
}

}  // namespace
}  // namespace moe
