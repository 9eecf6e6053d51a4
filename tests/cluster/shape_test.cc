// Promise 1: the cluster's shape never changes the result.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/io/safetensors.h"
#include "common/job/job_file.h"
#include "tests/cluster/local_cluster.h"
#include "worker/data/prepare_text.h"

namespace moe {
namespace {

constexpr char kModel[] = R"(
  name: "shape" seed: 7
  model {
    d_model: 16
    embedding_dropout: 0.2
    layers { lstm { hidden: 16 forget_bias: 1 } dropout: 0.2 residual: true }
    layers {
      moe {
        experts: 8 k: 2 hidden: 24 groups: 4 gating: GATING_NOISY_TOP_K
        w_importance: 0.1 w_load: 0.1 sigmoid_output: true
      }
      dropout: 0.2 residual: true
    }
    layers { lstm { hidden: 16 forget_bias: 1 } dropout: 0.2 residual: true }
  }
)";

constexpr char kAdam[] = R"(
  optimizer {
    adam {}
    schedule { base_rate: 0.01 inverse_sqrt { warmup_steps: 3 } }
  }
)";

// A second MoE layer, with deep experts, and clipping that bites.
constexpr char kTwoMoeLayers[] = R"(
  name: "two-layers" seed: 8
  model {
    d_model: 8
    embedding_dropout: 0.1
    layers {
      moe { experts: 6 k: 3 hidden: 8 groups: 2 gating: GATING_NOISY_TOP_K w_importance: 0.2 }
      residual: true
    }
    layers { lstm { hidden: 8 } residual: true }
    layers {
      moe {
        experts: 4 k: 1 hidden: [12, 6, 8] groups: 4 gating: GATING_NOISY_TOP_K w_load: 0.2
      }
      dropout: 0.1 residual: true
    }
  }
  optimizer { sgd {} schedule { base_rate: 1 step_decay { constant_epochs: 1 factor: 0.5 } }
              clip_norm: 0.05 }
)";

// Carried state whose parts differ in width.
constexpr char kProjected[] = R"(
  name: "projected" seed: 9
  model {
    d_model: 8
    layers { lstm { hidden: 20 projection: 8 forget_bias: 1 } residual: true }
    layers {
      moe { experts: 4 k: 2 hidden: [8, 12] groups: 2 gating: GATING_NOISY_TOP_K w_load: 0.1 }
      residual: true
    }
    layers { lstm { hidden: 6 projection: 8 forget_bias: 1 } dropout: 0.1 residual: true }
  }
)";

struct GatingCase {
  std::string gating;
  int k;
};

// The model above with another gating: no noise, so no w_load.
std::string WithGating(const GatingCase& with) {
  std::string model = kModel;
  const auto replace = [&](const std::string& from, const std::string& to) {
    model.replace(model.find(from), from.size(), to);
  };
  replace("GATING_NOISY_TOP_K", with.gating);
  replace("k: 2", absl::StrCat("k: ", with.k));
  replace("w_load: 0.1", "w_load: 0");
  return model;
}

// Two hierarchical layers and clipping that bites. The first has more groups than the
// tokens of a step fill.
constexpr char kHierarchical[] = R"(
  name: "hierarchical" seed: 9
  model {
    d_model: 8
    embedding_dropout: 0.1
    layers {
      moe {
        experts: 80 groups: 40 k_primary: 2 k: 1 hidden: 8 gating: GATING_NOISY_TOP_K
        w_importance: 0.1 w_load: 0.1 sigmoid_output: true
      }
      dropout: 0.1 residual: true
    }
    layers { lstm { hidden: 8 } residual: true }
    layers {
      moe {
        experts: 12 groups: 4 k_primary: 2 k: 2 hidden: 8 gating: GATING_NOISY_TOP_K
        w_importance: 0.1 w_load: 0.1
      }
      residual: true
    }
  }
  optimizer { adam {} schedule { base_rate: 0.02 } clip_norm: 0.05 }
)";

