#include "server/coordinator/finished_run.h"

#include <memory>
#include <string>
#include <utility>

#include "common/base/status_macros.h"
#include "proto/moe/v1/coordinator.pb.h"
#include "server/coordinator/file_store.h"

namespace moe {

absl::StatusOr<std::optional<RestorePoint>> FindFinishedRun(
    const v1::Job& job, Store& state, const std::string& checkpoint_dir) {
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> name, state.Get("job/name"));
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> phase, state.Get("job/phase"));
  if (!name.has_value() || name->value != job.name()) return std::nullopt;
  if (!phase.has_value() || phase->value != v1::Phase_Name(v1::PHASE_FINISHED)) {
    return std::nullopt;
  }
  absl::StatusOr<RestorePoint> last = FindRestorePoint(checkpoint_dir);
  if (absl::IsNotFound(last.status())) return std::nullopt;
  RETURN_IF_ERROR(last.status());
  const v1::Training& now = job.training();
  const v1::Training& then = last->job.training();
  // Of another job the usual start says what is wrong.
  if (!CheckSameJob(*last, job).ok()) return std::nullopt;
  if (now.steps() != then.steps() || now.epochs() != then.epochs()) return std::nullopt;
  return *std::move(last);
}

absl::StatusOr<std::optional<RestorePoint>> FindFinishedRun(
    const v1::Job& job, const std::string& state_dir, const std::string& checkpoint_dir) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, FileStore::Open(state_dir));
  return FindFinishedRun(job, *store, checkpoint_dir);
}

}  // namespace moe
