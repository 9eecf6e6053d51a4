// The backend for GPUs, run by the host, in whole clusters: training agrees with that on the CPU to a
// tolerance, its bits don't depend on the cluster's shape, and mixed clusters train.
#include "tests/kernels/cuda_on_host/cuda_on_host.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/io/safetensors.h"
#include "common/job/job_file.h"
#include "tests/cluster/local_cluster.h"
#include "worker/data/prepare_text.h"

namespace moe {
namespace {

struct Case {
  std::string name;
  std::string model;
};

// Noisy top-k with dropout, LSTMs and a sigmoid.
constexpr char kNoisyTopK[] = R"(
  d_model: 16
  embedding_dropout: 0.2
  layers { lstm { hidden: 12 projection: 16 forget_bias: 1 } dropout: 0.2 residual: true }
  layers {
    moe {
      experts: 8 k: 2 hidden: 24 groups: 4 gating: GATING_NOISY_TOP_K
      w_importance: 0.1 w_load: 0.1 sigmoid_output: true
    }
    dropout: 0.2 residual: true
  }
)";
constexpr char kStrict[] = R"(
  d_model: 8
  layers { lstm { hidden: 8 } residual: true }
  layers {
    moe {
      experts: 8 k: 4 hidden: [12, 6] groups: 2 gating: GATING_STRICTLY_BALANCED
      w_importance: 0.1
    }
    residual: true
  }
)";
constexpr char kHierarchical[] = R"(
  d_model: 8
  layers {
    moe {
      experts: 12 groups: 4 k_primary: 2 k: 2 hidden: 8 gating: GATING_NOISY_TOP_K
      w_importance: 0.1 w_load: 0.1
    }
    residual: true
  }
)";
constexpr char kRecurrent[] = R"(
  d_model: 8
  layers {
    recurrent_moe {
      hidden: 8
      input { experts: 4 k: 2 groups: 2 gating: GATING_NOISY_TOP_K w_load: 0.1 }
      recurrent { experts: 6 k: 2 hidden: 5 groups: 3 gating: GATING_NOISY_TOP_K w_load: 0.1 }
      forget_bias: 1
    }
    residual: true
  }
)";
constexpr char kTables[] = R"(
  d_model: 8
  tables { shards: 3 candidates: 20 }
  layers {
    moe { experts: 4 k: 2 hidden: 8 groups: 2 gating: GATING_NOISY_TOP_K w_load: 0.1 }
    residual: true
  }
)";

constexpr char kSgd[] = "optimizer { sgd {} schedule { base_rate: 0.5 } clip_norm: 0.5 }";
constexpr char kAdam[] = "optimizer { adam {} schedule { base_rate: 0.01 } }";

std::string Job(const std::string& model, const std::string& optimizer, int steps) {
  return absl::StrCat("name: \"cuda\" seed: 7 model { ", model, " } ", optimizer,
                      " training { replicas: 3 waves: 2 lanes: 4 unroll: 5 steps: ",
                      steps, " } checkpointing { every_steps: 3 }");
}

// A GPU of every process; experts of the capacity tier have little room on it.
BackendMaker OnHost(bool reversed = false) {
  return [reversed](const DeviceOptions&, int threads, std::string* error) {
    cuda_on_host::SetReversed(reversed);
    return MakeCudaOnHostBackend({.expert_cache_bytes = 16 << 10, .threads = threads},
                                 error);
  };
}

class CudaOnHostTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::string folder = testing::TempDir();
    std::ofstream(absl::StrCat(folder, "/text.txt")) << SyntheticText(1, 150);
    PrepareOptions options;
    options.text = absl::StrCat(folder, "/text.txt");
    options.out = absl::StrCat(folder, "/data");
    options.validation_fraction = 0.1;
    options.test_fraction = 0.1;
    std::ostringstream progress;
    const auto prepared = PrepareText(options, progress);
    ASSERT_TRUE(prepared.ok()) << prepared.status();
  }

  static std::string Folder(const std::string& name) {
    return absl::StrCat(testing::TempDir(), "/", name);
  }

  // In Folder(name).
  static LocalClusterResult Run(const std::string& job, LocalClusterOptions options,
                                const std::string& name) {
    const auto parsed = ParseJob(job, "job");
    if (!parsed.ok()) {
      LocalClusterResult result;
      result.status = parsed.status();
      return result;
    }
    options.job = *parsed;
    options.data = Folder("data");
    options.folder = Folder(name);
    std::filesystem::remove_all(options.folder);
    std::filesystem::create_directories(options.folder);
    return RunLocalCluster(options);
  }

  static LocalClusterOptions OfCuda(int servers = 1, int workers = 1, int threads = 1,
                                    bool reversed = false) {
    LocalClusterOptions options;
    options.servers = servers;
    options.workers = workers;
    options.threads = threads;
    options.server_backend = options.worker_backend = OnHost(reversed);
    return options;
  }

  // The float tensors of the checkpoint after so many steps.
  static std::map<std::string, std::vector<float>> Parameters(const std::string& name,
                                                              int step) {
    std::map<std::string, std::vector<float>> tensors;
    const std::string folder =
        absl::StrCat(Folder(name), "/checkpoints/step-0000000", step);
    for (const auto& file : std::filesystem::directory_iterator(folder)) {
      if (file.path().extension() != ".safetensors") continue;
      const auto opened = SafetensorsFile::Open(file.path());
      EXPECT_TRUE(opened.ok()) << opened.status();
      const absl::Status read = (*opened)->ReadAll(
          [&](const SafetensorsEntry& entry, size_t begin, std::string_view bytes) {
            if (entry.dtype != "F32") return;
            std::vector<float>& values = tensors[entry.name];
            values.resize(entry.bytes / sizeof(float));
            std::memcpy(reinterpret_cast<char*>(values.data()) + begin, bytes.data(),
                        bytes.size());
          });
      EXPECT_TRUE(read.ok()) << read;
    }
    return tensors;
  }
};

class ParityTest : public CudaOnHostTest, public testing::WithParamInterface<Case> {};

// SGD is as smooth as the model: after some steps every parameter agrees.
TEST_P(ParityTest, TrainingAgreesWithTheCpu) {
  const std::string job = Job(GetParam().model, kSgd, 3);
  const LocalClusterResult cpu = Run(job, {}, "cpu");
  const LocalClusterResult cuda = Run(job, OfCuda(), "cuda");
  ASSERT_TRUE(cpu.status.ok()) << cpu.status;
  ASSERT_TRUE(cuda.status.ok()) << cuda.status;
  EXPECT_NE(cpu.digest, cuda.digest);
  EXPECT_NEAR(cuda.test_perplexity / cpu.test_perplexity, 1, 1e-4);
  const auto expected = Parameters("cpu", 3), got = Parameters("cuda", 3);
  ASSERT_FALSE(expected.empty());
  ASSERT_EQ(expected.size(), got.size());
  for (const auto& [name, values] : expected) {
    ASSERT_TRUE(got.contains(name)) << name;
    const std::vector<float>& others = got.at(name);
    ASSERT_EQ(values.size(), others.size()) << name;
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(values[i], others[i], 1e-4 * (1 + std::abs(values[i])))
          << name << " " << i;
    }
  }
}

// One digest: of whatever servers, workers and threads, wherever experts lie, and in whatever order the
// threads of a block run.
TEST_P(ParityTest, AnyShapeGivesTheSameBits) {
  const std::string job = Job(GetParam().model, kAdam, 2);
  const LocalClusterResult one = Run(job, OfCuda(), "cuda");
  ASSERT_TRUE(one.status.ok()) << one.status;
  LocalClusterOptions on_disk = OfCuda(1, 3, 2);
  on_disk.disk_bytes = 8 << 20;
  on_disk.activation_bytes = 1;
  for (const LocalClusterOptions& shape : {OfCuda(2, 2, 2, /*reversed=*/true), on_disk}) {
    const LocalClusterResult other = Run(job, shape, "cuda");
    ASSERT_TRUE(other.status.ok()) << other.status;
    EXPECT_EQ(other.digest, one.digest) << shape.servers << " " << shape.disk_bytes;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ParityTest,
                         testing::Values(Case{"NoisyTopK", kNoisyTopK},
                                         Case{"Strict", kStrict},
                                         Case{"Hierarchical", kHierarchical},
                                         Case{"Recurrent", kRecurrent},
                                         Case{"Tables", kTables}),
                         [](const auto& info) { return info.param.name; });

TEST_F(CudaOnHostTest, AMixedClusterTrains) {
  LocalClusterOptions mixed = OfCuda();
  mixed.worker_backend = MakeBackend;
  const std::string job = Job(kNoisyTopK, kSgd, 3);
  const LocalClusterResult trained =
      Run("allow_mixed_numerics: true " + job, mixed, "mixed");
  ASSERT_TRUE(trained.status.ok()) << trained.status;
  const LocalClusterResult cpu = Run(job, {}, "cpu");
  EXPECT_NEAR(trained.test_perplexity / cpu.test_perplexity, 1, 1e-4);
}

}  // namespace
}  // namespace moe
