#include "worker/worker_process.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "client/cluster_client.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "common/kernels/backend.h"
#include "glog/logging.h"
#include "worker/data/token_dataset.h"
#include "worker/trainer/activity_clock.h"
#include "worker/trainer/trainer.h"

namespace moe {
namespace {

v1::RegisterRequest Registration(const Worker::Options& options, const TokenDataset& data,
                                 Backend& backend) {
  v1::RegisterRequest request;
  request.set_kind(v1::MEMBER_KIND_WORKER);
  request.set_name(options.name);
  request.set_protocol_version(kProtocolVersion);
  request.set_numerics(NumericsFingerprint(backend));
  request.set_numerics_description(backend.Description());
  request.set_memory_bytes(options.memory);
  request.set_threads(options.threads);
  v1::DataDescription& description = *request.mutable_data();
  description.set_sha256(data.sha256());
  description.set_vocabulary(data.vocabulary_size());
  description.set_train_tokens(data.tokens(TextSplit::kTrain).size());
  description.set_validation_tokens(data.tokens(TextSplit::kValidation).size());
  description.set_test_tokens(data.tokens(TextSplit::kTest).size());
  return request;
}

// That there is such an expert.
absl::Status CheckContexts(const TopContexts::Options& contexts, const v1::Job& job) {
  int32_t most = 0;
  for (const Mixture& mixture : MixturesOf(job)) {
    if (contexts.layer < 0 || mixture.id.layer == static_cast<uint32_t>(contexts.layer)) {
      most = std::max(most, mixture.moe.experts());
    }
  }
  if (most == 0) {
    return absl::InvalidArgumentError(
        contexts.layer < 0 ? std::string("the model has no experts")
                           : absl::StrCat("layer ", contexts.layer, " has no experts"));
  }
  if (contexts.expert < most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("there is no expert ", contexts.expert, ": the last is ", most - 1));
}

}  // namespace

Worker::Worker(Options options)
    : options_(std::move(options)), thread_([this] { result_ = Run(); }) {}

Worker::~Worker() {
  if (!thread_.joinable()) return;
  Stop();
  thread_.join();
}

absl::Status Worker::Wait() {
  if (thread_.joinable()) thread_.join();
  return result_;
}

std::string Worker::Describe() const {
  absl::MutexLock lock(&mutex_);
  if (member_ != nullptr) return member_->Describe();
  return absl::StrCat("reads the text in ", options_.data, " and joins the coordinator ",
                      options_.coordinator);
}

void Worker::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
  if (member_ != nullptr) member_->Cancel();
}

absl::Status Worker::Run() {
  std::string error;
  std::unique_ptr<Backend> backend =
      options_.make_backend(options_.device, options_.threads, &error);
  if (backend == nullptr) return absl::FailedPreconditionError(error);
  ASSIGN_OR_RETURN(TokenDataset data, TokenDataset::Open(options_.data));

  Member::Options join;
  join.coordinator = options_.coordinator;
  join.tls = options_.tls;
  join.registration = Registration(options_, data, *backend);
  join.join_timeout = options_.join_timeout;
  join.coordinator_timeout = options_.coordinator_timeout;
  join.cancelled = [this] {
    absl::MutexLock lock(&mutex_);
    return stopped_;
  };
  ASSIGN_OR_RETURN(std::unique_ptr<Member> member, options_.join(join));
  {
    absl::MutexLock lock(&mutex_);
    if (stopped_) return absl::CancelledError("this process was told to stop");
    member_ = member.get();
  }
  if (options_.on_joined) options_.on_joined();
  absl::Cleanup forget = [this] {
    absl::MutexLock lock(&mutex_);
    member_ = nullptr;
  };

  const absl::Status result = WorkUntilOver(*backend, data, *member);
  member->Leave();
  return result;
}

