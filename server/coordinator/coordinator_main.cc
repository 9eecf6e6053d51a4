// The coordinator's program: flags, signals, and the result.
#include <glog/logging.h>
#include <google/protobuf/text_format.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/base/program.h"
#include "common/base/service_notifier.h"
#include "common/base/signals.h"
#include "common/io/file.h"
#include "common/job/job_file.h"
#include "common/net/rpc_server_flags.h"
#include "server/coordinator/coordinator.h"
#include "server/coordinator/finished_run.h"
#include "server/coordinator/restore.h"
#include "server/linger.h"

ABSL_FLAG(std::string, job, "",
          "Job file (protobuf text format). With --evaluate it may be left out: the "
          "checkpoint's own "
          "job is taken.");
ABSL_FLAG(std::string, listen, "127.0.0.1:7070",
          "host:port or unix:path to listen on; port 0 takes any free port. What other "
          "machines can reach needs TLS, or --insecure.");
ABSL_FLAG(int32_t, servers, 1,
          "Number of expert servers. The job starts when all have joined.");
ABSL_FLAG(int32_t, workers, 1,
          "Number of workers; at most the job's training.replicas. The job starts when "
          "all have "
          "joined.");
ABSL_FLAG(
    std::string, checkpoint_dir, "",
    "Folder for checkpoints, under the same path on all hosts. Needed for training.");
ABSL_FLAG(
    std::string, state_dir, "",
    "Folder for the coordinator's own state. Default: `coordinator` in --checkpoint_dir; "
    "without either, memory.");
ABSL_FLAG(bool, resume, false,
          "Go on from the last checkpoint in --checkpoint_dir, or from --checkpoint.");
ABSL_FLAG(
    bool, supervised, false,
    "For a supervisor that starts this command again whenever it ends (systemd, Slurm, "
    "Kubernetes): go on from the last checkpoint if there is one, as with --resume, else "
    "begin; on SIGINT or SIGTERM leave the job to the next start, for which members "
    "wait, "
    "rather than fail it; and end at once with status 0 if the job is finished.");
ABSL_FLAG(bool, linger, false,
          "Once the job is finished go on answering until SIGINT or SIGTERM: for a "
          "supervisor that starts again what ends well, too.");
ABSL_FLAG(std::string, evaluate, "",
          "validation | test: instead of training, evaluate a checkpoint on this text.");
ABSL_FLAG(std::string, checkpoint, "",
          "The checkpoint to evaluate or to resume from: its folder, or a folder of "
          "checkpoints, of "
          "which the last is taken. Default: --checkpoint_dir.");
ABSL_FLAG(int32_t, heartbeat_ms, 500, "How often members report, in milliseconds.");
ABSL_FLAG(int32_t, lease_ms, 5000,
          "A member that is silent for so many milliseconds is lost.");
ABSL_FLAG(
    int32_t, recoveries, 5,
    "After the loss of a member the job goes on from the last checkpoint; it fails after "
    "so "
    "many losses in a row between which it got no step further than before. 0: the first "
    "loss fails it.");
ABSL_FLAG(
    int32_t, rejoin_timeout_s, 30,
    "How many seconds lost members may take to come back, or others in their place. Then "
    "the job goes on with those that are there, if their memory holds it.");
ABSL_FLAG(
    bool, grow, false,
    "Take in servers and workers beyond --servers and --workers while the job trains, as "
    "`moectl scale` would; also those that come back after the job went on without "
    "them. Without it they are refused.");
ABSL_FLAG(int32_t, report_timeout_s, 600,
          "How many seconds a worker waits for the others' part of an evaluation or a "
          "checkpoint, and how many may pass without any step, evaluation or checkpoint, "
          "before the job fails.");
ABSL_FLAG(std::string, port_file, "",
          "Write the address to this file once the coordinator listens.");
ABSL_FLAG(std::string, result_json, "", "Write how the run ended to this file, as JSON.");

namespace moe {
namespace {

constexpr char kUsage[] =
    R"(Keeps the members, the placement and the checkpoints of one training job.

