// What a shard keeps of its tensors, on the backend and in files.
#include "server/parameter_block.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/random/random.h"
#include "tests/server/made_step.h"
#include "tests/server/write_now.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kFactored[] =
    "adam {} experts { beta1: 0 second_moment: SECOND_MOMENT_FACTORED }";

class ParameterBlockTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = MakeCpuBackend(1, &error);
    ASSERT_NE(backend_, nullptr) << error;
  }

  static v1::Job JobWith(const std::string& optimizer, bool bfloat16 = false,
                         bool hierarchical = false) {
    v1::Job job = hierarchical ? testing::MadeHierarchicalJob(optimizer)
                               : testing::MadeJob(optimizer);
    if (bfloat16) {
      job.mutable_model()
          ->mutable_layers(testing::kLayer)
          ->mutable_moe()
          ->set_parameters(v1::PARAMETERS_BFLOAT16);
    }
    return job;
  }

  // Of the job's shard with this id.
  std::unique_ptr<ParameterBlock> Make(const v1::Job& job,
                                       const std::string& shard = "layer1/group0",
                                       CapacityTier* tier = nullptr) {
    const ModelPlan plan = MakeModelPlan(job);
    for (const ShardSpec& spec : plan.shards) {
      if (spec.id != shard) continue;
      auto block = std::make_unique<ParameterBlock>(*backend_, plan, spec, job, tier);
      block->Initialize();
      return block;
    }
    ADD_FAILURE() << "no shard " << shard;
    return nullptr;
  }

  static v1::ShardStatus StatusOf(const ParameterBlock& block) {
    v1::ShardStatus status;
    block.FillStatus(&status);
    return status;
  }

  // Random state and some updates.
  void Disturb(ParameterBlock& block) {
    const RandomKey key = MakeKey(1, Purpose::kProbe, {});
    uint64_t row = 0;
    const auto fill = [&](float* data, int64_t size) {
      std::vector<float> values(size);
      FillUniform(key, row++, values);
      backend_->Upload(values.data(), data, size * sizeof(float));
    };
    for (int i = 0; i < block.tensors(); ++i) {
      const TensorSpec& tensor = block.tensor(i);
      for (int update = 0; update <= i % 3; ++update) block.NextUpdate(i, 0.1, 1);
      if (block.w(i) != nullptr) fill(block.w(i), tensor.size());
      if (block.m(i) != nullptr) fill(block.m(i), tensor.size());
      if (block.v(i) != nullptr) fill(block.v(i), tensor.rows);
    }
  }

  // To the folder `name`; returns the file.
  std::unique_ptr<SafetensorsFile> Write(ParameterBlock& block, const std::string& name) {
    const std::string folder = ::testing::TempDir() + "/parameter_block_" + name;
    std::filesystem::create_directories(folder);
    const auto written =
        testing::WriteNow(block, {.folder = folder, .job = "made", .step = 2});
    EXPECT_TRUE(written.ok()) << written.status();
    auto file = SafetensorsFile::Open(folder + "/" + written->file());
    EXPECT_TRUE(file.ok()) << file.status();
    // The digests of a file are those of what the block holds, and of the bytes in it.
    const std::vector<v1::TensorDigest> digests = block.Digests();
    EXPECT_EQ(written->tensors_size(), static_cast<int>(digests.size()));
    for (size_t i = 0; i < digests.size(); ++i) {
      EXPECT_EQ(written->tensors(static_cast<int>(i)).sha256(), digests[i].sha256());
    }
    return *std::move(file);
  }

  // "dtype [shape]" of the entries of one tensor, by what follows its name.
  static std::map<std::string, std::string> EntriesOf(const SafetensorsFile& file,
                                                      const std::string& tensor) {
    std::map<std::string, std::string> entries;
    for (const SafetensorsEntry& entry : file.entries()) {
      if (!entry.name.starts_with(tensor)) continue;
      std::string& text = entries[entry.name.substr(tensor.size())];
      text = entry.dtype;
      for (int64_t extent : entry.shape) text += " " + std::to_string(extent);
    }
    return entries;
  }

  // With room for what group 0 has.
  std::unique_ptr<CapacityTier> MakeTier(const v1::Job& job) {
    const ModelPlan plan = MakeModelPlan(job);
    for (const ShardSpec& spec : plan.shards) {
      if (spec.id != "layer1/group0") continue;
      const int64_t bytes = ParameterBlock::AddressBytes(plan, spec, job);
      auto tier = CapacityTier::Create(
          {.folder = ::testing::TempDir(), .disk_bytes = bytes}, bytes);
      EXPECT_TRUE(tier.ok()) << tier.status();
      return *std::move(tier);
    }
    return nullptr;
  }

  std::vector<char> Parameters(const ParameterBlock& block, int i) {
    const bool halves = block.tensor(i).bfloat16;
    std::vector<char> bytes(block.tensor(i).size() * (halves ? 2 : 4));
    backend_->Download(halves ? static_cast<const void*>(block.w16(i)) : block.w(i),
                       bytes.data(), bytes.size());
    return bytes;
  }

  static std::string RangesOf(const ParameterBlock& block) {
    std::string text;
    for (const v1::UntouchedTensors& range : block.Untouched()) {
      text += std::to_string(range.first()) + "+" + std::to_string(range.count()) + " ";
    }
    return text;
  }

  std::unique_ptr<Backend> backend_;
};

