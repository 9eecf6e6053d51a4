#include "tests/bench/lone_cluster.h"

#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/exchange_key.h"
#include "client/shard_stream.h"
#include "common/base/status_macros.h"
#include "common/kernels/backend.h"
#include "server/shard_home.h"
#include "server/shard_host.h"
#include "tests/bench/lone_state.h"
#include "tests/server/fake_member.h"
#include "worker/data/token_dataset.h"
#include "worker/worker_process.h"

namespace moe {
namespace {

class Answers : public ReplySink {
 public:
  void Send(std::shared_ptr<const v1::ExchangeResponse> response) override {
    absl::MutexLock lock(&mutex_);
    if (response->has_failure()) {
      broken_ = absl::AbortedError(response->failure().message());
      return;
    }
    const ExchangeKey key = KeyOf(*response);
    answers_[key] = std::move(response);
  }
  absl::StatusOr<v1::ExchangeResponse> Await(const ExchangeKey& key,
                                             absl::Time deadline) {
    std::shared_ptr<const v1::ExchangeResponse> answer;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return !broken_.ok() || answers_.contains(key);
      };
      if (!mutex_.AwaitWithDeadline(absl::Condition(&ready), deadline)) {
        return absl::DeadlineExceededError("the server doesn't answer " + Describe(key));
      }
      RETURN_IF_ERROR(broken_);
      answer = std::move(answers_.extract(key).mapped());
    }
    return *answer;
  }
  void Break(const absl::Status& cause) {
    absl::MutexLock lock(&mutex_);
    if (broken_.ok()) broken_ = cause;
  }

 private:
  absl::Mutex mutex_;
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
  std::map<ExchangeKey, std::shared_ptr<const v1::ExchangeResponse>> answers_
      ABSL_GUARDED_BY(mutex_);
};

class DirectStream : public ShardStream {
 public:
  DirectStream(ShardHost& host, std::shared_ptr<Answers> answers)
      : host_(host), answers_(std::move(answers)), peer_(kLoneServer) {}

  const std::string& peer() const override { return peer_; }
  absl::Status Send(v1::ExchangeRequest request) override {
    request.set_generation(host_.generation());
    return host_.Handle(kLoneWorker, std::move(request), answers_);
  }
  absl::StatusOr<Received<v1::ExchangeResponse>> Await(const ExchangeKey& key,
                                                       absl::Time deadline) override {
    return answers_->Await(key, deadline);
  }
  void Cancel(const absl::Status& cause) override { answers_->Break(cause); }

 private:
  ShardHost& host_;
  const std::shared_ptr<Answers> answers_;
  const std::string peer_;
};

class LoneClusterImpl final : public LoneCluster {
 public:
  explicit LoneClusterImpl(Pace& pace) : pace_(pace) {}
  ~LoneClusterImpl() override {
    pace_.End(absl::CancelledError("the cluster is over"));
    answers_->Break(absl::CancelledError("the cluster is over"));
    worker_ = nullptr;
  }

  absl::Status Start(const LoneClusterOptions& options) {
    v1::Job job = options.job;
    {
      ASSIGN_OR_RETURN(const TokenDataset data, TokenDataset::Open(options.data));
      job.mutable_model()->set_vocabulary(static_cast<int32_t>(data.vocabulary_size()));
    }
    const v1::ClusterState state = LoneState(job, "nowhere");
    RETURN_IF_ERROR(StartServer(state, options.threads));

    cluster_.SetState(state);
    Worker::Options worker;
    worker.name = "w0";
    worker.data = options.data;
    worker.threads = options.threads;
    worker.join =
        [this](Member::Options member) -> absl::StatusOr<std::unique_ptr<Member>> {
      return KeepPace(std::make_unique<testing::FakeMember>(&cluster_, member), pace_);
    };
    worker.open_stream =
        [this](
            const ShardStreamOptions&) -> absl::StatusOr<std::unique_ptr<ShardStream>> {
      return std::make_unique<DirectStream>(*host_, answers_);
    };
    worker_ = std::make_unique<Worker>(std::move(worker));
    return absl::OkStatus();
  }

 private:
  absl::Status StartServer(const v1::ClusterState& state, int threads) {
    std::string error;
    backend_ = MakeCpuBackend(threads, &error);
    if (backend_ == nullptr) return absl::FailedPreconditionError(error);
    ASSIGN_OR_RETURN(std::unique_ptr<ShardHome> home,
                     ShardHome::Create(*backend_, ShardHome::Limits()));
    ShardHost::Options options;
    options.server = kLoneServer;
    options.incarnation = 1;
    options.state = state;
    options.rendezvous_timeout = absl::Minutes(2);
    options.events.shard_written = [](uint64_t, const v1::ShardFile&) {
      return absl::UnimplementedError("no checkpoints here");
    };
    options.events.failed = [this](const absl::Status& cause) { pace_.End(cause); };
    options.events.waiting = [](const std::string&) {};
    options.events.idle = [](const std::string&, const v1::MemberTimes&) {};
    ShardStock none;
    ASSIGN_OR_RETURN(host_, ShardHost::Load(std::move(home), std::move(options), none));
    return absl::OkStatus();
  }

  Pace& pace_;
  testing::FakeCluster cluster_;
  const std::shared_ptr<Answers> answers_ = std::make_shared<Answers>();
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<ShardHost> host_;
  std::unique_ptr<Worker> worker_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LoneCluster>> LoneCluster::Start(
    const LoneClusterOptions& options, Pace& pace) {
  auto cluster = std::make_unique<LoneClusterImpl>(pace);
  RETURN_IF_ERROR(cluster->Start(options));
  return cluster;
}

}  // namespace moe
