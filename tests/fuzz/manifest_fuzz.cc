// Manifests of checkpoints: refused, or such that their files lie in their folder; and the digest of
// what servers say of their tensors.
#include <glog/logging.h>
#include <stdlib.h>

#include <fstream>

#include "common/checkpoint/manifest.h"
#include "proto/moe/v1/status.pb.h"
#include "tests/fuzz/target.h"

namespace moe::fuzz {
namespace {

const std::string& Folder() {
  static const std::string* const folder = [] {
    const char* const parent = getenv("TEST_TMPDIR");
    std::string path =
        std::string(parent == nullptr ? "/tmp" : parent) + "/manifest.XXXXXX";
    CHECK(mkdtemp(path.data()) != nullptr) << path;
    return new std::string(path);
  }();
  return *folder;
}

std::string Manifest(const std::string& file) {
  return R"({"format_version": 1, "step": "3", "job_name": "a", "shards": [)"
         R"({"shard": "dense/0", "file": ")" +
         file + R"(", "bytes": "8", "sha256": ")" + std::string(64, 'a') +
         R"("}], "validation_perplexity": 3.5})";
}

void TryManifest(std::string_view json) {
  std::ofstream(ManifestPath(Folder()), std::ios::binary) << json;
  const absl::StatusOr<v1::Manifest> manifest = ReadManifest(Folder());
  if (!manifest.ok()) {
    CHECK(absl::IsDataLoss(manifest.status()) ||
          absl::IsFailedPrecondition(manifest.status()))
        << manifest.status();
    return;
  }
  for (const v1::ShardFile& shard : manifest->shards()) {
    CHECK(shard.file().find('/') == std::string::npos && shard.file() != "." &&
          shard.file() != "..")
        << shard.file();
  }
  CHECK(!VerifySizes(Folder(), *manifest).ok()) << "there is no shard file";
  CHECK(WriteManifest(Folder(), *manifest).ok());
  const absl::StatusOr<v1::Manifest> again = ReadManifest(Folder());
  CHECK(again.ok()) << again.status();
}

void TryDigest(std::string_view bytes) {
  v1::GetTensorDigestsResponse response;
  if (!response.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  for (v1::UntouchedTensors& range : *response.mutable_untouched()) {
    // A million digests take a second.
    range.set_count(range.count() % 2000);
  }
  const absl::StatusOr<std::string> digest =
      ModelDigest({response.tensors().begin(), response.tensors().end()},
                  std::vector<v1::UntouchedTensors>(response.untouched().begin(),
                                                    response.untouched().end()));
  if (digest.ok()) CHECK_EQ(digest->size(), 64);
}

}  // namespace

std::map<std::string, std::string> Seeds() {
  v1::GetTensorDigestsResponse digests;
  for (const uint64_t tensor : {2, 0}) {
    v1::TensorDigest& digest = *digests.add_tensors();
    digest.set_tensor(tensor);
    digest.set_name("t");
    digest.set_sha256(std::string(64, 'b'));
  }
  digests.add_untouched()->set_first(1);
  digests.mutable_untouched(0)->set_count(1);
  return {{"manifest", "m" + Manifest("dense-0.safetensors")},
          {"elsewhere", "m" + Manifest("../x")},
          {"parent", "m" + Manifest("..")},
          {"nested", "m" + std::string(200, '[')},
          {"empty", "m"},
          {"digests", "d" + digests.SerializeAsString()}};
}

}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  moe::fuzz::Reader input(data, size);
  if (input.Take<char>() == 'd') {
    moe::fuzz::TryDigest(input.Rest());
  } else {
    moe::fuzz::TryManifest(input.Rest());
  }
  return 0;
}