TEST_F(ParameterBlockTest, KeepsWhatTheOptimizerNeeds) {
  // 3 experts with [5, 7] and [7, 5].
  const auto plain = Make(JobWith("sgd {}"));
  EXPECT_EQ(StatusOf(*plain).parameter_bytes(), 3 * 2 * 35 * 4u);
  EXPECT_EQ(StatusOf(*plain).optimizer_bytes(), 0u);
  EXPECT_EQ(plain->m(0), nullptr);
  EXPECT_EQ(plain->v(0), nullptr);
  const auto full = Make(JobWith("adam {}"));
  EXPECT_EQ(StatusOf(*full).optimizer_bytes(), 2 * StatusOf(*full).parameter_bytes());
  const auto no_first = Make(JobWith("adam { beta1: 0 }"));
  EXPECT_EQ(StatusOf(*no_first).optimizer_bytes(), StatusOf(*no_first).parameter_bytes());
  EXPECT_EQ(no_first->m(0), nullptr);
  const auto factored = Make(JobWith(kFactored));
  EXPECT_EQ(StatusOf(*factored).optimizer_bytes(), 3 * 2 * (5 + 7) * 4u);
  EXPECT_EQ(factored->NextUpdate(0, 1, 1).second_moment, SecondMoment::kFactored);
  const auto by_row =
      Make(JobWith("adam { beta1: 0 second_moment: SECOND_MOMENT_PER_ROW }"));
  EXPECT_EQ(StatusOf(*by_row).optimizer_bytes(), 3 * (5 + 7) * 4u);
  const auto halves = Make(JobWith(kFactored, /*bfloat16=*/true));
  EXPECT_EQ(StatusOf(*halves).parameter_bytes(), 3 * 2 * 35 * 2u);
  EXPECT_EQ(StatusOf(*halves).optimizer_bytes(), StatusOf(*factored).optimizer_bytes());
  EXPECT_EQ(halves->w(0), nullptr);
  EXPECT_NE(halves->w16(0), nullptr);
}

TEST_F(ParameterBlockTest, TheExpertsOptimizerIsNotThatOfAGroupsGate) {
  const auto block = Make(JobWith(kFactored, /*bfloat16=*/true, /*hierarchical=*/true));
  // wg and wnoise [5, 3] are floats with both moments.
  EXPECT_EQ(StatusOf(*block).parameter_bytes(), 2 * 15 * 4 + 3 * 2 * 35 * 2u);
  EXPECT_EQ(StatusOf(*block).optimizer_bytes(), 2 * 15 * 8 + 3 * 2 * (5 + 7) * 4u);
  EXPECT_EQ(block->NextUpdate(0, 1, 1).adam.beta1, 0.9f);
  EXPECT_EQ(block->NextUpdate(2, 1, 1).adam.beta1, 0);
}