// A recurrent MoE of linear and of deep experts, between an LSTM and a MoE layer, and clipping that
// bites.
std::string Recurrent(int kept_states) {
  return absl::StrCat(R"(
    name: "recurrent" seed: 10
    model {
      d_model: 8
      embedding_dropout: 0.1
      layers { lstm { hidden: 8 forget_bias: 1 } residual: true }
      layers {
        recurrent_moe {
          hidden: 8
          input {
            experts: 8 k: 2 groups: 4 gating: GATING_NOISY_TOP_K w_importance: 0.1 w_load: 0.1
          }
          recurrent {
            experts: 6 k: 2 hidden: 5 groups: 3 gating: GATING_NOISY_TOP_K
            w_importance: 0.1 w_load: 0.1
          }
          forget_bias: 1
          kept_states: )",
                      kept_states, R"(
        }
        dropout: 0.1 residual: true
      }
      layers {
        moe { experts: 4 k: 2 hidden: 8 groups: 2 gating: GATING_NOISY_TOP_K w_load: 0.1 }
        residual: true
      }
    }
    optimizer { adam {} schedule { base_rate: 0.02 } clip_norm: 0.05 }
  )");
}

std::string Training(int replicas, int steps) {
  return absl::StrCat("training { replicas: ", replicas,
                      " waves: 2 lanes: 4 unroll: 5 steps: ", steps,
                      " } checkpointing { every_steps: 3 }");
}

class ShapeTest : public testing::Test {
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

  struct Shape {
    int servers;
    int workers;
    int threads;
    // As LocalClusterOptions.
    int64_t disk_bytes = 0;
    int64_t activation_bytes = 0;
  };

  LocalClusterResult Run(const std::string& job, Shape shape, const std::string& folder,
                         bool resume = false) {
    LocalClusterOptions options;
    const auto parsed = ParseJob(job, "job");
    if (!parsed.ok()) {
      LocalClusterResult result;
      result.status = parsed.status();
      return result;
    }
    options.job = *parsed;
    options.servers = shape.servers;
    options.workers = shape.workers;
    options.threads = shape.threads;
    options.disk_bytes = shape.disk_bytes;
    options.activation_bytes = shape.activation_bytes;
    options.data = absl::StrCat(testing::TempDir(), "/data");
    options.folder = absl::StrCat(testing::TempDir(), "/", folder);
    options.resume = resume;
    if (!resume) std::filesystem::remove_all(options.folder);
    std::filesystem::create_directories(options.folder);
    return RunLocalCluster(options);
  }

  // The digest of a run that must succeed.
  std::string Digest(const std::string& job, Shape shape,
                     const std::string& folder = "run", bool resume = false) {
    const LocalClusterResult result = Run(job, shape, folder, resume);
    EXPECT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.digest.size(), 64u);
    return result.digest;
  }
};

TEST_F(ShapeTest, FourReplicasOnAnyShape) {
  const std::string job = absl::StrCat(kModel, kAdam, Training(4, 4));
  const std::string digest = Digest(job, {1, 1, 1});
  EXPECT_EQ(Digest(job, {1, 1, 2}), digest);
  EXPECT_EQ(Digest(job, {2, 2, 1}), digest);
  EXPECT_EQ(Digest(job, {3, 1, 2}), digest);
  EXPECT_EQ(Digest(job, {4, 4, 1}), digest);
  EXPECT_EQ(Digest(job, {1, 3, 1}), digest);
}

TEST_F(ShapeTest, ThreeReplicasOnAnyShape) {
  const std::string job = absl::StrCat(kModel, kAdam, Training(3, 4));
  const std::string digest = Digest(job, {1, 1, 1});
  EXPECT_EQ(Digest(job, {2, 2, 2}), digest);
  EXPECT_EQ(Digest(job, {3, 3, 1}), digest);
}

TEST_F(ShapeTest, TwoMoeLayersClippedAcrossEpochs) {
  // A pass over the text has 14 steps.
  const std::string job = absl::StrCat(kTwoMoeLayers, Training(4, 20));
  const std::string digest = Digest(job, {1, 1, 1});
  EXPECT_EQ(Digest(job, {2, 2, 2}), digest);
  EXPECT_EQ(Digest(job, {4, 3, 1}), digest);
}

TEST_F(ShapeTest, ResumedOnAnotherShape) {
  const std::string whole = absl::StrCat(kModel, kAdam, Training(4, 6));
  const std::string half = absl::StrCat(kModel, kAdam, Training(4, 3));
  const std::string digest = Digest(whole, {2, 2, 1});
  EXPECT_NE(Digest(half, {3, 1, 1}, "halves"), digest);
  EXPECT_EQ(Digest(whole, {1, 4, 2}, "halves", /*resume=*/true), digest);
}

