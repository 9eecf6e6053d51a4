// The conversation of two workers with a whole server: every message is answered, refused with a cause,
// or waits for others; what is let pass breaks nothing in the shards.
//
// An input is the job's kind and then messages: whose, which, and how it is spoiled.
#include <glog/logging.h>

#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "server/shard_host.h"
#include "tests/fuzz/target.h"
#include "tests/server/made_step.h"

namespace moe::fuzz {
namespace {

enum JobKind : uint8_t { kFlat, kHierarchical, kClipped, kTables, kJobKinds };
enum Message : uint8_t {
  kForward,
  kEvaluate,
  kBackward,
  kClose,
  kApply,
  kPull,
  kScore,
  kRaw,
  kMessages
};

constexpr size_t kMostMessages = 64;
constexpr char kTableShard[] = "softmax/rows0";

v1::Job JobOf(uint8_t kind) {
  if (kind == kHierarchical) return testing::MadeHierarchicalJob();
  v1::Job job = testing::MadeJob(kind == kClipped ? "adam {} clip_norm: 0.5" : "adam {}");
  if (kind == kTables) {
    job.mutable_model()->mutable_tables()->set_shards(2);
    job.mutable_model()->mutable_tables()->set_candidates(3);
  }
  return job;
}

// Keeps the newest forward answer, which tells the moments.
class LastSink : public ReplySink {
 public:
  void Send(std::shared_ptr<const v1::ExchangeResponse> response) override {
    absl::MutexLock lock(&mutex_);
    if (response->has_forward()) forward_ = response->forward();
  }
  BalanceMoments moments() const {
    absl::MutexLock lock(&mutex_);
    Spread importance, load;
    if (forward_.replies_size() > 0) {
      for (const v1::GroupOutput& group : forward_.replies(0).groups()) {
        importance = Join(importance, FromProto(group.importance_spread()));
        load = Join(load, FromProto(group.load_spread()));
      }
    }
    return {importance.moments(), load.moments()};
  }

 private:
  static Spread FromProto(const v1::Spread& spread) {
    return {testing::kPerGroup, spread.mean(), spread.m2()};
  }

  mutable absl::Mutex mutex_;
  v1::ForwardResponse forward_ ABSL_GUARDED_BY(mutex_);
};

class Talk {
 public:
  explicit Talk(uint8_t kind)
      : kind_(kind), job_(JobOf(kind)), plan_(MakeModelPlan(job_)) {
    static Backend* const backend = [] {
      std::string error;
      Backend* const made = MakeCpuBackend(1, &error).release();
      CHECK(made != nullptr) << error;
      return made;
    }();
    ShardHost::Options options;
    options.server = "server/s0";
    options.state = testing::MadeState(job_);
    options.rendezvous_timeout = absl::InfiniteDuration();
    // A cut fails here, as on a disk that is full.
    options.state.set_checkpoint_dir("/proc/nowhere");
    options.events.shard_written = [](uint64_t, const v1::ShardFile&) {
      return absl::OkStatus();
    };
    options.events.failed = [this](const absl::Status& cause) {
      absl::MutexLock lock(&mutex_);
      failure_ = cause;
    };
    options.events.idle = [](const std::string&, const v1::MemberTimes&) {};
    ShardStock none;
    absl::StatusOr<std::unique_ptr<ShardHost>> host =
        ShardHost::Load(*ShardHome::Create(*backend, {}), std::move(options), none);
    CHECK(host.ok()) << host.status();
    host_ = *std::move(host);
  }

  // Takes a message from the input and says it.
  void SayNext(Reader* input) {
    const uint8_t whose = input->Take<uint8_t>();
    const auto& [worker, replicas] = *std::next(testing::Workers().begin(), whose % 2);
    v1::ExchangeRequest request;
    const std::string bytes = Spoiled(MessageOf(input, replicas), input);
    if (!request.ParseFromString(bytes)) return;
    const absl::Status status =
        host_->Handle(worker, std::move(request), sinks_[whose % 2]);
    // Waits for the engine, and so for the answer, and for nothing else.
    (void)host_->Digests([] { return true; });
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) {
      CHECK(absl::StrContains(failure_.message(), "/proc/nowhere")) << failure_;
      return;
    }
    // The thread that writes cuts may not have told of its failure yet.
    CHECK(status.ok() || absl::IsInvalidArgument(status) ||
          absl::IsFailedPrecondition(status) ||
          absl::StrContains(status.message(), "/proc/nowhere"))
        << status;
  }
  bool failed() const {
    absl::MutexLock lock(&mutex_);
    return !failure_.ok();
  }

