#include "server/expert_server.h"

#include <limits>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/job/placement.h"
#include "glog/logging.h"
#include "proto/moe/v1/expert.grpc.pb.h"

namespace moe {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(1);
// Of a shard that is fetched while its server trains, between two of the engine's tasks.
constexpr size_t kTransferBytes = size_t{1} << 20;

// Version of the placement that is to come; 0: none.
uint64_t UpcomingVersion(const v1::ClusterState& state) {
  return state.upcoming().placement().version();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertServer>> ExpertServer::Start(Options options) {
  if (options.threads < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads must be at least 1, not ", options.threads));
  }
  std::string error;
  std::unique_ptr<Backend> backend =
      options.make_backend(options.device, options.threads, &error);
  if (backend == nullptr) return absl::FailedPreconditionError(error);
  ASSIGN_OR_RETURN(std::unique_ptr<ShardHome> home,
                   ShardHome::Create(*backend, options.limits));
  std::unique_ptr<ExpertServer> server(
      new ExpertServer(std::move(options), std::move(backend), std::move(home)));

  if (const std::string& folder = server->options_.trace_dir; !folder.empty()) {
    ASSIGN_OR_RETURN(server->trace_, TraceWriter::Open(folder, server->options_.name));
  }
  grpc::Service* const services[] = {&server->shard_service_, &server->status_service_,
                                     &server->transfer_service_};
  RpcServer::Options rpc = server->options_.rpc;
  rpc.health_of = {v1::ShardService::service_full_name(),
                   v1::ServerStatusService::service_full_name()};
  ASSIGN_OR_RETURN(server->rpc_,
                   RpcServer::Start(server->options_.listen, services, std::move(rpc)));
  // Until it has shards.
  server->rpc_->SetServing(v1::ShardService::service_full_name(), false);
  ASSIGN_OR_RETURN(server->member_, server->options_.join(server->Registration()));
  LOG(INFO) << server->id_ << " listens on " << server->address();
  server->thread_ = std::thread([&server = *server] { server.Run(); });
  return server;
}

ExpertServer::ExpertServer(Options options, std::unique_ptr<Backend> backend,
                           std::unique_ptr<ShardHome> home)
    : options_(std::move(options)),
      backend_(std::move(backend)),
      id_(absl::StrCat("server/", options_.name)),
      home_(std::move(home)),
      shard_service_(
          {.server = id_,
           .host = [this] { return host(); },
           .on_lost = [this](uint64_t generation,
                             const absl::Status& why) { OnFailed(generation, why); },
           .reconnect_timeout = options_.reconnect_timeout}),
      status_service_(id_, [this] { return host(); }),
      transfer_service_([this](const v1::FetchShardRequest& request, int64_t first) {
        return ReadForTransfer(request, first);
      }) {}

ExpertServer::~ExpertServer() {
  Stop();
  if (thread_.joinable()) thread_.join();
}

Member::Options ExpertServer::Registration() const {
  Member::Options member;
  member.coordinator = options_.coordinator;
  member.tls = options_.rpc.tls;
  member.join_timeout = options_.join_timeout;
  member.coordinator_timeout = options_.coordinator_timeout;
  member.step = [this]() -> uint64_t {
    const std::shared_ptr<ShardHost> host = this->host();
    return host != nullptr ? host->version() : 0;
  };
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
  const ShardHome::Limits& limits = options_.limits;
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

std::string ExpertServer::Describe() const {
  const std::shared_ptr<ShardHost> host = this->host();
  return host == nullptr
             ? member_->Describe()
             : absl::StrCat(member_->Describe(), "; its shards have taken ",
                            host->version(), host->version() == 1 ? " step" : " steps");
}

void ExpertServer::Stop() {
  if (member_ != nullptr) member_->Cancel();
}

void ExpertServer::Run() {
  absl::Status result = Serve();
  arrivals_ = nullptr;
  rpc_->StopServing();
  shard_service_.GiveUp(
      std::numeric_limits<uint64_t>::max(),
      result.ok() ? absl::CancelledError("the job is finished") : result);
  member_->Leave();
  // Workers read why it's over before their streams are cut.
  rpc_->Shutdown();
  absl::MutexLock lock(&mutex_);
  if (host_ != nullptr) last_status_ = host_->Status();
  host_ = nullptr;
  result_ = std::move(result);
  over_ = true;
}

absl::Status ExpertServer::Serve() {
  while (true) {
    const std::string reason =
        served_ == 0 ? "the cluster to be complete, or complete again" : "";
    ASSIGN_OR_RETURN(const v1::ClusterState state,
                     member_->WaitFor(reason, absl::InfiniteDuration(),
                                      [this](const v1::ClusterState& state) {
                                        return NextAction(state) != Action::kNone;
                                      }));
    if (state.phase() == v1::PHASE_FINISHED) return absl::OkStatus();
    if (state.phase() == v1::PHASE_FAILED) return absl::AbortedError(state.failure());
    switch (NextAction(state)) {
      case Action::kLeave:
        Leave(state);
        break;
      case Action::kEnter:
        RETURN_IF_ERROR(Enter(state));
        break;
      case Action::kForget:
        Forget();
        break;
      case Action::kPrepare:
        Prepare(state);
        break;
      case Action::kNone:
        break;
    }
  }
}

ExpertServer::Action ExpertServer::NextAction(const v1::ClusterState& state) const {
  // Not known yet.
  if (state.generation() == 0) return Action::kNone;
  if (served_ != 0 &&
      (state.generation() != served_ || !member_->generation_health().ok())) {
    return Action::kLeave;
  }
  {
    absl::MutexLock lock(&mutex_);
    if (kept_.has_value() && (state.phase() == v1::PHASE_RUNNING ||
                              state.handover().generation() != kept_->generation)) {
      return Action::kForget;
    }
  }
  if (served_ == 0 &&
      (state.phase() == v1::PHASE_LOADING || state.phase() == v1::PHASE_RUNNING)) {
    return Action::kEnter;
  }
  return UpcomingVersion(state) == (arrivals_ == nullptr ? 0 : arrivals_->version())
             ? Action::kNone
             : Action::kPrepare;
}

void ExpertServer::Leave(const v1::ClusterState& state) {
  const uint64_t left = std::exchange(served_, 0);
  std::shared_ptr<ShardHost> host = TakeHost(state.recovery());
  if (state.handover().generation() != left) {
    arrivals_ = nullptr;
    return;
  }
  Kept kept = {left, host->version(), host->Release()};
  absl::MutexLock lock(&mutex_);
  kept_ = std::move(kept);
}

std::shared_ptr<ShardHost> ExpertServer::TakeHost(const std::string& why) {
  const uint64_t generation = host()->generation();
  rpc_->SetServing(v1::ShardService::service_full_name(), false);
  shard_service_.Cut(generation, absl::AbortedError(absl::StrCat(
                                     "generation ", generation, " is over: ", why)));
  std::shared_ptr<ShardHost> host;
  {
    absl::MutexLock lock(&mutex_);
    host.swap(host_);
  }
  // Whoever asks for its status holds it for a moment. Its memory and its file must be free before
  // the next one takes as much.
  while (host.use_count() > 1) absl::SleepFor(kLook);
  return host;
}

void ExpertServer::Forget() {
  std::optional<Kept> kept;
  absl::MutexLock lock(&mutex_);
  kept.swap(kept_);
}

void ExpertServer::Prepare(const v1::ClusterState& state) {
  arrivals_ = nullptr;
  if (!state.has_upcoming()) return;
  Arrivals::Options options;
  options.server = id_;
  options.generation = state.generation();
  options.upcoming = state.upcoming();
  options.tls = options_.rpc.tls;
  options.timeout = options_.rendezvous_timeout;
  options.arrived = [this, version = UpcomingVersion(state)] {
    member_->SetArrived(version);
  };
  arrivals_ = std::make_unique<Arrivals>(*home_, std::move(options));
}

absl::Status ExpertServer::Enter(const v1::ClusterState& state) {
  served_ = state.generation();
  member_->Enter(served_);
  absl::StatusOr<std::unique_ptr<ShardHost>> host = Load(state);
  arrivals_ = nullptr;
  if (!host.ok()) {
    served_ = 0;
    const absl::Status cause =
        Annotate(host.status(), absl::StrCat(id_, " can't load its shards"));
    member_->Fail(cause);
    // Of a generation that is over it doesn't matter.
    RETURN_IF_ERROR(member_->health());
    return member_->generation_health().ok() ? cause : absl::OkStatus();
  }
  {
    absl::MutexLock lock(&mutex_);
    host_ = *std::move(host);
  }
  shard_service_.Open(served_);
  rpc_->SetServing(v1::ShardService::service_full_name(), true);
  member_->SetReady(served_);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ShardHost>> ExpertServer::Load(
    const v1::ClusterState& state) {
  ShardHost::Options options;
  options.server = member_->id();
  options.incarnation = member_->incarnation();
  options.state = state;
  options.rendezvous_timeout = options_.rendezvous_timeout;
  options.trace = trace_.get();
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
  ShardStock stock;
  if (state.has_handover()) {
    ASSIGN_OR_RETURN(stock, TakeOver(state));
  }
  return ShardHost::Load(home_, std::move(options), stock);
}

absl::StatusOr<ShardStock> ExpertServer::TakeOver(const v1::ClusterState& state) {
  ShardStock stock;
  // First: others may fetch copies of what stays here, and this one of what stays with them.
  if (arrivals_ != nullptr) {
    ASSIGN_OR_RETURN(stock, arrivals_->Finish(state.handover().step(), [this] {
      return !member_->generation_health().ok();
    }));
  }
  absl::MutexLock lock(&mutex_);
  if (!kept_.has_value()) return stock;
  RETURN_IF_ERROR(CheckStep(*kept_, state.handover().step()));
  for (const std::string& id : ShardsOf(state.placement(), id_)) {
    if (auto shard = kept_->shards.extract(id)) stock.insert(std::move(shard));
  }
  return stock;
}

absl::Status ExpertServer::CheckStep(const Kept& kept, uint64_t step) const {
  if (kept.step == step) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(id_, " left generation ", kept.generation,
                                          " at step ", kept.step, " instead of ", step));
}

absl::StatusOr<PieceBatch> ExpertServer::ReadForTransfer(
    const v1::FetchShardRequest& request, int64_t first) {
  const absl::Status not_yet = absl::UnavailableError(
      absl::StrCat(id_, request.handed_over() ? " hasn't left" : " isn't in",
                   " generation ", request.generation()));
  const std::span<const uint64_t> have(request.versions().data(),
                                       request.versions_size());
  if (!request.handed_over()) {
    const std::shared_ptr<ShardHost> host = this->host();
    if (host == nullptr || host->generation() != request.generation()) return not_yet;
    return host->ReadPiecesOf(request.shard(), have, first, kTransferBytes);
  }
  std::shared_ptr<ShardHost> next;
  {
    absl::MutexLock lock(&mutex_);
    if (!kept_.has_value() || kept_->generation != request.generation()) return not_yet;
    RETURN_IF_ERROR(CheckStep(*kept_, request.step()));
    const auto shard = kept_->shards.find(request.shard());
    if (shard != kept_->shards.end()) {
      return ReadPieces(*shard->second, have, first, kTransferBytes);
    }
    next = host_;
  }
  // One of which this server keeps a copy. No step changes it before all servers have theirs.
  if (next == nullptr) {
    return absl::UnavailableError(
        absl::StrCat(id_, " is taking over ", request.shard(), " itself"));
  }
  if (next->version() != request.step()) {
    return absl::FailedPreconditionError(
        absl::StrCat(id_, " has gone on to step ", next->version(), " with ",
                     request.shard(), "; asked for was step ", request.step()));
  }
  return next->ReadPiecesOf(request.shard(), have, first, kTransferBytes);
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