// The paper's memory techniques (appendix D), and experts of 2 bytes a parameter.
TEST_F(ShapeTest, SmallParametersOnAnyShapeAndResumed) {
  constexpr char kOptimizer[] = R"(
    optimizer {
      adam {}
      experts { beta1: 0 second_moment: SECOND_MOMENT_FACTORED }
      schedule { base_rate: 0.01 inverse_sqrt { warmup_steps: 3 } }
    }
  )";
  for (std::string model : {std::string(kModel), std::string(kProjected)}) {
    for (size_t at = 0; (at = model.find("experts:", at)) != std::string::npos; ++at) {
      const std::string field = "parameters: PARAMETERS_BFLOAT16 ";
      model.insert(at, field);
      at += field.size();
    }
    const std::string whole = absl::StrCat(model, kOptimizer, Training(4, 6));
    const std::string digest = Digest(whole, {1, 1, 1});
    EXPECT_EQ(Digest(whole, {1, 1, 2}), digest);
    EXPECT_EQ(Digest(whole, {2, 2, 2}), digest);
    EXPECT_EQ(Digest(whole, {3, 4, 1}), digest);
    const std::string half = absl::StrCat(model, kOptimizer, Training(4, 3));
    EXPECT_NE(Digest(half, {3, 1, 1}, "halves"), digest);
    EXPECT_EQ(Digest(whole, {1, 3, 2}, "halves", /*resume=*/true), digest);
    EXPECT_NE(Digest(absl::StrCat(model, kAdam, Training(4, 6)), {1, 1, 1}), digest);
  }
}

// Experts on disk, and hidden activations computed again. Some experts are never touched.
TEST_F(ShapeTest, LessMemoryOnAnyShapeAndResumed) {
  constexpr int64_t kDisk = 8 << 20;
  for (const std::string model : {kHierarchical, kTwoMoeLayers}) {
    const std::string whole = absl::StrCat(model, Training(3, 6));
    const std::string half = absl::StrCat(model, Training(3, 3));
    const std::string digest = Digest(whole, {1, 1, 1});
    EXPECT_EQ(Digest(whole, {1, 1, 2, kDisk}), digest);
    EXPECT_EQ(Digest(whole, {2, 3, 2, kDisk, 1}), digest);
    EXPECT_EQ(Digest(whole, {2, 1, 1, 0, 2000}), digest);
    Digest(half, {3, 1, 1, kDisk}, "halves");
    EXPECT_EQ(Digest(whole, {2, 3, 2}, "halves", /*resume=*/true), digest);
    Digest(half, {1, 1, 1}, "halves");
    EXPECT_EQ(Digest(whole, {2, 2, 1, kDisk}, "halves", /*resume=*/true), digest);
  }
}

TEST_F(ShapeTest, ADiskBudgetThatRunsOutIsTheCause) {
  const LocalClusterResult result =
      Run(absl::StrCat(kHierarchical, Training(3, 6)), {2, 1, 1, 64 << 10}, "small-disk");
  EXPECT_FALSE(result.status.ok());
  EXPECT_THAT(std::string(result.status.message()),
              testing::AllOf(testing::HasSubstr("server/s"),
                             testing::HasSubstr("layer0.moe.expert"),
                             testing::HasSubstr("64.0 KiB of --disk_gib")));
}

TEST_F(ShapeTest, ProjectedResumedOnAnotherShape) {
  const std::string whole = absl::StrCat(kProjected, kAdam, Training(3, 6));
  const std::string half = absl::StrCat(kProjected, kAdam, Training(3, 3));
  const std::string digest = Digest(whole, {1, 1, 1});
  EXPECT_NE(Digest(half, {2, 3, 1}, "projected-halves"), digest);
  EXPECT_EQ(Digest(whole, {3, 2, 2}, "projected-halves", /*resume=*/true), digest);
}

class GatingTest : public ShapeTest, public testing::WithParamInterface<GatingCase> {};

TEST_P(GatingTest, AnyShape) {
  // A micro-batch has 10 tokens: strictly balanced, each expert takes 5 of them.
  const std::string job = absl::StrCat(WithGating(GetParam()), kAdam, Training(4, 6));
  const std::string digest = Digest(job, {1, 1, 1});
  EXPECT_EQ(Digest(job, {1, 1, 2}), digest);
  EXPECT_EQ(Digest(job, {3, 4, 1}), digest);
  EXPECT_EQ(Digest(job, {2, 2, 2}), digest);

  std::string half = job;
  half.replace(half.find("steps: 6"), 8, "steps: 3");
  EXPECT_NE(Digest(half, {3, 1, 1}, "halves"), digest);
  EXPECT_EQ(Digest(job, {1, 2, 2}, "halves", /*resume=*/true), digest);
}

