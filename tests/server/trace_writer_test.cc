// What a host traces of real steps, read back and checked.
#include "server/trace_writer.h"

#include <gmock/gmock.h>

#include "common/io/file.h"
#include "common/trace/check_trace.h"
#include "tests/server/shard_host_fixture.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using testing::kReplicas;
using testing::kWaves;

class TraceWriterTest : public testing::ShardHostTest {
 protected:
  TraceWriterTest() : ShardHostTest(testing::MadeJob("adam {} clip_norm: 0.5"), false) {}

  void SetUp() override {
    folder_ = TempFolder("trace");
    auto writer = TraceWriter::Open(folder_, "s0");
    ASSERT_TRUE(writer.ok()) << writer.status();
    writer_ = *std::move(writer);
    trace_ = writer_.get();
    Begin(testing::MadeState(job_));
  }
  void TearDown() override { host_ = nullptr; }

  void Begin(const v1::ClusterState& state) {
    Load(state, 1);
    host_->Met("worker/w0", 5);
    host_->Met("worker/w1", 6);
  }

  void ClippedStep(uint64_t step) {
    Frames(step);
    SendAll(
        [&](const auto& replicas) { return testing::CloseOf(plan_, step, replicas); });
    for (const auto& [worker, replicas] : testing::Workers()) Next(worker);
    SendAll([&](const auto&) { return testing::ApplyOf(step, 0.5); });
    for (const auto& [worker, replicas] : testing::Workers()) {
      EXPECT_EQ(Next(worker).apply().version(), step + 1);
    }
  }

  // What is in the file by now, as a kill would leave it.
  TraceFile Read() {
    const std::string path = absl::StrCat(folder_, "/s0.", getpid(), ".trace");
    const auto text = ReadFile(path);
    EXPECT_TRUE(text.ok()) << text.status();
    auto parts = ParseTrace(*text);
    EXPECT_TRUE(parts.ok()) << parts.status();
    return {"s0", *std::move(parts)};
  }

  std::string folder_;
  std::unique_ptr<TraceWriter> writer_;
};

TEST_F(TraceWriterTest, AStepIsInTheFileWhenItShows) {
  for (uint64_t step = 0; step < 3; ++step) {
    ClippedStep(step);
    const auto summary = CheckTraces({Read()}, step + 1);
    ASSERT_TRUE(summary.ok()) << summary.status();
    EXPECT_EQ(summary->ignored + summary->answered, 0u);
  }
  const TraceFile file = Read();
  ASSERT_EQ(file.parts.size(), 1u);
  EXPECT_EQ(file.parts[0].server, "server/s0");
  EXPECT_EQ(file.parts[0].incarnation, 9u);
  // Of worker/w0 and worker/w1.
  for (const TraceRecord& record : file.parts[0].records) {
    if (record.what == FrameName("forward", 0, testing::kLayer, 0, 0, 1)) {
      EXPECT_EQ(record.incarnation, 5u);
    }
    if (record.what == FrameName("forward", 0, testing::kLayer, 0, 0, 2)) {
      EXPECT_EQ(record.incarnation, 6u);
    }
  }
}

TEST_F(TraceWriterTest, RepetitionsAreToldFromTheFirst) {
  // Without an answer yet; with one; of a step that is over.
  ASSERT_TRUE(Send("worker/w1", testing::ForwardOf(0, 0, {2})).ok());
  ASSERT_TRUE(host_
                  ->Handle("worker/w1", testing::ForwardOf(0, 0, {2}),
                           sinks_["worker/w1"], /*again=*/true)
                  .ok());
  ASSERT_TRUE(Send("worker/w0", testing::ForwardOf(0, 0, {0, 1})).ok());
  Next("worker/w0");
  Next("worker/w1");
  ASSERT_TRUE(host_
                  ->Handle("worker/w0", testing::ForwardOf(0, 0, {0, 1}),
                           sinks_["worker/w0"], /*again=*/true)
                  .ok());
  Next("worker/w0");
  SendAll([&](const auto& replicas) { return testing::ForwardOf(0, 1, replicas); });
  for (const auto& [worker, replicas] : testing::Workers()) Next(worker);
  for (uint32_t w = 0; w < kWaves; ++w) {
    SendAll([&](const auto& replicas) { return testing::BackwardOf(0, w, replicas); });
    for (const auto& [worker, replicas] : testing::Workers()) Next(worker);
  }
  SendAll([&](const auto& replicas) { return testing::CloseOf(plan_, 0, replicas); });
  for (const auto& [worker, replicas] : testing::Workers()) Next(worker);
  SendAll([&](const auto&) { return testing::ApplyOf(0, 1); });
  for (const auto& [worker, replicas] : testing::Workers()) Next(worker);
  ASSERT_TRUE(host_
                  ->Handle("worker/w1", testing::BackwardOf(0, 0, {2}),
                           sinks_["worker/w1"], /*again=*/true)
                  .ok());
  ClippedStep(1);
  const auto summary = CheckTraces({Read()}, 2);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->ignored, 2u);
  EXPECT_EQ(summary->answered, 2u);  // replicas 0 and 1
}

TEST_F(TraceWriterTest, AGenerationBeginsAnew) {
  ClippedStep(0);
  ClippedStep(1);
  v1::ClusterState state = testing::MadeState(job_);
  state.set_generation(2);
  Begin(state);
  const TraceFile file = Read();
  ASSERT_EQ(file.parts.size(), 2u);
  const auto summary = CheckTraces({file});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->end, 0u);
  EXPECT_EQ(summary->rolled_back, 2u);
  EXPECT_THAT(std::string(CheckTraces({file}, 1).status().message()),
              HasSubstr("server/s0 in generation 2: step 0 was not taken"));
}

TEST_F(TraceWriterTest, AFolderThatCannotBeIsAnError) {
  const absl::Status status = TraceWriter::Open("/proc/nowhere", "s0").status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("/proc/nowhere"));
}

// A trace with a gap would prove nothing.
TEST(TraceWriter, AFullDiskIsAnError) {
  const std::string folder = ::testing::TempDir() + "/full";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  std::filesystem::create_symlink("/dev/full",
                                  absl::StrCat(folder, "/s0.", getpid(), ".trace"));
  auto writer = TraceWriter::Open(folder, "s0");
  ASSERT_TRUE(writer.ok()) << writer.status();
  const absl::Status status = (*writer)->StepTaken(0);
  EXPECT_THAT(std::string(status.message()), HasSubstr("can't write the trace"));
  EXPECT_EQ((*writer)->StepTaken(1), status);
}

}  // namespace
}  // namespace moe
