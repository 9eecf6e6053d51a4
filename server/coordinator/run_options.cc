#include "server/coordinator/run_options.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"

namespace moe {

absl::Status CompleteRunOptions(RunOptions& options) {
  if (options.servers < 1)
    return absl::InvalidArgumentError("--servers must be at least 1");
  if (options.workers < 1)
    return absl::InvalidArgumentError("--workers must be at least 1");
  if (options.copies != 1 && options.copies != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("--copies is ", options.copies, "; it must be 1 or 2"));
  }
  if (options.copies > options.servers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--copies=2 puts the second copy of each shard on another server, so "
        "--servers must be at least 2, not ",
        options.servers));
  }
  if (options.copies > 1 && options.job.allow_mixed_numerics()) {
    return absl::InvalidArgumentError(
        "--copies=2 needs servers that compute equal bits, or copies would differ; the "
        "job has allow_mixed_numerics, so take --copies=1");
  }
  if (options.workers > options.job.training().replicas()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--workers is ", options.workers, ", but the job's training.replicas is ",
        options.job.training().replicas(), ", and a worker owns at least one replica"));
  }
  if (options.heartbeat <= absl::ZeroDuration() ||
      options.lease < 2 * options.heartbeat) {
    return absl::InvalidArgumentError(
        "--heartbeat_ms must be positive, and --lease_ms at least twice as long");
  }
  if (options.recoveries < 0) {
    return absl::InvalidArgumentError("--recoveries must not be negative");
  }
  if (options.rejoin_timeout < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--rejoin_timeout_s must not be negative");
  }
  if (options.mode == v1::RUN_MODE_EVALUATE && !options.restore.has_value()) {
    return absl::InvalidArgumentError(
        "there is no checkpoint to evaluate; give --checkpoint");
  }
  if (options.restore.has_value()) {
    RETURN_IF_ERROR(CheckSameJob(*options.restore, options.job));
    if (options.job.model().vocabulary() == 0) {
      options.job.mutable_model()->set_vocabulary(
          options.restore->job.model().vocabulary());
    }
  }
  if (options.adoption.has_value()) {
    *options.job.mutable_model() = options.adoption->running.job().model();
  }
  if (!options.now) options.now = [] { return absl::Now(); };
  if (!options.print) options.print = [](const std::string&) {};
  return absl::OkStatus();
}

}  // namespace moe
