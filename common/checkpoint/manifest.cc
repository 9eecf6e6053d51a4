#include "common/checkpoint/manifest.h"

#include <glog/logging.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/io/sha256.h"

namespace moe {
namespace fs = std::filesystem;

namespace {

constexpr char kStepPrefix[] = "step-";
constexpr char kGenerationInfix[] = ".generation-";
constexpr int kDigestBytes = 32;

// Of a model; what claims to be more is damaged.
constexpr uint64_t kMostTensors = 100'000'000;

bool IsHexDigest(const std::string& hex) {
  return hex.size() == 2 * kDigestBytes &&
         std::all_of(hex.begin(), hex.end(),
                     [](char c) { return absl::ascii_isxdigit(c); });
}

std::string Sha256Of(v1::Manifest manifest) {
  manifest.clear_sha256();
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream output(&stream);
    output.SetSerializationDeterministic(true);
    CHECK(manifest.SerializeToCodedStream(&output));
  }
  return Sha256Hex(bytes);
}

absl::Status CheckManifest(const v1::Manifest& manifest) {
  if (manifest.format_version() != kManifestVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("has format version ", manifest.format_version(),
                     ", this program reads ", kManifestVersion));
  }
  if (!manifest.sha256().empty() && manifest.sha256() != Sha256Of(manifest)) {
    return absl::DataLossError("is damaged: its SHA-256 isn't the one that it names");
  }
  if (manifest.shards().empty()) return absl::DataLossError("names no shards");
  for (const v1::ShardFile& shard : manifest.shards()) {
    // A manifest may come from elsewhere; its files stay in its folder.
    if (shard.file().empty() || shard.file() == "." || shard.file() == ".." ||
        shard.file() != fs::path(shard.file()).filename()) {
      return absl::DataLossError(absl::StrCat("shard ", shard.shard(),
                                              " has the file name \"", shard.file(),
                                              "\", which isn't one"));
    }
    if (!IsHexDigest(shard.sha256())) {
      return absl::DataLossError(
          absl::StrCat("shard ", shard.shard(), " has no SHA-256"));
    }
  }
  return absl::OkStatus();
}

struct StepName {
  uint64_t step = 0;
  // Of a cut.
  std::optional<uint64_t> generation;
};

std::optional<StepName> ParseStepName(const std::string& name) {
  const std::vector<std::string> parts = absl::StrSplit(name, kGenerationInfix);
  absl::string_view digits = parts[0];
  StepName parsed;
  if (!absl::ConsumePrefix(&digits, kStepPrefix) ||
      !absl::SimpleAtoi(digits, &parsed.step)) {
    return std::nullopt;
  }
  std::string canonical = StepFolderName(parsed.step);
  if (uint64_t generation = 0;
      parts.size() > 1 && absl::SimpleAtoi(parts[1], &generation)) {
    parsed.generation = generation;
    canonical = CutFolderName(parsed.step, generation);
  }
  if (canonical != name) return std::nullopt;
  return parsed;
}

absl::StatusOr<std::vector<StepFolder>> ListStepFolders(
    const std::string& checkpoint_dir) {
  std::vector<StepFolder> folders;
  std::error_code error;
  fs::directory_iterator entries(checkpoint_dir, error);
  if (error == std::errc::no_such_file_or_directory) return folders;
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::optional<StepName> name =
        ParseStepName(entries->path().filename().string());
    if (!name.has_value()) continue;
    const fs::file_status folder = fs::status(entries->path(), error);
    if (folder.type() == fs::file_type::none) break;
    error.clear();
    if (!fs::is_directory(folder)) continue;
    const std::string path = entries->path().string();
    // Not to be seen is no reason to take a checkpoint for none.
    const fs::file_status manifest = fs::status(ManifestPath(path), error);
    if (manifest.type() == fs::file_type::none) break;
    error.clear();
    folders.push_back(
        {name->step, path, !name->generation.has_value() && fs::exists(manifest)});
  }
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot list ", checkpoint_dir, ": ", error.message()));
  }
  std::sort(folders.begin(), folders.end(),
            [](const StepFolder& a, const StepFolder& b) { return a.step < b.step; });
  return folders;
}

}  // namespace

