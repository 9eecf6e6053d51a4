#include "common/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/io/file.h"
#include "common/io/sha256.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class ManifestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = absl::StrCat(testing::TempDir(), "/manifest_",
                        testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }

  // A checkpoint of one shard file.
  Checkpoint Write(uint64_t step, double validation_perplexity) {
    Checkpoint checkpoint;
    checkpoint.folder = absl::StrCat(dir_, "/", StepFolderName(step));
    fs::create_directories(checkpoint.folder);
    const std::string contents = absl::StrCat("contents of step ", step);
    EXPECT_TRUE(
        WriteFileAtomically(checkpoint.folder + "/dense-0.safetensors", contents).ok());
    v1::Manifest& manifest = checkpoint.manifest;
    manifest.set_format_version(kManifestVersion);
    manifest.set_job_name("tiny");
    manifest.set_job("name: \"tiny\"");
    manifest.set_step(step);
    manifest.set_validation_perplexity(validation_perplexity);
    v1::ShardFile* shard = manifest.add_shards();
    shard->set_shard("dense/0");
    shard->set_file(ShardFileName("dense/0"));
    shard->set_bytes(contents.size());
    shard->set_sha256(Sha256Hex(contents));
    v1::TensorDigest* tensor = shard->add_tensors();
    tensor->set_name("embedding");
    tensor->set_sha256(Sha256Hex("embedding"));
    EXPECT_TRUE(WriteManifest(checkpoint.folder, manifest).ok());
    return checkpoint;
  }

  std::string dir_;
};

TEST_F(ManifestTest, Names) {
  EXPECT_EQ(StepFolderName(120), "step-00000120");
  EXPECT_EQ(ShardFileName("layer1/group0"), "layer1-group0.safetensors");
  EXPECT_EQ(StepFolderName(1234567890), "step-1234567890");
  EXPECT_EQ(CutFolderName(120, 3), "step-00000120.generation-3");
}

TEST_F(ManifestTest, KnowsItsFoldersByName) {
  for (const char* name :
       {"step-120", "step-0000012x", "step-", "step", "checkpoint", "step-00000120.tmp",
        "step-00000120.generation-", "step-00000120.generation-x",
        "step-00000120.generation-03", "step-00000120.generation-3.generation-3"}) {
    fs::create_directories(dir_ + "/" + name);
  }
  EXPECT_TRUE(ListUncommitted(dir_)->empty());
  EXPECT_TRUE(ListCheckpoints(dir_)->empty());
}

TEST_F(ManifestTest, ACutIsNoCheckpoint) {
  const std::string cut = dir_ + "/" + CutFolderName(10, 2);
  const Checkpoint checkpoint = Write(10, 0);
  fs::rename(checkpoint.folder, cut);
  EXPECT_TRUE(ListCheckpoints(dir_)->empty()) << "though it has its manifest";
  ASSERT_EQ(ListUncommitted(dir_)->size(), 1);
  ASSERT_TRUE(RenameFolder(cut, checkpoint.folder).ok());
  EXPECT_EQ(ListCheckpoints(dir_)->size(), 1);
  EXPECT_TRUE(ListUncommitted(dir_)->empty());
}

TEST_F(ManifestTest, ReadsWhatItWrote) {
  const Checkpoint written = Write(7, 123.456789012345);
  const auto read = ReadManifest(written.folder);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->SerializeAsString(), written.manifest.SerializeAsString());
  EXPECT_TRUE(VerifyContents(written.folder, *read).ok());
}

TEST_F(ManifestTest, FolderWithoutManifestIsNoCheckpoint) {
  EXPECT_EQ(ReadManifest(dir_).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ManifestTest, FindsDamage) {
  const Checkpoint checkpoint = Write(7, 0);
  const std::string file = checkpoint.folder + "/dense-0.safetensors";

  ASSERT_TRUE(WriteFileAtomically(file, "contents of step 8").ok());
  EXPECT_TRUE(VerifySizes(checkpoint.folder, checkpoint.manifest).ok());
  absl::Status status = VerifyContents(checkpoint.folder, checkpoint.manifest);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("dense-0.safetensors: is damaged"));

  ASSERT_TRUE(WriteFileAtomically(file, "short").ok());
  status = VerifySizes(checkpoint.folder, checkpoint.manifest);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("has 5 bytes, the manifest says 18"));

  fs::remove(file);
  status = VerifySizes(checkpoint.folder, checkpoint.manifest);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(file));
}

