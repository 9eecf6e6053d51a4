#include "server/expert_server.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "glog/logging.h"

namespace moe {
namespace {

// For workers to read why it's over before their streams are cut.
constexpr absl::Duration kParting = absl::Seconds(1);
constexpr absl::Duration kLook = absl::Milliseconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertServer>> ExpertServer::Start(Options options) {
  if (options.threads < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads must be at least 1, not ", options.threads));
  }
  std::string error;
  std::unique_ptr<Backend> backend = MakeCpuBackend(options.threads, &error);
  if (backend == nullptr) return absl::FailedPreconditionError(error);
  std::unique_ptr<ExpertServer> server(
      new ExpertServer(std::move(options), std::move(backend)));

  grpc::Service* const services[] = {&server->shard_service_, &server->status_service_};
  ASSIGN_OR_RETURN(server->rpc_, RpcServer::Start(server->options_.listen, services));
  ASSIGN_OR_RETURN(server->member_, server->options_.join(server->Registration()));
  LOG(INFO) << server->id_ << " listens on " << server->address();
  server->thread_ = std::thread([&server = *server] { server.Run(); });
  return server;
}

ExpertServer::ExpertServer(Options options, std::unique_ptr<Backend> backend)
    : options_(std::move(options)),
      backend_(std::move(backend)),
      id_(absl::StrCat("server/", options_.name)),
      shard_service_(
          {.server = id_,
           .host = [this] { return host(); },
           .on_lost = [this](uint64_t generation,
                             const absl::Status& why) { OnFailed(generation, why); }}),
      status_service_(id_, [this] { return host(); }) {}

ExpertServer::~ExpertServer() {
  Stop();
  if (thread_.joinable()) thread_.join();
}

Member::Options ExpertServer::Registration() const {
  Member::Options member;
  member.coordinator = options_.coordinator;
  member.join_timeout = options_.join_timeout;
  member.coordinator_timeout = options_.coordinator_timeout;
  v1::RegisterRequest& registration = member.registration;
  registration.set_kind(v1::MEMBER_KIND_SERVER);
  registration.set_name(options_.name);
  registration.set_address(options_.advertise.empty() ? rpc_->address()
                                                      : options_.advertise);
  registration.set_protocol_version(kProtocolVersion);
  registration.set_numerics(NumericsFingerprint(*backend_));
  registration.set_numerics_description(backend_->Description());
  registration.set_memory_bytes(options_.memory);
  registration.set_threads(options_.threads);
  const ShardSet::Limits& limits = options_.limits;
  if (limits.tier.has_value()) registration.set_disk_bytes(limits.tier->disk_bytes);
  registration.set_activation_bytes(limits.activation_bytes);
  registration.set_copy_bytes(limits.copy_bytes);
  return member;
}

absl::Status ExpertServer::Wait() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&over_));
  return result_;
}

v1::GetServerStatusResponse ExpertServer::Status() const {
  absl::MutexLock lock(&mutex_);
  return host_ != nullptr ? host_->Status() : last_status_;
}

void ExpertServer::Stop() {
  if (member_ != nullptr) member_->Cancel();
}

void ExpertServer::Run() {
  absl::Status result = Serve();
  shard_service_.GiveUp(
      std::numeric_limits<uint64_t>::max(),
      result.ok() ? absl::CancelledError("the job is finished") : result);
  member_->Leave();
  rpc_->Shutdown(kParting);
  absl::MutexLock lock(&mutex_);
  if (host_ != nullptr) last_status_ = host_->Status();
  host_ = nullptr;
  result_ = std::move(result);
  over_ = true;
}

absl::Status ExpertServer::Serve() {
  // The generation whose shards are here.
  uint64_t served = 0;
  std::string reason = "the cluster to be complete";
  while (true) {
    ASSIGN_OR_RETURN(
        const v1::ClusterState state,
        member_->WaitFor(reason, absl::InfiniteDuration(),
                         [&](const v1::ClusterState& state) {
                           return served != 0 ? state.generation() != served ||
                                                    !member_->generation_health().ok()
                                              : state.phase() == v1::PHASE_LOADING ||
                                                    state.phase() == v1::PHASE_RUNNING;
                         }));
    if (state.phase() == v1::PHASE_FINISHED) return absl::OkStatus();
    if (state.phase() == v1::PHASE_FAILED) return absl::AbortedError(state.failure());
    if (served != 0) {
      Drop(served, state.recovery());
      served = 0;
      reason = "the cluster to be complete again";
      continue;
    }
    served = state.generation();
    member_->Enter(served);
    absl::StatusOr<std::unique_ptr<ShardHost>> host = Load(state);
    if (!host.ok()) {
      const absl::Status cause =
          Annotate(host.status(), absl::StrCat(id_, " can't load its shards"));
      member_->Fail(cause);
      // Of a generation that is over it doesn't matter.
      if (!member_->generation_health().ok() && member_->health().ok()) continue;
      return cause;
    }
    {
      absl::MutexLock lock(&mutex_);
      host_ = *std::move(host);
    }
    shard_service_.Open(served);
    member_->SetReady(served);
    reason = "";
  }
}

void ExpertServer::Drop(uint64_t generation, const std::string& why) {
  shard_service_.Cut(generation, absl::AbortedError(absl::StrCat(
                                     "generation ", generation, " is over: ", why)));
  std::shared_ptr<ShardHost> host;
  {
    absl::MutexLock lock(&mutex_);
    host.swap(host_);
  }
  // Whoever asks for its status holds it for a moment. Its memory and its file must be free before
  // the next one takes as much.
  const std::weak_ptr<ShardHost> gone = host;
  host = nullptr;
  while (!gone.expired()) absl::SleepFor(kLook);
}

absl::StatusOr<std::unique_ptr<ShardHost>> ExpertServer::Load(
    const v1::ClusterState& state) {
  ShardHost::Options options;
  options.server = member_->id();
  options.state = state;
  options.rendezvous_timeout = options_.rendezvous_timeout;
  options.limits = options_.limits;
  options.events.shard_written = [this](uint64_t step, const v1::ShardFile& file) {
    v1::ReportShardFileRequest request;
    request.set_step(step);
    *request.mutable_file() = file;
    return member_->ReportShardFile(std::move(request));
  };
  options.events.failed = [this, generation = state.generation()](
                              const absl::Status& cause) { OnFailed(generation, cause); };
  options.events.waiting = [this](const std::string& for_what) {
    member_->SetWaitingFor(for_what);
  };
  options.events.idle = [this](const std::string& waiting_for,
                               const v1::MemberTimes& times) {
    member_->SetWaitingFor(waiting_for);
    member_->SetTimes(times);
  };
  return ShardHost::Load(*backend_, std::move(options));
}

std::shared_ptr<ShardHost> ExpertServer::host() const {
  absl::MutexLock lock(&mutex_);
  return host_;
}

void ExpertServer::OnFailed(uint64_t generation, const absl::Status& cause) {
  // A job or a generation that is over anyway ends streams too.
  if (!member_->generation_health().ok()) return;
  // Workers know whose stream it is.
  shard_service_.GiveUp(generation, cause);
  member_->Fail(Annotate(cause, id_));
}

}  // namespace moe