TEST_F(ParameterBlockTest, VectorsKeepTheirSecondMomentInFull) {
  const auto block =
      Make(JobWith("adam { beta1: 0 second_moment: SECOND_MOMENT_PER_ROW }"), "dense/1");
  int vectors = 0;
  for (int i = 0; i < block->tensors(); ++i) {
    vectors += block->tensor(i).rows == 1;
    EXPECT_EQ(block->NextUpdate(i, 1, 1).second_moment,
              block->tensor(i).rows == 1 ? SecondMoment::kFull : SecondMoment::kPerRow);
  }
  EXPECT_GT(vectors, 0);
}

TEST_F(ParameterBlockTest, ATensorWithARateOfItsOwnHasNoMoments) {
  v1::Job job = JobWith("adam {}");
  job.mutable_training()->set_dense_shards(1);
  job.mutable_model()
      ->mutable_layers(testing::kLayer)
      ->mutable_moe()
      ->set_gating(v1::GATING_STRICTLY_BALANCED);
  const auto block = Make(job, "dense/0");
  int found = 0;
  for (int i = 0; i < block->tensors(); ++i) {
    const bool own = block->tensor(i).own_rate > 0;
    found += own;
    EXPECT_EQ(block->m(i) == nullptr, own);
    EXPECT_EQ(block->v(i) == nullptr, own);
  }
  EXPECT_EQ(found, 1);
  EXPECT_EQ(StatusOf(*block).optimizer_bytes(), 8u * (block->size() - testing::kExperts));
}

TEST_F(ParameterBlockTest, EntriesOfAFileByOptimizer) {
  using Entries = std::map<std::string, std::string>;
  const std::string w1 = "layer1.moe.expert1.w1";
  const auto entries = [&](const std::string& optimizer, bool bfloat16) {
    const auto block = Make(JobWith(optimizer, bfloat16));
    Disturb(*block);
    return EntriesOf(*Write(*block, "entries"), w1);
  };
  EXPECT_EQ(entries("sgd {}", false), (Entries{{"", "F32 5 7"}}));
  EXPECT_EQ(entries("adam {}", true),
            (Entries{{"", "BF16 5 7"}, {"#m", "F32 5 7"}, {"#v", "F32 5 7"}}));
  EXPECT_EQ(entries(kFactored, true),
            (Entries{{"", "BF16 5 7"}, {"#v.rows", "F32 5"}, {"#v.cols", "F32 7"}}));
  EXPECT_EQ(entries("adam { beta1: 0 second_moment: SECOND_MOMENT_PER_ROW }", false),
            (Entries{{"", "F32 5 7"}, {"#v.rows", "F32 5"}}));
}

TEST_F(ParameterBlockTest, AFileRestoresTheStateThatWasWritten) {
  int number = 0;
  for (const char* optimizer : {"sgd {}", "adam {}", kFactored,
                                "adam { second_moment: SECOND_MOMENT_PER_ROW }"}) {
    for (bool bfloat16 : {false, true}) {
      for (bool hierarchical : {false, true}) {
        const v1::Job job = JobWith(optimizer, bfloat16, hierarchical);
        const auto written = Make(job);
        Disturb(*written);
        const std::string name = "state" + std::to_string(number++);
        const auto file = Write(*written, name);
        const auto restored = Make(job);
        ASSERT_TRUE(restored->Restore(*file).ok()) << restored->Restore(*file);
        // What it writes has the same bytes: parameters, moments and counts.
        const auto again = Write(*restored, name + "again");
        ASSERT_EQ(again->entries().size(), file->entries().size());
        EXPECT_EQ(again->metadata(), file->metadata());
        for (size_t i = 0; i < file->entries().size(); ++i) {
          const SafetensorsEntry &a = file->entries()[i], &b = again->entries()[i];
          EXPECT_EQ(a.name, b.name);
          EXPECT_EQ(*file->Read(a), *again->Read(b)) << a.name;
        }
        for (int i = 0; i < restored->tensors(); ++i) {
          EXPECT_EQ(restored->count(i), 1 + i % 3);
        }
      }
    }
  }
}