INSTANTIATE_TEST_SUITE_P(Gatings, GatingTest,
                         testing::Values(GatingCase{"GATING_STRICTLY_BALANCED", 4},
                                         GatingCase{"GATING_SOFTMAX", 8}),
                         [](const auto& info) { return info.param.gating; });

TEST_F(ShapeTest, HierarchicalOnAnyShape) {
  const std::string job = absl::StrCat(kHierarchical, Training(3, 6));
  const std::string digest = Digest(job, {1, 1, 1});
  EXPECT_EQ(Digest(job, {1, 1, 2}), digest);
  EXPECT_EQ(Digest(job, {1, 2, 2}), digest);
  EXPECT_EQ(Digest(job, {2, 3, 2}), digest);
  EXPECT_EQ(Digest(job, {5, 1, 1}), digest);

  // Some groups had no row in some step, and so fewer updates of their gate.
  int fewer = 0;
  for (int g = 0; g < 40; ++g) {
    const auto file = SafetensorsFile::Open(
        absl::StrCat(testing::TempDir(), "/run/checkpoints/step-00000006/layer0-group", g,
                     ".safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    const std::string gate = absl::StrCat("layer0.moe.group", g, ".");
    const std::string count = (*file)->metadata().at(gate + "wg#count");
    EXPECT_EQ((*file)->metadata().at(gate + "wnoise#count"), count);
    fewer += count != "6";
  }
  EXPECT_GT(fewer, 0);
  EXPECT_LT(fewer, 40);
}

TEST_F(ShapeTest, HierarchicalResumedOnAnotherShape) {
  const std::string whole = absl::StrCat(kHierarchical, Training(3, 6));
  const std::string half = absl::StrCat(kHierarchical, Training(3, 3));
  const std::string digest = Digest(whole, {1, 1, 1});
  EXPECT_NE(Digest(half, {3, 1, 1}, "halves"), digest);
  EXPECT_EQ(Digest(whole, {2, 3, 2}, "halves", /*resume=*/true), digest);
}

TEST_F(ShapeTest, RecurrentOnAnyShapeHoweverManyStatesAreKept) {
  const std::string training = Training(3, 5);
  const std::string digest = Digest(Recurrent(0) + training, {1, 1, 1});
  EXPECT_EQ(Digest(Recurrent(0) + training, {2, 3, 2}), digest);
  EXPECT_EQ(Digest(Recurrent(0) + training, {4, 1, 1}), digest);
  EXPECT_EQ(Digest(Recurrent(1) + training, {1, 2, 2}), digest);
  EXPECT_EQ(Digest(Recurrent(2) + training, {3, 2, 1}), digest);
  EXPECT_EQ(Digest(Recurrent(2) + training, {2, 1, 2}), digest);
}

TEST_F(ShapeTest, RecurrentResumedOnAnotherShape) {
  for (int kept_states : {0, 2}) {
    const std::string whole = Recurrent(kept_states) + Training(3, 6);
    const std::string half = Recurrent(kept_states) + Training(3, 3);
    const std::string digest = Digest(whole, {1, 1, 1});
    EXPECT_NE(Digest(half, {3, 1, 1}, "halves"), digest);
    EXPECT_EQ(Digest(whole, {2, 3, 2}, "halves", /*resume=*/true), digest);
  }
}

// What makes a difference must make one, or the tests above show nothing.
TEST_F(ShapeTest, SeedAndReplicasAreThePartsOfAJob) {
  const std::string job = absl::StrCat(kModel, kAdam, Training(4, 4));
  const std::string digest = Digest(job, {1, 1, 1});
  std::string other_seed = job;
  other_seed.replace(other_seed.find("seed: 7"), 7, "seed: 9");
  EXPECT_NE(Digest(other_seed, {1, 1, 1}), digest);
  EXPECT_NE(Digest(absl::StrCat(kModel, kAdam, Training(2, 4)), {1, 1, 1}), digest);
}

TEST_F(ShapeTest, MoreWorkersThanReplicasIsRefused) {
  const LocalClusterResult result =
      Run(absl::StrCat(kModel, kAdam, Training(2, 4)), {1, 3, 1}, "refused");
  EXPECT_FALSE(result.status.ok());
  EXPECT_THAT(std::string(result.status.message()),
              testing::HasSubstr("training.replicas"));
}

}  // namespace
}  // namespace moe
