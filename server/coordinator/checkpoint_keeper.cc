#include "server/coordinator/checkpoint_keeper.h"

#include <glog/logging.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/base/human.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/io/file.h"
#include "common/job/placement.h"

namespace moe {
namespace {

absl::Status DeleteCheckpoint(const std::string& folder) {
  // The manifest first, for good: a folder that is half gone must not look like a checkpoint.
  RETURN_IF_ERROR(RemoveFile(ManifestPath(folder)));
  return RemoveTree(folder);
}

absl::Status DeleteSuperseded(const std::string& checkpoint_dir, uint64_t step,
                              int keep_last) {
  ASSIGN_OR_RETURN(const std::vector<Checkpoint> checkpoints,
                   ListCheckpoints(checkpoint_dir));
  const Checkpoint* best = BestCheckpoint(checkpoints);
  const auto old = static_cast<int64_t>(checkpoints.size()) - keep_last;
  for (int64_t i = 0; i < old; ++i) {
    if (&checkpoints[i] == best) continue;
    RETURN_IF_ERROR(DeleteCheckpoint(checkpoints[i].folder));
  }
  ASSIGN_OR_RETURN(const std::vector<StepFolder> uncommitted,
                   ListUncommitted(checkpoint_dir));
  for (const StepFolder& folder : uncommitted) {
    // A later one may be a cut that servers are writing.
    if (folder.step <= step) RETURN_IF_ERROR(RemoveTree(folder.path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RemoveUncommitted(const std::string& checkpoint_dir) {
  ASSIGN_OR_RETURN(const std::vector<StepFolder> uncommitted,
                   ListUncommitted(checkpoint_dir));
  // A coordinator that was deposed, and doesn't know, may be about to give one its name as a
  // checkpoint: of the two renames one fails, before a file is gone.
  const std::string discarded = absl::StrCat(checkpoint_dir, "/discarded");
  RETURN_IF_ERROR(RemoveTree(discarded));
  for (const StepFolder& folder : uncommitted) {
    RETURN_IF_ERROR(RenameFolder(folder.path, discarded));
    RETURN_IF_ERROR(RemoveTree(discarded));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<v1::CheckpointStatus>> DescribeCheckpoints(
    const std::string& checkpoint_dir) {
  ASSIGN_OR_RETURN(const std::vector<Checkpoint> checkpoints,
                   ListCheckpoints(checkpoint_dir));
  std::vector<v1::CheckpointStatus> statuses;
  for (const Checkpoint& checkpoint : checkpoints) {
    v1::CheckpointStatus& status = statuses.emplace_back();
    status.set_folder(checkpoint.folder);
    status.set_step(checkpoint.manifest.step());
    status.set_digest(checkpoint.manifest.digest());
    status.set_validation_perplexity(checkpoint.manifest.validation_perplexity());
    status.set_best(&checkpoint == BestCheckpoint(checkpoints));
    status.set_last(&checkpoint == LastCheckpoint(checkpoints));
  }
  return statuses;
}

absl::StatusOr<std::vector<v1::CheckpointStatus>> CommitCheckpoint(
    const std::string& checkpoint_dir, v1::Manifest manifest, int keep_last) {
  const std::string folder = absl::StrCat(
      checkpoint_dir, "/", CutFolderName(manifest.step(), manifest.generation()));
  std::vector<v1::TensorDigest> tensors;
  std::vector<v1::UntouchedTensors> untouched;
  for (const v1::ShardFile& shard : manifest.shards()) {
    tensors.insert(tensors.end(), shard.tensors().begin(), shard.tensors().end());
    untouched.insert(untouched.end(), shard.untouched().begin(), shard.untouched().end());
  }
  ASSIGN_OR_RETURN(*manifest.mutable_digest(),
                   ModelDigest(std::move(tensors), std::move(untouched)));
  RETURN_IF_ERROR(
      Annotate(VerifySizes(folder, manifest),
               "a server's file isn't here (is the checkpoint folder shared?)"));
  RETURN_IF_ERROR(WriteManifest(folder, manifest));
  const std::string committed =
      absl::StrCat(checkpoint_dir, "/", StepFolderName(manifest.step()));
  RETURN_IF_ERROR(RenameFolder(folder, committed));
  // Of a server that was lost, and with whose shards others went on. It can't make more of them: the
  // folder that it knows isn't there any more.
  if (const absl::Status status = RemoveAllUnfinished(committed); !status.ok()) {
    LOG(WARNING) << "cannot remove what is unfinished: " << status.message();
  }
  if (const absl::Status status =
          DeleteSuperseded(checkpoint_dir, manifest.step(), keep_last);
      !status.ok()) {
    LOG(WARNING) << "cannot delete old checkpoints: " << status.message();
  }
  return DescribeCheckpoints(checkpoint_dir);
}

void CheckpointKeeper::Begin(const Layout& layout, uint64_t generation) {
  manifest_.set_format_version(kManifestVersion);
  manifest_.set_job_name(layout.job.name());
  google::protobuf::TextFormat::PrintToString(layout.job, manifest_.mutable_job());
  manifest_.set_data_sha256(layout.data.sha256());
  manifest_.set_generation(generation);
  servers_ = 0;
  KeepServers(layout);
  // A coordinator before may have committed one that a worker still waits for.
  for (const v1::CheckpointStatus& checkpoint : present_) {
    committed_[checkpoint.step()] = checkpoint;
  }
  evaluates_ = layout.data.validation_tokens() > 0;
}

void CheckpointKeeper::KeepServers(const Layout& layout) {
  if (layout.addresses.size() == servers_) return;
  servers_ = layout.addresses.size();
  copies_.clear();
  for (const v1::ShardPlacement& shard : layout.placement.shards()) {
    for (const std::string& host : HostsOf(shard)) copies_.emplace(shard.shard(), host);
  }
  for (auto& [step, cut] : cuts_) {
    std::erase_if(cut.reported, [this](const Copy& c) { return !copies_.contains(c); });
  }
}

void CheckpointKeeper::End() {
  cuts_.clear();
  evaluated_.clear();
}

bool CheckpointKeeper::BeginCut(uint64_t step, absl::Time now) {
  if (IsOld(step)) return false;
  Cut& cut = cuts_[step];
  if (cut.begun != absl::InfiniteFuture()) return false;
  cut.begun = now;
  cut.sign = now;
  return true;
}

absl::Status CheckpointKeeper::AddShard(const v1::ReportShardFileRequest& request,
                                        absl::Time now) {
  const std::string& shard = request.file().shard();
  if (!copies_.contains({shard, request.member()})) {
    return absl::FailedPreconditionError(absl::StrCat(
        request.member(), " reported a file of shard ", shard, ", which it isn't given"));
  }
  if (IsOld(request.step())) return absl::OkStatus();
  Cut& cut = cuts_[request.step()];
  const v1::ShardFile& first =
      cut.shards.try_emplace(shard, request.file()).first->second;
  if (first.sha256() != request.file().sha256()) {
    return absl::DataLossError(
        absl::StrCat("the copies of ", shard, " differ after ", request.step(),
                     " steps: ", request.member(), " has written a file with SHA-256 ",
                     request.file().sha256().substr(0, 12), ", another server one with ",
                     first.sha256().substr(0, 12)));
  }
  cut.reported.emplace(shard, request.member());
  cut.sign = now;
  return absl::OkStatus();
}

bool CheckpointKeeper::IsOld(uint64_t step) const {
  return committed_.contains(step) ||
         (!present_.empty() && step <= present_.back().step());
}

bool CheckpointKeeper::Ready(uint64_t step, const Cut& cut) const {
  return !cut.taken && cut.reported.size() == copies_.size() &&
         (!evaluates_ || evaluated_.contains(step));
}

bool CheckpointKeeper::ready() const {
  return std::any_of(cuts_.begin(), cuts_.end(), [this](const auto& entry) {
    return Ready(entry.first, entry.second);
  });
}

std::optional<uint64_t> CheckpointKeeper::TakeReady() {
  for (auto& [step, cut] : cuts_) {
    if (!Ready(step, cut)) continue;
    cut.taken = true;
    return step;
  }
  return std::nullopt;
}

v1::Manifest CheckpointKeeper::MakeManifest(uint64_t step) const {
  v1::Manifest manifest = manifest_;
  manifest.set_step(step);
  for (const auto& [id, file] : cuts_.at(step).shards) *manifest.add_shards() = file;
  if (const auto found = evaluated_.find(step); found != evaluated_.end()) {
    manifest.set_validation_perplexity(found->second);
  }
  manifest.set_created_at(absl::ToUnixSeconds(absl::Now()));
  return manifest;
}

void CheckpointKeeper::Committed(uint64_t step,
                                 std::vector<v1::CheckpointStatus> present) {
  present_ = std::move(present);
  for (const v1::CheckpointStatus& checkpoint : present_) {
    if (checkpoint.step() == step) committed_[step] = checkpoint;
  }
  CHECK(committed_.contains(step));
  cuts_.erase(step);
  evaluated_.erase(evaluated_.begin(), evaluated_.upper_bound(step));
}

const v1::CheckpointStatus* CheckpointKeeper::Find(uint64_t step) const {
  const auto found = committed_.find(step);
  return found == committed_.end() ? nullptr : &found->second;
}

std::string CheckpointKeeper::MissingFiles(const Cut& cut) const {
  std::map<std::string, std::vector<std::string>> missing;
  for (const auto& [shard, server] : copies_) {
    if (!cut.reported.contains({shard, server})) missing[server].push_back(shard);
  }
  return absl::StrJoin(missing, ", ", [](std::string* out, const auto& of_server) {
    absl::StrAppend(out, of_server.first, " to write ",
                    absl::StrJoin(of_server.second, ", "));
  });
}

std::optional<v1::CutStatus> CheckpointKeeper::UnderWay(absl::Time now) const {
  if (cuts_.empty()) return std::nullopt;
  const auto& [step, cut] = *cuts_.begin();
  v1::CutStatus status;
  status.set_step(step);
  if (cut.begun <= now) status.set_seconds(absl::ToDoubleSeconds(now - cut.begun));
  status.set_waiting_for(MissingFiles(cut));
  if (!status.waiting_for().empty()) return status;
  status.set_waiting_for(evaluates_ && !evaluated_.contains(step)
                             ? "the evaluation of the validation text"
                             : "its manifest to be written");
  return status;
}

std::string CheckpointKeeper::Overdue(absl::Time now, absl::Duration timeout) const {
  for (const auto& [step, cut] : cuts_) {
    if (now - cut.sign < timeout) continue;
    // Evaluations have deadlines of their own.
    const std::string missing = MissingFiles(cut);
    if (missing.empty()) continue;
    return absl::StrCat("the checkpoint of step ", step, " has waited ",
                        FormatTimeSpan(timeout), " for ", missing);
  }
  return "";
}

void CheckpointKeeper::Excuse(absl::Duration pause) {
  for (auto& [step, cut] : cuts_) cut.sign += pause;
}

}  // namespace moe
