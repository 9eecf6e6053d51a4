// The jobs that are shipped. Runs in the root of the runfiles.
#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/job/describe.h"
#include "common/job/job_file.h"
#include "common/job/model_plan.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

constexpr char kConfigs[] = "deploy/configs";

std::vector<std::string> ShippedConfigs() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kConfigs)) {
    if (entry.path().extension() == ".textproto") paths.push_back(entry.path().string());
  }
  return paths;
}

TEST(ConfigsTest, AllAreValidAndNamedAsTheirFiles) {
  const std::vector<std::string> paths = ShippedConfigs();
  EXPECT_GE(paths.size(), 11u);
  for (const std::string& path : paths) {
    absl::StatusOr<v1::Job> job = ReadJobFile(path);
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->name(), std::filesystem::path(path).stem().string());
    if (job->model().vocabulary() == 0) job->mutable_model()->set_vocabulary(10000);
    EXPECT_FALSE(MakeModelPlan(*job).shards.empty()) << path;
  }
}

TEST(ConfigsTest, OnlyTwoPaperModelsCannotBeTrained) {
  for (const std::string& path : ShippedConfigs()) {
    absl::StatusOr<v1::Job> job = ReadJobFile(path);
    ASSERT_TRUE(job.ok()) << job.status();
    const bool counted_only =
        job->name() == "lstm-2048-512" || job->name() == "moe-1-deep";
    EXPECT_EQ(CheckTrainable(*job).ok(), !counted_only) << path;
  }
}

TEST(ConfigsTest, KjvStepsAre2048Words) {
  for (const char* name : {"kjv-moe", "kjv-dense"}) {
    absl::StatusOr<v1::Job> job =
        ReadJobFile(absl::StrFormat("%s/%s.textproto", kConfigs, name));
    ASSERT_TRUE(job.ok()) << job.status();
    const v1::Training& training = job->training();
    EXPECT_EQ(training.replicas() * training.lanes() * training.unroll(), 2048);
  }
}

// The comparison of kjv-moe with kjv-dense is at equal compute: only the gate differs.
TEST(ConfigsTest, KjvModelsDifferByTheGateOnly) {
  absl::StatusOr<v1::Job> sparse =
      ReadJobFile(absl::StrFormat("%s/kjv-moe.textproto", kConfigs));
  absl::StatusOr<v1::Job> dense =
      ReadJobFile(absl::StrFormat("%s/kjv-dense.textproto", kConfigs));
  ASSERT_TRUE(sparse.ok()) << sparse.status();
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_EQ(CountModel(*sparse).multiply_adds - CountModel(*dense).multiply_adds,
            2 * 128 * (32 - 1));
}

// Figures as printed in the paper's tables 7 and 8, in millions.
struct PaperModel {
  const char* table;
  const char* name;
  const char* config;
  const char* parameters;
  const char* multiply_adds;
};

std::ostream& operator<<(std::ostream& out, const PaperModel& model) {
  return out << "table " << model.table << ", " << model.name;
}

class PaperModelTest : public ::testing::TestWithParam<PaperModel> {};

TEST_P(PaperModelTest, CountsAsPrinted) {
  const PaperModel& model = GetParam();
  absl::StatusOr<v1::Job> job =
      ReadJobFile(absl::StrFormat("%s/paper/%s.textproto", kConfigs, model.config));
  ASSERT_TRUE(job.ok()) << job.status();
  const ModelCount count = CountModel(*job);
  EXPECT_EQ(absl::StrFormat("%.1f", count.parameters / 1e6), model.parameters);
  EXPECT_EQ(absl::StrFormat("%.1f", count.multiply_adds / 1e6), model.multiply_adds);
}

// Our LSTM biases (2,048 parameters for 512 units) change no printed digit.
INSTANTIATE_TEST_SUITE_P(
    Tables, PaperModelTest,
    ::testing::Values(
        PaperModel{"7", "LSTM-2048-512", "lstm-2048-512", "9.4", "9.4"},
        PaperModel{"7", "4xLSTM-512", "4xlstm-512", "8.4", "8.4"},
        PaperModel{"7", "MoE-1-Wide", "moe-1-wide", "8.4", "8.4"},
        PaperModel{"7", "MoE-1-Deep", "moe-1-deep", "8.4", "8.4"},
        PaperModel{"7", "MoE-4", "moe-4", "8.4", "8.4"},
        PaperModel{"7", "MoE-32", "moe-32", "37.8", "8.4"},
        // 8,650,752 multiply-adds, which the paper prints as 8.6: cut off, not rounded.
        PaperModel{"7", "MoE-256", "moe-256", "272.9", "8.7"},
        PaperModel{"8", "4xLSTM-512", "4xlstm-512", "8.4", "8.4"},
        PaperModel{"8", "MoE-32", "moe-32", "37.8", "8.4"}),
    [](const auto& info) {
      std::string name = absl::StrFormat("Table%s_%s", info.param.table, info.param.name);
      for (char& c : name) {
        if (c == '-') c = '_';
      }
      return name;
    });

}  // namespace
}  // namespace moe