 private:
  // A good one, if it comes in its turn.
  v1::ExchangeRequest MessageOf(Reader* input,
                                const std::vector<uint32_t>& replicas) const {
    const uint8_t message = input->Take<uint8_t>() % kMessages;
    const uint8_t when = input->Take<uint8_t>();
    const uint64_t step = when / testing::kWaves;
    const uint32_t wave = when % testing::kWaves;
    const auto made = [&](v1::ExchangeRequest request) {
      return kind_ != kHierarchical
                 ? request
                 : testing::Hierarchical(std::move(request), sinks_[0]->moments());
    };
    v1::ExchangeRequest request;
    request.set_generation(1);
    switch (message) {
      case kForward:
        return made(testing::ForwardOf(step, wave, replicas));
      case kEvaluate:
        return made(testing::ForwardOf(step, wave, replicas, v1::MODE_EVALUATE));
      case kBackward:
        return made(testing::BackwardOf(step, wave, replicas));
      case kClose:
        request = testing::CloseOf(plan_, step, replicas, /*cut=*/wave == 1);
        AddRowGradients(*request.mutable_close());
        return request;
      case kApply:
        return testing::ApplyOf(step, 0.5);
      case kPull: {
        request = testing::PullOf({"dense/0"}, step);
        v1::RowSet& rows = *request.mutable_pull()->add_rows();
        rows.set_shard(kTableShard);
        rows.set_row(std::string("\1\0\0\0", 4));
        if (kind_ != kTables) request.mutable_pull()->clear_rows();
        return request;
      }
      case kScore: {
        request.mutable_score()->set_version(step);
        v1::ScoreFrame& frame = *request.mutable_score()->add_frames();
        frame.set_replica(replicas[0]);
        frame.set_x(testing::Bytes(std::vector<float>(testing::kWidth, 0.5f)));
        frame.set_target(std::string("\4\0\0\0", 4));
        return request;
      }
      default: {
        const std::string_view bytes = input->TakeBytes(input->Take<uint16_t>() % 4096);
        (void)request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
        request.set_generation(1);
        return request;
      }
    }
  }

  // Empty ones, as the maximal nodes of the sender's dense gradients.
  void AddRowGradients(v1::CloseRequest& close) const {
    for (const ShardSpec& shard : plan_.shards) {
      if (shard.kind != ShardKind::kTable) continue;
      for (const v1::GradientNode& node : close.gradients()) {
        if (node.shard() != "dense/0") continue;
        v1::RowGradientNode& rows = *close.add_row_gradients();
        rows.set_shard(shard.id);
        rows.set_level(node.level());
        rows.set_index(node.index());
      }
    }
  }

  // Some bytes of it are others.
  static std::string Spoiled(const v1::ExchangeRequest& request, Reader* input) {
    std::string bytes = request.SerializeAsString();
    for (int spoils = input->Take<uint8_t>() % 8; spoils > 0 && !bytes.empty();
         --spoils) {
      bytes[input->Take<uint16_t>() % bytes.size()] = input->Take<char>();
    }
    return bytes;
  }

  const uint8_t kind_;
  const v1::Job job_;
  const ModelPlan plan_;
  const std::shared_ptr<LastSink> sinks_[2] = {std::make_shared<LastSink>(),
                                               std::make_shared<LastSink>()};
  mutable absl::Mutex mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<ShardHost> host_;
};

void PutMessage(uint8_t whose, Message message, uint8_t step, uint8_t wave,
                std::string* input) {
  Put(whose, input);
  Put(message, input);
  Put(static_cast<uint8_t>(step * testing::kWaves + wave), input);
  Put(uint8_t{0}, input);  // unspoiled
}

std::string Steps(JobKind kind, uint8_t steps, bool cut = false) {
  std::string input(1, static_cast<char>(kind));
  const auto both = [&](Message message, uint8_t step, uint8_t wave) {
    PutMessage(0, message, step, wave, &input);
    PutMessage(1, message, step, wave, &input);
  };
  for (uint8_t step = 0; step < steps; ++step) {
    both(kPull, step, 0);
    for (const Message pass : {kForward, kBackward}) {
      for (uint8_t wave = 0; wave < testing::kWaves; ++wave) both(pass, step, wave);
    }
    both(kClose, step, cut ? 1 : 0);
    if (kind == kClipped) both(kApply, step, 0);
  }
  for (uint8_t wave = 0; wave < testing::kWaves; ++wave) both(kEvaluate, 0, wave);
  both(kScore, steps, 0);
  return input;
}

}  // namespace

std::map<std::string, std::string> Seeds() {
  std::string spoiled = Steps(kFlat, 1);
  // The first forward's first bytes.
  spoiled[1 + 2 * 4 + 3] = 1;
  spoiled.insert(1 + 2 * 4 + 4, "\x05\x00\xff", 3);
  return {{"flat", Steps(kFlat, 2)},
          {"hierarchical", Steps(kHierarchical, 2)},
          {"clipped", Steps(kClipped, 2)},
          {"tables", Steps(kTables, 2)},
          {"spoiled", spoiled},
          {"cut", Steps(kFlat, 1, /*cut=*/true)}};
}

}  // namespace moe::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moe::fuzz;
  Reader input(data, size);
  Talk talk(input.Take<uint8_t>() % kJobKinds);
  for (size_t i = 0; i < kMostMessages && !input.empty() && !talk.failed(); ++i) {
    talk.SayNext(&input);
  }
  return 0;
}