TEST_F(ParameterBlockTest, RefusesAFileOfAnotherOptimizer) {
  const auto refusal = [&](const v1::Job& of, const v1::Job& to) {
    const auto block = Make(of);
    Disturb(*block);
    const auto file = Write(*block, "other");
    return std::string(Make(to)->Restore(*file).message());
  };
  const std::string same = "is the file of a job with the same model and optimizer?";
  EXPECT_THAT(
      refusal(JobWith("adam {}"), JobWith(kFactored)),
      AllOf(HasSubstr("layer1-group0.safetensors"),
            HasSubstr("no entry \"layer1.moe.expert0.w1#v.rows\""), HasSubstr(same)));
  EXPECT_THAT(refusal(JobWith(kFactored), JobWith("adam {}")),
              HasSubstr("no entry \"layer1.moe.expert0.w1#m\""));
  EXPECT_THAT(refusal(JobWith("adam {}"), JobWith("adam { beta1: 0 }")),
              AllOf(HasSubstr("has an entry \"layer1.moe.expert0.w1#m\", for "
                              "which this job has no use"),
                    HasSubstr(same)));
  EXPECT_THAT(refusal(JobWith(kFactored),
                      JobWith("adam { beta1: 0 second_moment: SECOND_MOMENT_PER_ROW }")),
              HasSubstr("has an entry \"layer1.moe.expert0.w1#v.cols\""));
  EXPECT_THAT(refusal(JobWith("sgd {}"), JobWith("sgd {}", /*bfloat16=*/true)),
              HasSubstr("layer1.moe.expert0.w1 is F32 [5, 7] instead of BF16 [5, 7]"));
}

TEST_F(ParameterBlockTest, Bfloat16StartsWithTheNearest) {
  const v1::Job job = JobWith("sgd {}", /*bfloat16=*/true);
  const auto block = Make(job);
  for (int i = 0; i < block->tensors(); ++i) {
    const TensorSpec& tensor = block->tensor(i);
    std::vector<float> exact(tensor.size());
    FillInitialValues(job.seed(), tensor, exact.data());
    std::vector<Bfloat16> got(tensor.size());
    backend_->Download(block->w16(i), got.data(), got.size() * sizeof(Bfloat16));
    for (size_t j = 0; j < got.size(); ++j) {
      EXPECT_EQ(got[j], ToBfloat16(exact[j]));
      EXPECT_NEAR(ToFloat(got[j]), exact[j], 0x1p-8 * std::abs(exact[j]));
    }
  }
}

// By seed, tensor and update.
TEST_F(ParameterBlockTest, EveryUpdateHasRandomBitsOfItsOwn) {
  v1::Job job = JobWith("sgd {}", /*bfloat16=*/true);
  std::vector<RandomKey> keys;
  for (uint64_t seed : {5, 6}) {
    job.set_seed(seed);
    const auto block = Make(job);
    for (int i : {0, 1}) {
      for (int update = 0; update < 2; ++update) {
        keys.push_back(block->NextUpdate(i, 1, 1).rounding);
      }
    }
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_FALSE(keys[i] == keys[j]) << i << " " << j;
  }
  EXPECT_EQ(keys[0], Make(JobWith("sgd {}", true))->NextUpdate(0, 1, 1).rounding);
}

// ---- the capacity tier

