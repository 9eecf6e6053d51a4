#include "client/moectl/checkpoint_digest.h"

#include <filesystem>
#include <vector>

#include "common/checkpoint/manifest.h"
#include "common/io/file.h"
#include "common/io/safetensors.h"
#include "common/io/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

class CheckpointDigestTest : public testing::Test {
 protected:
  CheckpointDigestTest() {
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(folder_);
    manifest_.set_format_version(kManifestVersion);
    manifest_.set_step(12);
    // The logical order goes across the files.
    AddShard("dense/0", {{0, "embedding"}, {2, "softmax.w"}});
    AddShard("layer0/group0", {{1, "layer0.moe.expert0.w1"}});
    std::vector<v1::TensorDigest> tensors;
    for (const v1::ShardFile& shard : manifest_.shards()) {
      tensors.insert(tensors.end(), shard.tensors().begin(), shard.tensors().end());
    }
    digest_ = ModelDigest(tensors, {}).value();
    manifest_.set_digest(digest_);
  }

  void AddShard(const std::string& id,
                std::vector<std::pair<uint64_t, std::string>> tensors) {
    v1::ShardFile& shard = *manifest_.add_shards();
    shard.set_shard(id);
    shard.set_file(ShardFileName(id));
    std::vector<std::vector<float>> data;
    std::vector<SafetensorsEntry> entries;
    for (const auto& [number, _] : tensors) {
      data.push_back({1.5f + static_cast<float>(number), -2.0f, 0.25f});
    }
    for (size_t i = 0; i < tensors.size(); ++i) {
      entries.push_back({.name = tensors[i].second,
                         .dtype = "F32",
                         .shape = {3, 1},
                         .data = data[i].data(),
                         .bytes = 12});
      v1::TensorDigest& digest = *shard.add_tensors();
      digest.set_tensor(tensors[i].first);
      digest.set_name(tensors[i].second);
      digest.set_sha256(
          Sha256Hex(std::string_view(reinterpret_cast<const char*>(data[i].data()), 12)));
    }
    const std::string path = folder_ + "/" + shard.file();
    EXPECT_TRUE(WriteSafetensors(path, entries, {}).ok());
    shard.set_bytes(std::filesystem::file_size(path));
    shard.set_sha256(Sha256File(path).value());
  }

  absl::StatusOr<CheckpointDigest> Digest(const std::string& path) {
    EXPECT_TRUE(WriteManifest(folder_, manifest_).ok());
    return DigestCheckpoint(path);
  }

  const std::string root_ = testing::TempDir() + "/checkpoint_digest";
  const std::string folder_ = root_ + "/" + StepFolderName(12);
  v1::Manifest manifest_;
  std::string digest_;
};

TEST_F(CheckpointDigestTest, IsThatOfTheTensorsInLogicalOrder) {
  for (const std::string& path : {folder_, root_}) {
    const auto digest = Digest(path);
    ASSERT_TRUE(digest.ok()) << digest.status();
    EXPECT_EQ(digest->digest, digest_);
    EXPECT_EQ(digest->step, 12u);
    EXPECT_EQ(digest->tensors.size(), 3u);
  }
}

TEST_F(CheckpointDigestTest, AChangedFileIsRefused) {
  const std::string path = folder_ + "/" + ShardFileName("dense/0");
  std::string contents = ReadFile(path).value();
  contents.back() ^= 1;
  ASSERT_TRUE(WriteFileAtomically(path, contents).ok());
  const absl::Status status = Digest(folder_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("dense-0.safetensors"));
}

TEST_F(CheckpointDigestTest, AWrongTensorOrModelDigestIsRefused) {
  v1::TensorDigest& tensor = *manifest_.mutable_shards(1)->mutable_tensors(0);
  const std::string right = tensor.sha256();
  tensor.set_sha256(std::string(64, 'a'));
  EXPECT_THAT(std::string(Digest(folder_).status().message()),
              HasSubstr("tensor layer0.moe.expert0.w1 has SHA-256 " + right));
  tensor.set_sha256(right);
  manifest_.set_digest(std::string(64, 'b'));
  EXPECT_THAT(std::string(Digest(folder_).status().message()),
              HasSubstr("the digest is " + digest_ + ", but the manifest says bbb"));
}

TEST_F(CheckpointDigestTest, AFolderWithoutCheckpointsIsNotFound) {
  EXPECT_EQ(DigestCheckpoint(root_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(DigestCheckpoint(root_ + "/nowhere").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace moe