TEST_F(ManifestTest, RefusesDamagedManifests) {
  const Checkpoint checkpoint = Write(7, 0);
  const auto expect_refused = [&](const std::string& json, const std::string& why) {
    ASSERT_TRUE(WriteFileAtomically(ManifestPath(checkpoint.folder), json).ok());
    const absl::Status status = ReadManifest(checkpoint.folder).status();
    EXPECT_FALSE(status.ok()) << json;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    EXPECT_THAT(std::string(status.message()), HasSubstr("manifest.json"));
    EXPECT_FALSE(ListCheckpoints(dir_).ok());
  };
  const std::string json = *ReadFile(ManifestPath(checkpoint.folder));
  expect_refused(json.substr(0, json.size() / 2), "is no manifest");
  expect_refused("", "is no manifest");
  expect_refused("{}", "format version 0");
  expect_refused(R"({"format_version": 1})", "no shards");
  expect_refused(
      R"({"format_version": 1, "shards": [{"shard": "dense/0", "file": "../x"}]})",
      "\"../x\"");
  expect_refused(
      R"({"format_version": 1, "shards": [{"shard": "dense/0", "file": "x"}]})",
      "no SHA-256");
}

// Whatever is there: most of it decides nothing today.
TEST_F(ManifestTest, RefusesEveryFlippedBit) {
  const Checkpoint checkpoint = Write(7, 12.5);
  const std::string path = ManifestPath(checkpoint.folder);
  const std::string good = *ReadFile(path);
  const std::string written = checkpoint.manifest.SerializeAsString();
  int harmless = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] ^= 1 << bit;
      std::ofstream(path) << bad;
      const absl::StatusOr<v1::Manifest> read = ReadManifest(checkpoint.folder);
      if (!read.ok()) continue;
      // White space, or a number's other spelling.
      EXPECT_EQ(read->SerializeAsString(), written) << i << " " << bit;
      ++harmless;
    }
  }
  EXPECT_LT(harmless, static_cast<int>(good.size()));
}

TEST_F(ManifestTest, ReadsManifestsWithoutAChecksum) {
  const Checkpoint checkpoint = Write(7, 12.5);
  const std::string path = ManifestPath(checkpoint.folder);
  std::string json = *ReadFile(path);
  const size_t begin = json.rfind(",");
  ASSERT_NE(json.find("\"sha256\"", begin), json.npos);
  json.erase(begin, json.rfind('}') - begin);
  std::ofstream(path) << json;
  const auto read = ReadManifest(checkpoint.folder);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->SerializeAsString(), checkpoint.manifest.SerializeAsString());
}

// Not to be seen isn't to be absent: what is absent may be deleted.
TEST_F(ManifestTest, WhatCannotBeSeenIsNoUncommittedCut) {
  const Checkpoint checkpoint = Write(7, 12.5);
  const std::string path = ManifestPath(checkpoint.folder);
  fs::remove(path);
  fs::create_symlink(path, path);
  const auto uncommitted = ListUncommitted(dir_);
  EXPECT_FALSE(uncommitted.ok());
  EXPECT_THAT(std::string(uncommitted.status().message()), HasSubstr("cannot list"));
}

