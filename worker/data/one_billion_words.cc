#include "worker/data/one_billion_words.h"

#include <filesystem>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace moe {
namespace {

constexpr char kTrainingFolder[] = "training-monolingual.tokenized.shuffled";
constexpr char kHeldOutFolder[] = "heldout-monolingual.tokenized.shuffled";
constexpr int kTrainingShards = 100;  // the first of them is the held-out text
constexpr size_t kNamed = 3;          // missing files that an error names

std::string TrainingShard(int shard) {
  return absl::StrFormat("%s/news.en-%05d-of-%05d", kTrainingFolder, shard,
                         kTrainingShards);
}
std::string HeldOutShard(int shard) {
  return absl::StrFormat("%s/news.en.heldout-%05d-of-%05d", kHeldOutFolder, shard,
                         OneBillionWords::kHeldOutShards);
}

}  // namespace

absl::StatusOr<OneBillionWords> FindOneBillionWords(const std::string& folder,
                                                    int validation_shards) {
  if (validation_shards < 1 || validation_shards >= OneBillionWords::kHeldOutShards) {
    return absl::InvalidArgumentError(absl::StrCat("--validation_shards is ",
                                                   validation_shards, ": must be 1 to ",
                                                   OneBillionWords::kHeldOutShards - 1));
  }
  std::vector<std::string> missing;
  const auto find = [&](const std::string& name, std::vector<std::string>& paths) {
    paths.push_back((std::filesystem::path(folder) / name).string());
    std::error_code error;
    if (!std::filesystem::exists(paths.back(), error)) missing.push_back(name);
  };
  OneBillionWords files;
  for (int shard = 1; shard < kTrainingShards; ++shard)
    find(TrainingShard(shard), files.train);
  for (int shard = 1; shard <= validation_shards; ++shard)
    find(HeldOutShard(shard), files.validation);
  find(HeldOutShard(0), files.test);
  if (missing.empty()) return files;

  const size_t count = missing.size();
  if (count > kNamed) missing.resize(kNamed);
  return absl::NotFoundError(absl::StrCat(
      folder, " isn't the whole One Billion Word Benchmark: it has no ",
      absl::StrJoin(missing, ", "),
      count > kNamed ? absl::StrCat(" and ", count - kNamed, " more") : "",
      "; give the folder that its archive unpacks to, with ", TrainingShard(1), " to ",
      TrainingShard(kTrainingShards - 1), " and ", HeldOutShard(0), " to ",
      HeldOutShard(OneBillionWords::kHeldOutShards - 1)));
}

}  // namespace moe