TEST_F(ParameterBlockTest, UntouchedExpertsHaveNoBytes) {
  for (bool bfloat16 : {false, true}) {
    for (const char* optimizer : {"sgd {}", "adam {}", kFactored}) {
      for (bool hierarchical : {false, true}) {
        const v1::Job job = JobWith(optimizer, bfloat16, hierarchical);
        const auto in_memory = Make(job);
        const auto tier = MakeTier(job);
        const auto mapped = Make(job, "layer1/group0", tier.get());
        EXPECT_EQ(tier->allocated(), 0);
        uint64_t expert_bytes = 0;
        for (int i = 0; i < mapped->tensors(); ++i) {
          const bool expert = mapped->tensor(i).of_expert;
          EXPECT_EQ(mapped->has_memory(i), !expert);
          if (expert) ++expert_bytes;
        }
        ASSERT_GT(expert_bytes, 0u);
        EXPECT_EQ(StatusOf(*mapped).mapped_bytes(), 0u);
        const uint64_t all = StatusOf(*in_memory).parameter_bytes() +
                             StatusOf(*in_memory).optimizer_bytes();
        EXPECT_EQ(StatusOf(*mapped).parameter_bytes() +
                      StatusOf(*mapped).optimizer_bytes() +
                      StatusOf(*mapped).untouched_bytes(),
                  all);
        for (int i = 0; i < mapped->tensors(); ++i) {
          ASSERT_TRUE(mapped->Touch(i).ok());
          EXPECT_TRUE(mapped->has_memory(i));
          EXPECT_EQ(Parameters(*mapped, i), Parameters(*in_memory, i));
          for (auto* moment : {mapped->m(i), mapped->v(i)}) {
            if (moment != nullptr) {
              EXPECT_EQ(moment[0], 0);
            }
          }
        }
        EXPECT_EQ(StatusOf(*mapped).untouched_bytes(), 0u);
        EXPECT_GT(tier->allocated(),
                  static_cast<int64_t>(StatusOf(*mapped).mapped_bytes()));
      }
    }
  }
}

TEST_F(ParameterBlockTest, FilesHaveWhatWasUpdatedOnlyAndLoadAnywhere) {
  const v1::Job job = JobWith("adam {}");
  const auto tier = MakeTier(job);
  const auto mapped = Make(job, "layer1/group0", tier.get());
  // 3 experts of two matrices each; the second has been computed with but not updated.
  const int64_t first = mapped->tensor(0).index;
  for (int i : {0, 1, 2, 3}) ASSERT_TRUE(mapped->Touch(i).ok());
  for (int i : {0, 1}) {
    mapped->NextUpdate(i, 1, 1);
    mapped->w(i)[3] = 5;
    mapped->m(i)[2] = 6;
    mapped->v(i)[1] = 7;
  }
  const std::string untouched = std::to_string(first + 2) + "+4 ";
  EXPECT_EQ(RangesOf(*mapped), untouched);
  const auto file = Write(*mapped, "touched");
  EXPECT_EQ(file->entries().size(), 2u * 3);
  EXPECT_EQ(mapped->Digests().size(), 2u);

  const auto other_tier = MakeTier(job);
  for (CapacityTier* where : {static_cast<CapacityTier*>(nullptr), other_tier.get()}) {
    const auto restored = Make(job, "layer1/group0", where);
    ASSERT_TRUE(restored->Restore(*file).ok());
    EXPECT_EQ(RangesOf(*restored), untouched);
    EXPECT_EQ(restored->has_memory(2), where == nullptr);
    for (int i : {0, 1}) {
      EXPECT_EQ(restored->count(i), 1);
      EXPECT_EQ(restored->w(i)[3], 5);
      EXPECT_EQ(restored->m(i)[2], 6);
      EXPECT_EQ(restored->v(i)[1], 7);
    }
    for (int i = 0; i < restored->tensors(); ++i) {
      ASSERT_TRUE(restored->Touch(i).ok());
      EXPECT_EQ(restored->m(i)[0], 0);
      if (i >= 4) {
        EXPECT_EQ(Parameters(*restored, i), Parameters(*Make(job), i));
      }
    }
    EXPECT_EQ(restored->Digests()[1].sha256(), mapped->Digests()[1].sha256());
    if (where == nullptr) continue;
    EXPECT_EQ(tier->allocated(), where->allocated() * 2 / 3);
  }
  EXPECT_EQ(other_tier->allocated(), 0) << "the block is gone";
}

TEST_F(ParameterBlockTest, ATierThatIsFullSaysWhichTensorItIsFullFor) {
  const v1::Job job = JobWith("adam {}");
  auto tier = CapacityTier::Create({.folder = ::testing::TempDir(), .disk_bytes = 4096},
                                   int64_t{1} << 20);
  ASSERT_TRUE(tier.ok());
  const auto mapped = Make(job, "layer1/group0", tier->get());
  ASSERT_TRUE(mapped->Touch(0).ok());
  const absl::Status status = mapped->Touch(1);
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr(mapped->tensor(1).name));
  EXPECT_FALSE(mapped->has_memory(1));
}

}  // namespace
}  // namespace moe
