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

#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "common/base/program.h"
#include "common/base/service_notifier.h"
#include "common/base/signals.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/job/job_file.h"
#include "common/net/rpc_server_flags.h"
#include "server/coordinator/candidate.h"
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
ABSL_FLAG(
    std::string, store, "",
    "etcd://HOST:PORT[,HOST:PORT...]/PREFIX: keep that state in etcd (3.5 or later), "
    "under a "
    "prefix of the job's own. Several coordinators that are started with the same "
    "command, "
    "but for --listen, then stand by for the one that leads. Default: --state_dir.");
ABSL_FLAG(
    std::string, advertise, "",
    "Address of this coordinator as the others name it, with --store. Default: --listen "
    "with the real port.");
ABSL_FLAG(
    int32_t, leader_lease_s, 5,
    "With --store: another coordinator takes over when the one that leads hasn't been "
    "heard by etcd for so many seconds; at least 2.");
ABSL_FLAG(
    int32_t, store_timeout_s, 120,
    "With --store: how many seconds a write may wait for etcd before the job fails.");
ABSL_FLAG(
    std::string, etcd_ca, "",
    "File with the certificates (PEM) by which etcd is known. Default: no TLS to etcd.");
ABSL_FLAG(
    std::string, etcd_certificate, "",
    "With --etcd_ca: file with this coordinator's certificate (PEM), if etcd wants one.");
ABSL_FLAG(std::string, etcd_key, "", "With --etcd_certificate: file with its key (PEM).");
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
    int32_t, copies, 1,
    "Copies of each shard, 1 or 2. With 2 they are on two servers, which are sent the "
    "same "
    "and compute the same: when a server is lost, the job goes on with the other copies "
    "and "
    "no step is lost, as long as each shard has one. Servers need twice the memory and "
    "do "
    "twice the work, and workers send and get twice the bytes; at least 2 servers. "
    "A server that joins in the place of a lost one takes second copies over while the "
    "job "
    "trains.");
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

With --store=etcd://..., further coordinators stand by for the one that leads; members are given the
addresses of all.

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
  options.copies = absl::GetFlag(FLAGS_copies);
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

// What the process does before there is a job, for people. Thread-safe.
class Doing {
 public:
  std::string Get() const {
    absl::MutexLock lock(&mutex_);
    return line_;
  }
  void Set(const std::string& line) {
    absl::MutexLock lock(&mutex_);
    line_ = line;
  }

 private:
  mutable absl::Mutex mutex_;
  std::string line_ ABSL_GUARDED_BY(mutex_) = "looks where the job is to go on";
};

// Leaves the job as a kill would: members wait for the next start, or for another coordinator, which
// goes on with it.
[[noreturn]] void LeaveToNextStart(ServiceNotifier& notifier, Candidate* candidate) {
  LOG(INFO) << "told to stop; the job waits for this command to be started again";
  // Without etcd both could wait for it; the lease then ends by itself.
  if (candidate == nullptr || candidate->sure()) {
    notifier.Stop();
    if (candidate != nullptr) candidate->Resign();
  }
  std::_Exit(0);
}