TEST_F(ManifestTest, ListsLastAndBest) {
  EXPECT_TRUE(ListCheckpoints(dir_ + "/none")->empty());
  EXPECT_EQ(LastCheckpoint({}), nullptr);
  EXPECT_EQ(BestCheckpoint({}), nullptr);

  Write(30, 90);
  Write(10, 70);
  Write(20, 70);
  Write(40, 0);
  fs::create_directories(dir_ + "/step-00000050");
  fs::create_directories(dir_ + "/coordinator");
  const auto checkpoints = ListCheckpoints(dir_);
  ASSERT_TRUE(checkpoints.ok()) << checkpoints.status();
  std::vector<uint64_t> steps;
  for (const Checkpoint& checkpoint : *checkpoints)
    steps.push_back(checkpoint.manifest.step());
  EXPECT_THAT(steps, testing::ElementsAre(10, 20, 30, 40));
  EXPECT_EQ(LastCheckpoint(*checkpoints)->manifest.step(), 40);
  EXPECT_EQ(BestCheckpoint(*checkpoints)->manifest.step(), 20);
  const auto uncommitted = ListUncommitted(dir_);
  ASSERT_TRUE(uncommitted.ok()) << uncommitted.status();
  ASSERT_EQ(uncommitted->size(), 1);
  EXPECT_EQ(uncommitted->front().path, dir_ + "/step-00000050");
  EXPECT_EQ(uncommitted->front().step, 50);
}

TEST(ModelDigestTest, IsTheHashOfTheRawHashes) {
  const std::vector<std::string> hashes = {Sha256Hex("a"), Sha256Hex("b")};
  const std::string raw =
      absl::HexStringToBytes(hashes[0]) + absl::HexStringToBytes(hashes[1]);
  EXPECT_EQ(*ModelDigest(hashes), Sha256Hex(raw));
  EXPECT_FALSE(ModelDigest(std::vector<std::string>{"abc"}).ok());
}

TEST(ModelDigestTest, OrdersTensorsAndMissesNone) {
  const auto tensor = [](uint64_t index, const std::string& contents) {
    v1::TensorDigest digest;
    digest.set_tensor(index);
    digest.set_name(absl::StrCat("t", index));
    digest.set_sha256(Sha256Hex(contents));
    return digest;
  };
  using Tensors = std::vector<v1::TensorDigest>;
  EXPECT_EQ(*ModelDigest(Tensors{tensor(1, "b"), tensor(0, "a")}, {}),
            *ModelDigest(std::vector<std::string>{Sha256Hex("a"), Sha256Hex("b")}));
  EXPECT_THAT(
      std::string(
          ModelDigest(Tensors{tensor(2, "c"), tensor(0, "a")}, {}).status().message()),
      HasSubstr("tensor 1 is missing"));
  EXPECT_THAT(
      std::string(
          ModelDigest(Tensors{tensor(0, "a"), tensor(0, "a")}, {}).status().message()),
      HasSubstr("t0: tensor 0 is there twice"));

  // Untouched tensors, however they are cut into ranges.
  const auto range = [](uint64_t first, uint64_t count, uint64_t seed = 7) {
    v1::UntouchedTensors untouched;
    untouched.set_first(first);
    untouched.set_count(count);
    untouched.set_seed(seed);
    return untouched;
  };
  using Ranges = std::vector<v1::UntouchedTensors>;
  const std::string digest =
      *ModelDigest(Tensors{tensor(2, "c")}, Ranges{range(3, 2), range(0, 2)});
  EXPECT_EQ(digest,
            *ModelDigest(std::vector<std::string>{
                Sha256Hex("untouched 0 7"), Sha256Hex("untouched 1 7"), Sha256Hex("c"),
                Sha256Hex("untouched 3 7"), Sha256Hex("untouched 4 7")}));
  EXPECT_EQ(*ModelDigest(Tensors{tensor(2, "c")},
                         Ranges{range(0, 1), range(3, 2), range(1, 1)}),
            digest);
  EXPECT_NE(*ModelDigest(Tensors{tensor(2, "c")}, Ranges{range(3, 2, 8), range(0, 2, 8)}),
            digest);
  for (const auto& [ranges, error] :
       {std::pair(Ranges{range(0, 3)}, "tensor 2 is there twice"),
        std::pair(Ranges{range(0, 1)}, "tensor 1 is missing"),
        std::pair(Ranges{range(0, 2), range(4, 1)}, "tensor 3 is missing"),
        std::pair(Ranges{range(0, uint64_t{1} << 60)},
                  "1152921504606846976 untouched")}) {
    EXPECT_THAT(
        std::string(ModelDigest(Tensors{tensor(2, "c")}, ranges).status().message()),
        HasSubstr(error));
  }
}

}  // namespace
}  // namespace moe
