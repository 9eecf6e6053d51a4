// The jobs that are shipped. Runs in the root of the runfiles.
#include <cmath>
#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/job/describe.h"
#include "common/job/job_file.h"
#include "common/job/model_plan.h"
#include "gmock/gmock.h"
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
  EXPECT_GE(paths.size(), 25u);
  for (const std::string& path : paths) {
    absl::StatusOr<v1::Job> job = ReadJobFile(path);
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->name(), std::filesystem::path(path).stem().string());
    if (job->model().vocabulary() == 0) job->mutable_model()->set_vocabulary(10000);
    EXPECT_FALSE(MakeModelPlan(*job).shards.empty()) << path;
  }
}

TEST(ConfigsTest, KjvStepsAre2048Words) {
  for (const char* name : {"kjv-moe", "kjv-dense", "kjv-strict", "kjv-recurrent"}) {
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

// A row of the paper's table 7 or 8: parameters and multiply-adds a timestep, in millions, as
// printed.
struct PaperModel {
  const char* table;
  const char* name;
  const char* parameters;
  const char* multiply_adds;
  // Ours, where the paper's figure is not the rounded count.
  const char* counted_multiply_adds = nullptr;
};

std::ostream& operator<<(std::ostream& out, const PaperModel& model) {
  return out << "table " << model.table << ", " << model.name;
}

std::string ConfigPath(const PaperModel& model) {
  return absl::StrFormat("%s/paper/table%s-%s.textproto", kConfigs, model.table,
                         absl::AsciiStrToLower(model.name));
}

// Our LSTM biases (2,048 parameters for 512 units) change no printed digit.
const PaperModel kPaperModels[] = {
    {"7", "LSTM-2048-512", "9.4", "9.4"},
    {"7", "4xLSTM-512", "8.4", "8.4"},
    {"7", "MoE-1-Wide", "8.4", "8.4"},
    {"7", "MoE-1-Deep", "8.4", "8.4"},
    {"7", "MoE-4", "8.4", "8.4"},
    {"7", "MoE-32", "37.8", "8.4"},
    // 8,650,752: the paper cuts off where it rounds elsewhere.
    {"7", "MoE-256", "272.9", "8.6", "8.7"},
    {"7", "MoE-256-h", "272.9", "8.4"},
    {"7", "MoE-1024-h", "1079.0", "8.5"},
    {"7", "MoE-4096-h", "4303.4", "8.9"},
    {"7", "MoE-34M", "4313.9", "33.8"},
    {"7", "MoE-143M", "4371.1", "142.7"},
    {"8", "4xLSTM-512", "8.4", "8.4"},
    {"8", "MoE-32", "37.8", "8.4"},
    {"8", "MoE-256-h", "272.9", "8.4"},
    {"8", "MoE-1024-h", "1079.0", "8.5"},
    {"8", "MoE-4096-h", "4303.4", "8.6"},
    {"8", "MoE-16384-h", "17201.0", "8.8"},
    {"8", "MoE-65536-h", "68791.0", "9.2"},
    {"8", "MoE-131072-h", "137577.6", "9.7"},
};

class PaperModelTest : public ::testing::TestWithParam<PaperModel> {};

TEST_P(PaperModelTest, CountsAsPrinted) {
  const PaperModel& model = GetParam();
  absl::StatusOr<v1::Job> job = ReadJobFile(ConfigPath(model));
  ASSERT_TRUE(job.ok()) << job.status();
  const ModelCount count = CountModel(*job);
  const double multiply_adds = count.multiply_adds / 1e6;
  EXPECT_EQ(absl::StrFormat("%.1f", count.parameters / 1e6), model.parameters);
  if (model.counted_multiply_adds == nullptr) {
    EXPECT_EQ(absl::StrFormat("%.1f", multiply_adds), model.multiply_adds);
  } else {
    EXPECT_EQ(absl::StrFormat("%.1f", multiply_adds), model.counted_multiply_adds);
    EXPECT_EQ(absl::StrFormat("%.1f", std::floor(10 * multiply_adds) / 10),
              model.multiply_adds);
  }
}

// The sum over the tensors that the members really make.
TEST_P(PaperModelTest, PlanHasTheCountedParameters) {
  absl::StatusOr<v1::Job> job = ReadJobFile(ConfigPath(GetParam()));
  ASSERT_TRUE(job.ok()) << job.status();
  const ModelCount count = CountModel(*job);
  int64_t planned = 0;
  for (const TensorSpec& tensor : MakeModelPlan(*job).tensors) planned += tensor.size();
  EXPECT_EQ(planned,
            count.parameters + count.embedding_parameters + count.softmax_parameters);
}

INSTANTIATE_TEST_SUITE_P(Tables, PaperModelTest, ::testing::ValuesIn(kPaperModels),
                         [](const auto& info) {
                           std::string name = absl::StrFormat(
                               "Table%s_%s", info.param.table, info.param.name);
                           for (char& c : name) {
                             if (c == '-') c = '_';
                           }
                           return name;
                         });

// Appendix D: the experts of table 8 have no first moment and a factored second one.
TEST(PaperModelsTest, ExpertsOfTable8TakeLittleMoreThanTheirParameters) {
  for (const PaperModel& model : kPaperModels) {
    const absl::StatusOr<v1::Job> job = ReadJobFile(ConfigPath(model));
    ASSERT_TRUE(job.ok()) << job.status();
    const ModelStored stored = CountStored(*job);
    EXPECT_EQ(stored.dense.optimizer_bytes, 8 * stored.dense.parameters) << model.name;
    // A row of the embedding, and w and b of one of the softmax.
    EXPECT_EQ(stored.tables.optimizer_bytes, 3 * 4 * int64_t{job->model().vocabulary()})
        << model.name;
    if (stored.experts.parameters == 0) continue;
    if (job->name().starts_with("table8")) {
      EXPECT_NEAR(stored.experts.bytes_per_parameter(), 4.012, 0.0005) << model.name;
    } else {
      EXPECT_EQ(stored.experts.bytes_per_parameter(), 12) << model.name;
    }
  }
}

// No job file beside those of the tables' rows.
TEST(PaperModelsTest, EveryFileIsARow) {
  std::vector<std::string> rows;
  for (const PaperModel& model : kPaperModels) rows.push_back(ConfigPath(model));
  std::vector<std::string> files;
  for (const std::string& path : ShippedConfigs()) {
    if (absl::StrContains(path, "/paper/")) files.push_back(path);
  }
  EXPECT_THAT(files, ::testing::UnorderedElementsAreArray(rows));
}

}  // namespace
}  // namespace moe