absl::Status Worker::WorkUntilOver(Backend& backend, const TokenDataset& data,
                                   Member& member) {
  // The last generation that this worker took part in.
  uint64_t generation = 0;
  std::string reason = "the job to start";
  // Once it has started the coordinator decides when it has waited for long enough.
  absl::Duration patience = options_.start_timeout;
  while (true) {
    ASSIGN_OR_RETURN(
        const v1::ClusterState state,
        member.WaitFor(reason, patience, [&](const v1::ClusterState& state) {
          return state.phase() == v1::PHASE_RUNNING &&
                 (state.generation() != generation || !member.generation_health().ok());
        }));
    if (state.phase() == v1::PHASE_FINISHED) return absl::OkStatus();
    generation = state.generation();
    patience = absl::InfiniteDuration();
    member.Enter(generation);
    const absl::Status worked = Work(backend, data, member, state);
    if (worked.ok()) {
      reason = "the job to finish";
      continue;
    }
    RETURN_IF_ERROR(member.health());
    member.Fail(worked);
    // A cause that the cluster already knew comes back as the member's health.
    RETURN_IF_ERROR(member.health());
    if (member.generation_health().ok() && !IsLostPeer(worked)) return worked;
    LOG(INFO) << "leaves generation " << generation << ": " << worked.message();
    reason = "the job to go on";
  }
}

absl::Status Worker::Work(Backend& backend, const TokenDataset& data, Member& member,
                          const v1::ClusterState& state) {
  const v1::Job& job = state.job();
  if (!options_.contexts_file.empty() && state.mode() != v1::RUN_MODE_EVALUATE) {
    return absl::InvalidArgumentError(
        "--contexts_file is for an evaluation, but this run trains; leave it out, and "
        "take "
        "moectl experts --top-contexts afterwards");
  }
  const ModelPlan plan = MakeModelPlan(job);
  std::vector<uint32_t> owned;
  for (const v1::ReplicaAssignment& replica : state.replicas()) {
    if (replica.worker() == member.id()) owned.push_back(replica.replica());
  }
  if (owned.empty())
    return absl::InternalError(absl::StrCat(member.id(), " was given no replica"));

  ClusterClient::Options connect;
  connect.member = member.id();
  connect.incarnation = member.incarnation();
  connect.owned_replicas = owned;
  connect.tls = options_.tls;
  connect.timeout = options_.step_timeout;
  connect.reconnect_timeout = options_.reconnect_timeout;
  connect.cut_timeout = options_.cut_timeout;
  ActivityClock clock;
  Activity before_wait = Activity::kComputing;
  connect.on_wait = [&](const std::string& reason) {
    if (reason.empty()) {
      clock.Switch(before_wait);
    } else {
      before_wait = clock.Switch(Activity::kWaiting);
    }
    member.SetWaitingFor(reason);
  };
  connect.open_stream = options_.open_stream;
  connect.go_on_without = [&](const std::string& server, const absl::Status& why) {
    if (!member.generation_health().ok()) return false;
    member.GoOnWithout(server, std::string(why.message()));
    return true;
  };
  ASSIGN_OR_RETURN(std::shared_ptr<ClusterClient> cluster,
                   ClusterClient::Connect(state, plan, std::move(connect)));
  // The member outlives the connection.
  member.OnTrouble([cluster = std::weak_ptr(cluster)](const absl::Status& cause) {
    if (auto alive = cluster.lock()) alive->Cancel(cause);
  });
  member.OnState([cluster = std::weak_ptr(cluster)](const v1::ClusterState& state) {
    const auto alive = cluster.lock();
    if (alive == nullptr) return;
    std::set<std::string> servers;
    for (const v1::ServerAddress& server : state.servers()) {
      servers.insert(server.server());
    }
    alive->KeepServers(servers);
  });

  ASSIGN_OR_RETURN(
      std::unique_ptr<Trainer> trainer,
      Trainer::Create(backend, job, plan, data, *cluster, member, clock, owned));
  if (state.mode() == v1::RUN_MODE_EVALUATE) {
    RETURN_IF_ERROR(Evaluate(*trainer, data, state));
  } else {
    RETURN_IF_ERROR(trainer->Train(state.start_step()));
  }
  return member.FinishWork();
}

absl::Status Worker::Evaluate(Trainer& trainer, const TokenDataset& data,
                              const v1::ClusterState& state) {
  const v1::Split split = state.evaluate_split();
  if (options_.contexts_file.empty()) {
    return trainer.Evaluate(split, state.start_step(), nullptr);
  }
  TopContexts contexts(options_.contexts);
  RETURN_IF_ERROR(CheckContexts(options_.contexts, state.job()));
  ASSIGN_OR_RETURN(const Vocabulary vocabulary, data.ReadVocabulary());
  RETURN_IF_ERROR(trainer.Evaluate(split, state.start_step(), &contexts));
  return WriteFileAtomically(
      options_.contexts_file,
      contexts.ToJson(data.tokens(ToTextSplit(split)), vocabulary));
}

}  // namespace moe