  coordinator --job FILE --checkpoint_dir DIR [--servers N] [--workers N] [--resume]
  coordinator --evaluate validation|test --checkpoint DIR [--servers N] [--workers N]

Start it, then N expert servers and N workers that are given its address, in any order. It prints the
progress and ends when the job does: with status 0 if the job finished, 1 with the cause if it failed,
2 if the command line makes no sense.

Example, training on one machine:
  coordinator --job deploy/configs/kjv-moe.textproto --checkpoint_dir /tmp/run/checkpoints &
  expert_server --name s1 --coordinator 127.0.0.1:7070 &
  worker --name w1 --coordinator 127.0.0.1:7070 --data /tmp/run/data
Example, evaluating what came out:
  coordinator --evaluate test --checkpoint /tmp/run/checkpoints
)";

Coordinator::Options OptionsFromFlags() {
  Coordinator::Options options;
  options.listen = absl::GetFlag(FLAGS_listen);
  options.servers = absl::GetFlag(FLAGS_servers);
  options.workers = absl::GetFlag(FLAGS_workers);
  options.checkpoint_dir = absl::GetFlag(FLAGS_checkpoint_dir);
  options.state_dir = absl::GetFlag(FLAGS_state_dir);
  options.resume = absl::GetFlag(FLAGS_resume);
  options.restore_from = absl::GetFlag(FLAGS_checkpoint);
  options.heartbeat = absl::Milliseconds(absl::GetFlag(FLAGS_heartbeat_ms));
  options.lease = absl::Milliseconds(absl::GetFlag(FLAGS_lease_ms));
  options.report_timeout = absl::Seconds(absl::GetFlag(FLAGS_report_timeout_s));
  options.recoveries = absl::GetFlag(FLAGS_recoveries);
  options.rejoin_timeout = absl::Seconds(absl::GetFlag(FLAGS_rejoin_timeout_s));
  options.grow = absl::GetFlag(FLAGS_grow);
  options.resume_if_any = absl::GetFlag(FLAGS_supervised);
  options.progress = &std::cout;

  const std::string split = absl::GetFlag(FLAGS_evaluate);
  if (split.empty()) {
    if (absl::GetFlag(FLAGS_job).empty()) ExitWithUsageError("--job is missing");
    if (options.checkpoint_dir.empty()) ExitWithUsageError("--checkpoint_dir is missing");
    if (!options.restore_from.empty() && !options.resume) {
      ExitWithUsageError("--checkpoint goes with --resume or with --evaluate");
    }
    if (options.state_dir.empty()) {
      options.state_dir = absl::StrCat(options.checkpoint_dir, "/coordinator");
    }
    return options;
  }
  options.mode = v1::RUN_MODE_EVALUATE;
  if (split == "validation") {
    options.evaluate_split = v1::SPLIT_VALIDATION;
  } else if (split == "test") {
    options.evaluate_split = v1::SPLIT_TEST;
  } else {
    ExitWithUsageError(absl::StrCat("--evaluate is validation or test, not ", split));
  }
  if (options.resume_if_any) ExitWithUsageError("--supervised is for training");
  if (options.resume) ExitWithUsageError("--resume doesn't go with --evaluate");
  if (options.restore_from.empty()) options.restore_from = options.checkpoint_dir;
  if (options.restore_from.empty()) ExitWithUsageError("--evaluate needs a --checkpoint");
  return options;
}

absl::StatusOr<v1::Job> FindJob(const Coordinator::Options& options) {
  if (const std::string path = absl::GetFlag(FLAGS_job); !path.empty()) {
    return ReadJobFile(path);
  }
  absl::StatusOr<RestorePoint> point = FindRestorePoint(options.restore_from);
  if (!point.ok()) return point.status();
  return point->job;
}

std::string ToJson(const RunSummary& summary) {
  // JSON has no NaN and no infinity.
  const auto number = [](double value) -> nlohmann::ordered_json {
    if (!std::isfinite(value)) return nullptr;
    return value;
  };
  const auto perplexity = [&](double value) -> nlohmann::ordered_json {
    if (value == 0) return nullptr;
    return number(value);
  };
  nlohmann::ordered_json json;
  json["phase"] = summary.phase == v1::PHASE_FINISHED ? "FINISHED" : "FAILED";
  json["failure"] = summary.failure;
  json["step"] = summary.step;
  json["test_perplexity"] = perplexity(summary.test_perplexity);
  json["validation_perplexity"] = perplexity(summary.validation_perplexity);
  json["digest"] = summary.digest;
  json["checkpoint"] = summary.checkpoint;
  json["balance"] = nlohmann::ordered_json::array();
  for (const v1::BalanceStatus& layer : summary.balance) {
    nlohmann::ordered_json balance = {{"layer", layer.layer()}};
    if (!layer.mixture().empty()) balance["mixture"] = layer.mixture();
    balance["cv_importance"] = number(layer.cv_importance());
    balance["cv_load"] = number(layer.cv_load());
    balance["max_over_mean_load"] = number(layer.max_over_mean_load());
    balance["experts_per_token"] = number(layer.experts_per_token());
    balance["unrouted_share"] = number(layer.unrouted_share());
    json["balance"].push_back(std::move(balance));
  }
  json["words_per_second"] = number(summary.words_per_second);
  json["seconds"] = number(summary.seconds);
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

absl::Status WriteResult(const RunSummary& summary) {
  const std::string path = absl::GetFlag(FLAGS_result_json);
  return path.empty() ? absl::OkStatus() : WriteFileAtomically(path, ToJson(summary));
}

// Leaves the job as a kill would: members wait for the next start, which goes on with it.
[[noreturn]] void LeaveToNextStart(ServiceNotifier& notifier) {
  LOG(INFO) << "told to stop; the job waits for this command to be started again";
  notifier.Stop();
  std::_Exit(0);
}

// In the place of a run that is finished.
absl::Status SayFinished(const Coordinator::Options& options, const RestorePoint& last,
                         ServiceNotifier& notifier) {
  std::cout << "the job " << options.job.name() << " is finished: " << last.folder
            << "  digest " << last.manifest.digest() << std::endl;
  if (!absl::GetFlag(FLAGS_linger)) {
    notifier.Ready();
    return absl::OkStatus();
  }
  absl::Notification told_to_stop;
  const TerminationHandler handler([&](int) {
    notifier.Stopping();
    told_to_stop.Notify();
  });
  notifier.Ready();
  return LingerUntil(told_to_stop, options.listen, options.rpc);
}

absl::Status Run() {
  Coordinator::Options options = OptionsFromFlags();
  absl::StatusOr<RpcServer::Options> rpc =
      RpcServerOptionsFromFlags({Role::kCoordinator});
  if (!rpc.ok()) return rpc.status();
  options.rpc = *std::move(rpc);
  absl::StatusOr<v1::Job> job = FindJob(options);
  if (!job.ok()) return job.status();
  options.job = *std::move(job);

  const bool supervised = absl::GetFlag(FLAGS_supervised);
  std::atomic<Coordinator*> started = nullptr;
  absl::Notification told_to_stop;
  ServiceNotifier notifier([&] {
    Coordinator* const coordinator = started;
    return coordinator == nullptr ? "looks where the job is to go on"
                                  : coordinator->Describe();
  });
  if (supervised) {
    absl::StatusOr<std::optional<RestorePoint>> last =
        FindFinishedRun(options.job, options.state_dir, options.checkpoint_dir);
    if (!last.ok()) return last.status();
    if (last->has_value()) return SayFinished(options, **last, notifier);
  }
  absl::StatusOr<std::unique_ptr<Coordinator>> coordinator =
      Coordinator::Start(std::move(options));
  if (!coordinator.ok()) return coordinator.status();
  LOG(INFO) << "listening on " << (*coordinator)->address();
  started = coordinator->get();
  const absl::Cleanup stop_notifier = [&] { notifier.Stop(); };
  const TerminationHandler handler([&](int) {
    notifier.Stopping();
    told_to_stop.Notify();
    if (supervised && (*coordinator)->IsUnderWay()) LeaveToNextStart(notifier);
    (*coordinator)->Stop();
  });
  if (const std::string path = absl::GetFlag(FLAGS_port_file); !path.empty()) {
    absl::Status written =
        WriteFileAtomically(path, absl::StrCat((*coordinator)->address(), "\n"));
    if (!written.ok()) return written;
  }
  notifier.Ready();
  absl::Status status = (*coordinator)->WaitUntilOver();
  status.Update(WriteResult((*coordinator)->summary()));
  if (status.ok() && absl::GetFlag(FLAGS_linger)) told_to_stop.WaitForNotification();
  notifier.Stopping();
  status.Update((*coordinator)->Wait());
  return status;
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
  moe::BlockTerminationSignals();
  moe::ParseCommandLine(argc, argv, moe::kUsage);
  const absl::Status status = moe::Run();
  if (status.ok()) return 0;
  std::cerr << "coordinator: " << status.message() << std::endl;
  return 1;
}