std::string StepFolderName(uint64_t step) { return absl::StrFormat("step-%08d", step); }

std::string CutFolderName(uint64_t step, uint64_t generation) {
  return absl::StrCat(StepFolderName(step), kGenerationInfix, generation);
}

std::string ShardFileName(const std::string& shard) {
  return absl::StrCat(absl::StrReplaceAll(shard, {{"/", "-"}}), ".safetensors");
}

std::string ManifestPath(const std::string& folder) {
  return absl::StrCat(folder, "/manifest.json");
}

absl::StatusOr<v1::Manifest> ReadManifest(const std::string& folder) {
  const std::string path = ManifestPath(folder);
  ASSIGN_OR_RETURN(const std::string json, ReadFile(path));
  v1::Manifest manifest;
  const auto parsed = google::protobuf::util::JsonStringToMessage(json, &manifest);
  if (!parsed.ok()) {
    return absl::DataLossError(
        absl::StrCat(path, ": is no manifest: ", parsed.ToString()));
  }
  RETURN_IF_ERROR(Annotate(CheckManifest(manifest), path));
  manifest.clear_sha256();
  return manifest;
}

absl::Status WriteManifest(const std::string& folder, const v1::Manifest& manifest) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  v1::Manifest written = manifest;
  written.set_sha256(Sha256Of(manifest));
  std::string json;
  const auto printed =
      google::protobuf::util::MessageToJsonString(written, &json, options);
  if (!printed.ok()) {
    return absl::InternalError(
        absl::StrCat("cannot print a manifest: ", printed.ToString()));
  }
  return WriteFileAtomically(ManifestPath(folder), json);
}

absl::Status VerifySizes(const std::string& folder, const v1::Manifest& manifest) {
  for (const v1::ShardFile& shard : manifest.shards()) {
    const std::string path = absl::StrCat(folder, "/", shard.file());
    std::error_code error;
    const uintmax_t bytes = fs::file_size(path, error);
    if (error) return absl::DataLossError(absl::StrCat(path, ": ", error.message()));
    if (bytes != shard.bytes()) {
      return absl::DataLossError(absl::StrCat(
          path, ": has ", bytes, " bytes, the manifest says ", shard.bytes()));
    }
  }
  return absl::OkStatus();
}

