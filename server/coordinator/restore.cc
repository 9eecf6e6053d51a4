#include "server/coordinator/restore.h"

#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/job/job_file.h"

namespace moe {

absl::StatusOr<RestorePoint> FindRestorePoint(const std::string& path) {
  ASSIGN_OR_RETURN(Checkpoint checkpoint, FindCheckpoint(path));
  RestorePoint point = {.folder = std::move(checkpoint.folder),
                        .manifest = std::move(checkpoint.manifest),
                        .job = {}};
  RETURN_IF_ERROR(VerifyContents(point.folder, point.manifest));
  if (!google::protobuf::TextFormat::ParseFromString(point.manifest.job(), &point.job)) {
    return absl::DataLossError(
        absl::StrCat(ManifestPath(point.folder), ": the job in it can't be read"));
  }
  // It may be from before a field with a default existed.
  FillDefaults(&point.job);
  return point;
}

std::string FirstDifference(const v1::Job& then, v1::Job now) {
  if (now.model().vocabulary() == 0) {
    now.mutable_model()->set_vocabulary(then.model().vocabulary());
  }
  google::protobuf::util::MessageDifferencer differencer;
  std::string differences;
  differencer.ReportDifferencesToString(&differences);
  if (differencer.Compare(then, now)) return "";
  // "modified: training.lanes: 4 -> 8\n..."
  const std::vector<std::string> lines = absl::StrSplit(differences, '\n');
  return lines.front();
}

absl::Status CheckSameJob(const RestorePoint& point, const v1::Job& job) {
  v1::Job then = point.job;
  v1::Job now = job;
  for (v1::Job* each : {&then, &now}) {
    each->clear_name();
    each->clear_checkpointing();
    each->clear_allow_mixed_numerics();
    each->mutable_training()->clear_steps();
    each->mutable_training()->clear_epochs();
    each->mutable_training()->clear_evaluate_every();
    for (v1::Layer& layer : *each->mutable_model()->mutable_layers()) {
      if (layer.has_recurrent_moe()) layer.mutable_recurrent_moe()->clear_kept_states();
    }
  }
  const std::string difference = FirstDifference(then, std::move(now));
  if (difference.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the job isn't that of the checkpoint ", point.folder, ": ", difference));
}

}  // namespace moe
