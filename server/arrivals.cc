#include "server/arrivals.h"

#include <grpcpp/grpcpp.h>

#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/job/placement.h"
#include "common/net/channel.h"
#include "common/net/checksum.h"
#include "common/net/grpc_status.h"
#include "glog/logging.h"
#include "proto/moe/v1/transfer.grpc.pb.h"
#include "server/shard_pieces.h"
#include "server/transfer_messages.h"

namespace moe {
namespace {

constexpr absl::Duration kRetry = absl::Milliseconds(5);

// By shard: where it is now.
std::map<std::string, std::string> SourcesOf(const v1::Upcoming& upcoming) {
  std::map<std::string, std::string> address;
  for (const v1::ServerAddress& server : upcoming.servers()) {
    address[server.server()] = server.address();
  }
  std::map<std::string, std::string> sources;
  for (const v1::ShardPlacement& placed : upcoming.present().shards()) {
    sources[placed.shard()] = address[placed.server()];
  }
  return sources;
}

}  // namespace

Arrivals::Arrivals(ShardHome& home, Options options)
    : home_(home),
      options_(std::move(options)),
      plan_(MakeModelPlan(options_.upcoming.job())) {
  const std::set<std::string> mine =
      ShardsOf(options_.upcoming.present(), options_.server);
  const std::set<std::string> next =
      ShardsOf(options_.upcoming.placement(), options_.server);
  std::map<std::string, std::string> sources = SourcesOf(options_.upcoming);
  for (const ShardSpec& spec : plan_.shards) {
    if (!next.contains(spec.id) || mine.contains(spec.id)) continue;
    incoming_.push_back({&spec, sources[spec.id], nullptr});
  }
  thread_ = std::thread([this] { Run(); });
}

Arrivals::~Arrivals() {
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }
  if (thread_.joinable()) thread_.join();
}

void Arrivals::Run() {
  for (Incoming& incoming : incoming_) {
    if (stopped()) return;
    absl::StatusOr<std::unique_ptr<Shard>> shard =
        home_.Make(plan_, *incoming.spec, options_.upcoming.job());
    if (!shard.ok()) {
      failure_ = shard.status();
      break;
    }
    incoming.shard = *std::move(shard);
    incoming.shard->Initialize();
    if (const absl::Status status = FetchInAdvance(incoming); !status.ok()) {
      LOG(INFO) << "could not fetch " << incoming.spec->id
                << " in advance: " << status.message();
    }
  }
  if (!stopped()) options_.arrived();
}

absl::Status Arrivals::FetchInAdvance(Incoming& incoming) {
  // Of the others every step changes all.
  if (incoming.spec->kind != ShardKind::kExpert &&
      incoming.spec->kind != ShardKind::kTable) {
    return absl::OkStatus();
  }
  return Fetch(incoming, v1::FetchShardRequest(), absl::Now() + options_.timeout);
}

absl::StatusOr<ShardStock> Arrivals::Finish(uint64_t step,
                                            const std::function<bool()>& cancelled) {
  thread_.join();
  RETURN_IF_ERROR(failure_);
  const absl::Time deadline = absl::Now() + options_.timeout;
  v1::FetchShardRequest request;
  request.set_handed_over(true);
  request.set_step(step);
  ShardStock stock;
  for (Incoming& incoming : incoming_) {
    absl::Status status = Fetch(incoming, request, deadline);
    // The source may be about to stop, too.
    while (absl::IsUnavailable(status) && absl::Now() < deadline) {
      if (cancelled()) return absl::CancelledError("the generation is over");
      absl::SleepFor(kRetry);
      status = Fetch(incoming, request, deadline);
    }
    RETURN_IF_ERROR(status);
    stock[incoming.spec->id] = std::move(incoming.shard);
  }
  return stock;
}

absl::Status Arrivals::Fetch(Incoming& incoming, v1::FetchShardRequest request,
                             absl::Time deadline) {
  request.set_member(options_.server);
  request.set_generation(options_.generation);
  request.set_shard(incoming.spec->id);
  const std::vector<uint64_t> versions = PieceVersions(*incoming.shard);
  request.mutable_versions()->Assign(versions.begin(), versions.end());
  Seal(&request);

  const auto stub = v1::ShardTransferService::NewStub(
      MakeChannel(incoming.source, options_.tls, Role::kServer));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  {
    absl::MutexLock lock(&mutex_);
    if (stopped_) return absl::CancelledError("the generation is over");
    call_ = &context;
  }
  const auto reader = stub->FetchShard(&context, request);
  PieceReceiver receiver(*incoming.shard);
  absl::Status taken;
  v1::FetchShardResponse response;
  while (taken.ok() && reader->Read(&response)) taken = receiver.Take(response);
  if (!taken.ok()) context.TryCancel();
  const grpc::Status status = reader->Finish();
  {
    absl::MutexLock lock(&mutex_);
    call_ = nullptr;
  }
  const std::string what = absl::StrCat(incoming.spec->id, " from ", incoming.source);
  RETURN_IF_ERROR(Annotate(taken, what));
  if (status.error_code() == grpc::StatusCode::CANCELLED && !stopped()) {
    return absl::UnavailableError(
        absl::StrCat(what, ": the call was refused or cut off"));
  }
  RETURN_IF_ERROR(FromGrpcStatus(status, what));
  return Annotate(receiver.Finish(), what);
}

bool Arrivals::stopped() const {
  absl::MutexLock lock(&mutex_);
  return stopped_;
}

}  // namespace moe