absl::Status VerifyContents(const std::string& folder, const v1::Manifest& manifest) {
  RETURN_IF_ERROR(VerifySizes(folder, manifest));
  for (const v1::ShardFile& shard : manifest.shards()) {
    const std::string path = absl::StrCat(folder, "/", shard.file());
    ASSIGN_OR_RETURN(const std::string sha256, Sha256File(path));
    if (sha256 != shard.sha256()) {
      return absl::DataLossError(absl::StrCat(path, ": is damaged: its SHA-256 is ",
                                              sha256, ", the manifest says ",
                                              shard.sha256()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Checkpoint>> ListCheckpoints(
    const std::string& checkpoint_dir) {
  ASSIGN_OR_RETURN(const std::vector<StepFolder> folders,
                   ListStepFolders(checkpoint_dir));
  std::vector<Checkpoint> checkpoints;
  for (const StepFolder& folder : folders) {
    if (!folder.committed) continue;
    ASSIGN_OR_RETURN(v1::Manifest manifest, ReadManifest(folder.path));
    checkpoints.push_back({folder.path, std::move(manifest)});
  }
  return checkpoints;
}

absl::StatusOr<Checkpoint> FindCheckpoint(const std::string& path) {
  absl::StatusOr<v1::Manifest> manifest = ReadManifest(path);
  if (manifest.ok()) return Checkpoint{path, *std::move(manifest)};
  if (!absl::IsNotFound(manifest.status())) return manifest.status();
  ASSIGN_OR_RETURN(const std::vector<Checkpoint> checkpoints, ListCheckpoints(path));
  const Checkpoint* last = LastCheckpoint(checkpoints);
  if (last == nullptr) {
    return absl::NotFoundError(absl::StrCat(path, " holds no checkpoint"));
  }
  return *last;
}

absl::StatusOr<std::vector<StepFolder>> ListUncommitted(
    const std::string& checkpoint_dir) {
  ASSIGN_OR_RETURN(std::vector<StepFolder> folders, ListStepFolders(checkpoint_dir));
  std::erase_if(folders, [](const StepFolder& folder) { return folder.committed; });
  return folders;
}

const Checkpoint* LastCheckpoint(std::span<const Checkpoint> checkpoints) {
  return checkpoints.empty() ? nullptr : &checkpoints.back();
}

const Checkpoint* BestCheckpoint(std::span<const Checkpoint> checkpoints) {
  const Checkpoint* best = nullptr;
  for (const Checkpoint& checkpoint : checkpoints) {
    const double perplexity = checkpoint.manifest.validation_perplexity();
    if (!std::isfinite(perplexity) || perplexity <= 0) continue;
    if (best == nullptr || perplexity <= best->manifest.validation_perplexity()) {
      best = &checkpoint;
    }
  }
  return best;
}

absl::StatusOr<std::string> ModelDigest(std::span<const std::string> tensor_sha256) {
  Sha256 digest;
  for (size_t i = 0; i < tensor_sha256.size(); ++i) {
    if (!IsHexDigest(tensor_sha256[i])) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", i, " has the SHA-256 \"", tensor_sha256[i], "\", which isn't one"));
    }
    digest.Update(absl::HexStringToBytes(tensor_sha256[i]));
  }
  return digest.Hex();
}

absl::StatusOr<std::string> ModelDigest(std::vector<v1::TensorDigest> tensors,
                                        std::vector<v1::UntouchedTensors> untouched) {
  std::sort(tensors.begin(), tensors.end(),
            [](const v1::TensorDigest& a, const v1::TensorDigest& b) {
              return a.tensor() < b.tensor();
            });
  std::sort(untouched.begin(), untouched.end(),
            [](const v1::UntouchedTensors& a, const v1::UntouchedTensors& b) {
              return a.first() < b.first();
            });
  std::vector<std::string> digests;
  const auto check_next = [&](uint64_t tensor) {
    if (tensor == digests.size()) return absl::OkStatus();
    return absl::FailedPreconditionError(
        tensor < digests.size() ? absl::StrCat("tensor ", tensor, " is there twice")
                                : absl::StrCat("tensor ", digests.size(), " is missing"));
  };
  auto range = untouched.begin();
  const auto add_untouched = [&](uint64_t before) {
    for (; range != untouched.end() && range->first() < before; ++range) {
      RETURN_IF_ERROR(check_next(range->first()));
      if (range->count() > kMostTensors) {
        return absl::FailedPreconditionError(absl::StrCat(
            range->count(), " untouched tensors from ", range->first(), " on"));
      }
      for (uint64_t i = 0; i < range->count(); ++i) {
        digests.push_back(Sha256Hex(
            absl::StrCat("untouched ", range->first() + i, " ", range->seed())));
      }
    }
    return absl::OkStatus();
  };
  for (const v1::TensorDigest& tensor : tensors) {
    RETURN_IF_ERROR(add_untouched(tensor.tensor()));
    RETURN_IF_ERROR(Annotate(check_next(tensor.tensor()), tensor.name()));
    digests.push_back(tensor.sha256());
  }
  RETURN_IF_ERROR(add_untouched(std::numeric_limits<uint64_t>::max()));
  return ModelDigest(std::span<const std::string>(digests));
}

}  // namespace moe