// In the place of a run that is finished.
absl::Status Linger(const Coordinator::Options& options, ServiceNotifier& notifier) {
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

void SayFinished(const std::string& job, const RestorePoint& last) {
  std::cout << "the job " << job << " is finished: " << last.folder << "  digest "
            << last.manifest.digest() << std::endl;
}

absl::StatusOr<std::string> ReadIfNamed(const std::string& path) {
  return path.empty() ? std::string() : ReadFile(path);
}

absl::Status WritePortFile(const std::string& address) {
  const std::string path = absl::GetFlag(FLAGS_port_file);
  return path.empty() ? absl::OkStatus()
                      : WriteFileAtomically(path, absl::StrCat(address, "\n"));
}

absl::StatusOr<Candidate::Options> CandidateOptions(const Coordinator::Options& options) {
  if (options.mode == v1::RUN_MODE_EVALUATE) {
    ExitWithUsageError("--store is for training; an evaluation has nothing to keep");
  }
  if (absl::GetFlag(FLAGS_leader_lease_s) < 2) {
    ExitWithUsageError("--leader_lease_s must be at least 2");
  }
  if (absl::GetFlag(FLAGS_store_timeout_s) < 1) {
    ExitWithUsageError("--store_timeout_s must be at least 1");
  }
  const absl::StatusOr<EtcdAddress> address =
      ParseEtcdAddress(absl::GetFlag(FLAGS_store));
  if (!address.ok()) ExitWithUsageError(std::string(address.status().message()));
  Candidate::Options candidate;
  candidate.etcd.endpoints = address->endpoints;
  candidate.prefix = address->prefix;
  candidate.listen = options.listen;
  candidate.rpc = options.rpc;
  candidate.advertise = absl::GetFlag(FLAGS_advertise);
  candidate.lease = absl::Seconds(absl::GetFlag(FLAGS_leader_lease_s));
  candidate.timeout = absl::Seconds(absl::GetFlag(FLAGS_store_timeout_s));
  ASSIGN_OR_RETURN(candidate.etcd.ca, ReadIfNamed(absl::GetFlag(FLAGS_etcd_ca)));
  ASSIGN_OR_RETURN(candidate.etcd.certificate,
                   ReadIfNamed(absl::GetFlag(FLAGS_etcd_certificate)));
  ASSIGN_OR_RETURN(candidate.etcd.key, ReadIfNamed(absl::GetFlag(FLAGS_etcd_key)));
  return candidate;
}

// Waits until this process leads; CANCELLED if it is told to stop before.
absl::StatusOr<std::unique_ptr<Candidate>> AwaitLeadership(Candidate::Options options,
                                                           Doing& doing,
                                                           std::atomic<bool>& leaving,
                                                           ServiceNotifier& notifier) {
  options.print = [&](const std::string& said) {
    std::cout << said << std::endl;
    doing.Set(said);
  };
  options.listening = [&](const std::string& listening) {
    LOG(INFO) << "listening on " << listening;
    if (const absl::Status written = WritePortFile(listening); !written.ok()) {
      LOG(ERROR) << written.message();
    }
    // Standing by is all that it has to do.
    notifier.Ready();
  };
  // At once: whatever this process would still say to a member is no longer the leader's word.
  options.on_deposed = [&](const std::string& cause) {
    if (leaving) std::_Exit(0);
    std::cerr << "coordinator: " << cause << std::endl;
    std::_Exit(1);
  };
  std::atomic<bool> told_to_stop = false;
  options.cancelled = [&] { return told_to_stop.load(); };
  const TerminationHandler handler([&](int) {
    notifier.Stopping();
    told_to_stop = true;
  });
  return Candidate::Await(std::move(options));
}

// None if the job goes on to be led by this process; else how it ended under another.
absl::StatusOr<std::optional<absl::Status>> EndUnderAnother(Candidate& candidate,
                                                            const std::string& job) {
  if (!candidate.was_standby()) return std::optional<absl::Status>();
  ASSIGN_OR_RETURN(const auto name, candidate.store().Get("job/name"));
  ASSIGN_OR_RETURN(const auto phase, candidate.store().Get("job/phase"));
  if (!name.has_value() || !phase.has_value() || name->value != job) {
    return std::optional<absl::Status>();
  }
  if (phase->value == v1::Phase_Name(v1::PHASE_FINISHED)) {
    std::cout << "the job is finished" << std::endl;
    return std::optional<absl::Status>(absl::OkStatus());
  }
  if (phase->value == v1::Phase_Name(v1::PHASE_FAILED)) {
    return std::optional<absl::Status>(
        absl::AbortedError("the job failed under the coordinator that led it"));
  }
  return std::optional<absl::Status>();
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
  Doing doing;
  std::atomic<bool> leaving = false;
  std::unique_ptr<Candidate> candidate;
  std::atomic<Coordinator*> started = nullptr;
  absl::Notification told_to_stop;
  ServiceNotifier notifier([&] {
    Coordinator* const coordinator = started;
    if (coordinator == nullptr) return doing.Get();
    // What waits for etcd may hold the locks.
    if (candidate != nullptr && !candidate->sure()) return std::string("waits for etcd");
    return coordinator->Describe();
  });
  if (!absl::GetFlag(FLAGS_store).empty()) {
    ASSIGN_OR_RETURN(Candidate::Options candidacy, CandidateOptions(options));
    absl::StatusOr<std::unique_ptr<Candidate>> elected =
        AwaitLeadership(std::move(candidacy), doing, leaving, notifier);
    if (supervised && absl::IsCancelled(elected.status())) return absl::OkStatus();
    if (!elected.ok()) return elected.status();
    candidate = *std::move(elected);
    options.listen = candidate->address();
    options.store = &candidate->store();
    options.leads = [&] { return candidate->sure(); };
    if (!supervised) {
      ASSIGN_OR_RETURN(const std::optional<absl::Status> end,
                       EndUnderAnother(*candidate, options.job.name()));
      if (end.has_value()) {
        candidate.reset();
        return end->ok() ? Linger(options, notifier) : *end;
      }
    }
  }
  if (supervised) {
    ASSIGN_OR_RETURN(
        const std::optional<RestorePoint> last,
        candidate == nullptr
            ? FindFinishedRun(options.job, options.state_dir, options.checkpoint_dir)
            : FindFinishedRun(options.job, candidate->store(), options.checkpoint_dir));
    if (last.has_value()) {
      SayFinished(options.job.name(), *last);
      candidate.reset();
      return Linger(options, notifier);
    }
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
    const bool sure = candidate == nullptr || candidate->sure();
    if (supervised && (!sure || (*coordinator)->IsUnderWay())) {
      leaving = true;
      LeaveToNextStart(notifier, candidate.get());
    }
    // What waits for an etcd that is away would hold up the end.
    if (!sure) candidate->GiveUp();
    (*coordinator)->Stop();
  });
  RETURN_IF_ERROR(WritePortFile((*coordinator)->address()));
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
