#include "server/coordinator/coordinator.h"

#include <glog/logging.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/manifest.h"
#include "common/io/file.h"
#include "common/job/job_file.h"
#include "server/coordinator/adoption.h"
#include "server/coordinator/file_store.h"
#include "server/coordinator/run_options.h"

namespace moe {
namespace {

// Members may run in other folders.
std::string Absolute(const std::string& path) {
  return path.empty() ? path
                      : std::filesystem::absolute(path).lexically_normal().string();
}

// Makes sure that the cuts to come won't mix with what is in the folder.
absl::Status PrepareCheckpointDir(const std::string& checkpoint_dir,
                                  const std::optional<RestorePoint>& restore) {
  RETURN_IF_ERROR(MakeDirs(checkpoint_dir));
  ASSIGN_OR_RETURN(const std::vector<Checkpoint> checkpoints,
                   ListCheckpoints(checkpoint_dir));
  if (const Checkpoint* last = LastCheckpoint(checkpoints); last != nullptr) {
    if (!restore.has_value()) {
      return absl::FailedPreconditionError(absl::StrCat(
          checkpoint_dir, " already holds checkpoints of job ", last->manifest.job_name(),
          ", the last of step ", last->manifest.step(),
          "; go on from it with --resume, or give another --checkpoint_dir"));
    }
    if (last->manifest.step() > restore->manifest.step()) {
      return absl::FailedPreconditionError(absl::StrCat(
          checkpoint_dir, " holds checkpoints up to step ", last->manifest.step(),
          ", later than step ", restore->manifest.step(),
          " to go on from; move them away, or give another --checkpoint_dir"));
    }
  }
  // Cuts that a coordinator before this one didn't live to commit.
  return RemoveUncommitted(checkpoint_dir);
}

// Whether the coordinator that had this state before ended while its job, once begun, was under way.
absl::StatusOr<bool> WasInterrupted(Store& store, const std::string& job) {
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> name, store.Get("job/name"));
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> phase, store.Get("job/phase"));
  ASSIGN_OR_RETURN(const std::optional<Store::Entry> servers, store.Get("job/servers"));
  if (!name.has_value() || !phase.has_value() || name->value != job) return false;
  if (!servers.has_value() || servers->value == "0") return false;
  return phase->value != v1::Phase_Name(v1::PHASE_FINISHED) &&
         phase->value != v1::Phase_Name(v1::PHASE_FAILED);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(Options options) {
  options.checkpoint_dir = Absolute(options.checkpoint_dir);
  options.restore_from = Absolute(options.restore_from);
  RETURN_IF_ERROR(ValidateJob(options.job));
  if (options.mode == v1::RUN_MODE_TRAIN && options.checkpoint_dir.empty()) {
    return absl::InvalidArgumentError("training needs a --checkpoint_dir");
  }

  auto coordinator = std::unique_ptr<Coordinator>(new Coordinator(options));
  // First of all: it keeps a second coordinator off the folders below.
  coordinator->store_ = options.store;
  if (options.store == nullptr) {
    if (options.state_dir.empty()) {
      coordinator->own_store_ = std::make_unique<MemoryStore>();
    } else {
      ASSIGN_OR_RETURN(coordinator->own_store_, FileStore::Open(options.state_dir));
    }
    coordinator->store_ = coordinator->own_store_.get();
  }

  std::optional<RestorePoint> restore;
  bool interrupted = false;
  if (options.mode == v1::RUN_MODE_TRAIN) {
    // Then it goes on where it was, whatever it was started from.
    ASSIGN_OR_RETURN(interrupted,
                     WasInterrupted(*coordinator->store_, options.job.name()));
  }
  std::optional<Adoption> adoption;
  if (interrupted) {
    std::string why_not;
    ASSIGN_OR_RETURN(adoption, FindAdoption(*coordinator->store_,
                                            {.job = options.job,
                                             .servers = options.servers,
                                             .workers = options.workers,
                                             .copies = options.copies,
                                             .checkpoint_dir = options.checkpoint_dir},
                                            &why_not));
    if (!adoption.has_value()) {
      LOG(INFO) << "the generation before can't go on: " << why_not;
    }
  }
  bool adopted_with_checkpoint = false;
  if (adoption.has_value()) {
    ASSIGN_OR_RETURN(const std::vector<Checkpoint> own,
                     ListCheckpoints(options.checkpoint_dir));
    adopted_with_checkpoint = !own.empty();
  }
  absl::StatusOr<RestorePoint> own = absl::NotFoundError("not looked for");
  if (interrupted && !adoption.has_value())
    own = FindRestorePoint(options.checkpoint_dir);
  if (own.ok()) {
    restore = *std::move(own);
  } else if (!absl::IsNotFound(own.status())) {
    return Annotate(own.status(), "cannot go on");
  } else if (adopted_with_checkpoint) {
    // Found and checked only if the generation ends.
  } else if (!options.restore_from.empty()) {
    ASSIGN_OR_RETURN(restore, FindRestorePoint(options.restore_from));
  } else if ((options.resume || options.resume_if_any) && !interrupted) {
    absl::StatusOr<RestorePoint> last = FindRestorePoint(options.checkpoint_dir);
    if (last.ok()) {
      restore = *std::move(last);
    } else if (options.resume || !absl::IsNotFound(last.status())) {
      return Annotate(last.status(), "cannot resume");
    }
  }
  // What a generation that goes on has cut and not committed stays.
  if (options.mode == v1::RUN_MODE_TRAIN && !adoption.has_value()) {
    RETURN_IF_ERROR(PrepareCheckpointDir(options.checkpoint_dir, restore));
  }

  RunOptions controller;
  controller.job = options.job;
  controller.servers = options.servers;
  controller.workers = options.workers;
  controller.copies = options.copies;
  controller.mode = options.mode;
  controller.evaluate_split = options.evaluate_split;
  controller.restore = std::move(restore);
  controller.interrupted = interrupted;
  controller.adoption = std::move(adoption);
  controller.checkpoint_dir = options.checkpoint_dir;
  controller.heartbeat = options.heartbeat;
  controller.lease = options.lease;
  controller.report_timeout = options.report_timeout;
  controller.recoveries = options.recoveries;
  controller.rejoin_timeout = options.rejoin_timeout;
  controller.grow = options.grow;
  controller.print = [printer = &coordinator->printer_](const std::string& line) {
    printer->Print(line);
  };
  ASSIGN_OR_RETURN(coordinator->controller_,
                   JobController::Create(std::move(controller), *coordinator->store_));

  coordinator->coordinator_service_ =
      std::make_unique<CoordinatorServiceImpl>(*coordinator->controller_, options.leads);
  coordinator->status_service_ = std::make_unique<ClusterStatusServiceImpl>(
      *coordinator->controller_, options.leads);
  coordinator->operator_service_ =
      std::make_unique<OperatorServiceImpl>(*coordinator->controller_, options.leads);
  grpc::Service* const services[] = {coordinator->coordinator_service_.get(),
                                     coordinator->status_service_.get(),
                                     coordinator->operator_service_.get()};
  RpcServer::Options rpc = options.rpc;
  rpc.health_of = {v1::CoordinatorService::service_full_name(),
                   v1::ClusterStatusService::service_full_name(),
                   v1::OperatorService::service_full_name()};
  ASSIGN_OR_RETURN(coordinator->server_,
                   RpcServer::Start(options.listen, services, std::move(rpc)));
  coordinator->ticker_ = std::thread([c = coordinator.get()] { c->Tick(); });
  return coordinator;
}

Coordinator::Coordinator(Options options)
    : options_(std::move(options)), printer_(options_.progress) {}

Coordinator::~Coordinator() {
  if (ticker_.joinable()) {
    Stop();
    server_->Shutdown(absl::ZeroDuration());
    {
      absl::MutexLock lock(&mutex_);
      stop_ticking_ = true;
    }
    ticker_.join();
  }
}

std::string Coordinator::Describe() {
  const v1::GetClusterStatusResponse status = controller_->GetClusterStatus();
  const v1::ClusterState& state = status.state();
  switch (state.phase()) {
    case v1::PHASE_FINISHED:
      return "the job is finished";
    case v1::PHASE_FAILED:
      return absl::StrCat("failed: ", state.failure());
    case v1::PHASE_RUNNING:
      return absl::StrCat("generation ", state.generation(), ", step ",
                          status.progress().step(), " of ",
                          status.progress().total_steps());
    default:
      return absl::StrCat("generation ", state.generation(),
                          state.waiting_for().empty() ? "" : ", ", state.waiting_for());
  }
}

bool Coordinator::IsUnderWay() {
  const v1::Phase phase = summary().phase;
  return phase != v1::PHASE_FINISHED && phase != v1::PHASE_FAILED;
}

absl::Status Coordinator::WaitUntilOver() { return controller_->WaitUntilOver(); }

absl::Status Coordinator::Wait() {
  const absl::Status status = WaitUntilOver();
  // Answers are on their way to members.
  server_->Shutdown();
  return status;
}

void Coordinator::Stop() {
  server_->StopServing();
  controller_->Stop("the coordinator was told to stop");
}

void Coordinator::Tick() {
  const absl::Duration period = std::min(options_.heartbeat / 2, absl::Milliseconds(100));
  absl::MutexLock lock(&mutex_);
  while (!mutex_.AwaitWithTimeout(absl::Condition(&stop_ticking_), period)) {
    if (!options_.leads || options_.leads()) controller_->Tick();
  }
}

}  // namespace moe
