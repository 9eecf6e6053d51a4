// A worker's step over the wire format and real servers' shards, without a network, against
// the models with their experts beside them.
#include "worker/trainer/step_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/cluster_client.h"
#include "common/checkpoint/manifest.h"
#include "common/io/safetensors.h"
#include "common/job/job_file.h"
#include "common/job/model_plan.h"
#include "glog/logging.h"
#include "server/shard_host.h"
#include "tests/worker/local_step.h"
#include "tests/worker/small_jobs.h"
#include "tests/worker/values.h"

namespace moe {
namespace {

using testing::LocalBatch;
using testing::LocalModel;
using testing::NamedTensors;
using testing::TestBackend;

constexpr char kWorker[] = "worker/w0";

// A stream that ends in a shard host of the same process.
class LocalStream : public ShardStream {
 public:
  LocalStream(std::string server, ShardHost& host)
      : server_(std::move(server)), host_(host), answers_(std::make_shared<Answers>()) {}

  const std::string& peer() const override { return server_; }
  absl::Status Send(v1::ExchangeRequest request) override {
    request.set_generation(host_.generation());
    return host_.Handle(kWorker, std::move(request), answers_);
  }
  absl::StatusOr<Received<v1::ExchangeResponse>> Await(const ExchangeKey& key,
                                                       absl::Time deadline) override {
    absl::MutexLock lock(&answers_->mutex);
    const auto come = [&] { return answers_->by_key.contains(key); };
    if (!answers_->mutex.AwaitWithDeadline(absl::Condition(&come), deadline)) {
      return absl::DeadlineExceededError(Describe(key));
    }
    v1::ExchangeResponse response = *answers_->by_key.at(key);
    answers_->by_key.erase(key);
    return response;
  }
  void Cancel(const absl::Status&) override {}

 private:
  struct Answers : ReplySink {
    void Send(std::shared_ptr<const v1::ExchangeResponse> response) override {
      absl::MutexLock lock(&mutex);
      by_key[KeyOf(*response)] = std::move(response);
    }
    absl::Mutex mutex;
    std::map<ExchangeKey, std::shared_ptr<const v1::ExchangeResponse>> by_key;
  };

  const std::string server_;
  ShardHost& host_;
  const std::shared_ptr<Answers> answers_;
};

// Two servers share the groups and the tables; one worker has all replicas.
class StepRunnerTest : public ::testing::TestWithParam<std::string> {
 protected:
  StepRunnerTest()
      : job_(Job()), plan_(MakeModelPlan(job_)), parameters_(TestBackend(), plan_) {
    v1::ClusterState state;
    state.set_phase(v1::PHASE_RUNNING);
    state.set_generation(1);
    *state.mutable_job() = job_;
    state.set_mode(v1::RUN_MODE_TRAIN);
    checkpoints_ = absl::StrCat(::testing::TempDir(), "/step_runner-", GetParam());
    state.set_checkpoint_dir(checkpoints_);
    for (const ShardSpec& shard : plan_.shards) {
      v1::ShardPlacement& placed = *state.mutable_placement()->add_shards();
      placed.set_shard(shard.id);
      placed.set_server(absl::StrCat("server/s", (shard.group + shard.first_row) % 2));
    }
    std::vector<uint32_t> owned;
    for (int32_t r = 0; r < job_.training().replicas(); ++r) {
      owned.push_back(r);
      v1::ReplicaAssignment& assignment = *state.add_replicas();
      assignment.set_replica(r);
      assignment.set_worker(kWorker);
    }
    for (int s = 0; s < 2; ++s) {
      const std::string id = absl::StrCat("server/s", s);
      v1::ServerAddress& address = *state.add_servers();
      address.set_server(id);
      address.set_address("here");
      ShardHost::Options options;
      options.server = id;
      options.state = state;
      options.rendezvous_timeout = absl::Seconds(60);
      options.events.shard_written = [this](uint64_t, const v1::ShardFile& file) {
        absl::MutexLock lock(&mutex_);
        written_.insert(file.shard());
        return absl::OkStatus();
      };
      options.events.failed = [](const absl::Status& cause) { LOG(FATAL) << cause; };
      options.events.idle = [](const std::string&, const v1::MemberTimes&) {};
      ShardStock none;
      auto host = ShardHost::Load(*ShardHome::Create(TestBackend(), {}),
                                  std::move(options), none);
      CHECK(host.ok()) << host.status();
      hosts_[id] = *std::move(host);
    }
    ClusterClient::Options options;
    options.member = kWorker;
    options.owned_replicas = owned;
    options.open_stream = [this](const ShardStreamOptions& stream) {
      return std::make_unique<LocalStream>(stream.server, *hosts_.at(stream.server));
    };
    auto client = ClusterClient::Connect(state, plan_, std::move(options));
    CHECK(client.ok()) << client.status();
    client_ = *std::move(client);
    runner_ = std::make_unique<StepRunner>(TestBackend(), job_, plan_, parameters_,
                                           client_->experts(), client_->tables(), clock_,
                                           owned);
    for (size_t i = 0; i < owned.size(); ++i) runner_->model(i).ResetState();

    // Servers have the initial values; what the worker pulls may be anything.
    NamedTensors values = testing::RandomParameters(job_, 7);
    for (const TensorSpec& tensor : plan_.tensors) {
      std::vector<float>& value = values.at(tensor.name);
      if (!tensor.of_table && tensor.name.find(".expert") == std::string::npos &&
          tensor.name.find(".group") == std::string::npos) {
        TestBackend().Upload(value.data(), parameters_.tensor(tensor.name).data,
                             value.size() * sizeof(float));
      } else {
        FillInitialValues(job_.seed(), tensor, value.data());
      }
      initial_[tensor.name].resize(tensor.size());
      FillInitialValues(job_.seed(), tensor, initial_[tensor.name].data());
    }
    local_ = std::make_unique<LocalModel>(TestBackend(), job_);
    local_->SetParameters(values);
  }

  static v1::Job Job() {
    v1::Job job = testing::SmallJob(GetParam());
    // So large that an update follows a gradient, and not its sign and rounding alone.
    job.mutable_optimizer()->mutable_adam()->set_epsilon(1e-3f);
    FillDefaults(&job);
    return job;
  }

  // The first step, up to its close.
  void Pass(const std::vector<std::vector<LocalBatch>>& batches, PassResult* result) {
    const v1::Training& training = job_.training();
    const auto pass = runner_->Forward(
        0, PassMode::kTrain, /*version=*/0,
        int64_t{training.replicas()} * training.lanes() * training.unroll(),
        Flatten(batches));
    ASSERT_TRUE(pass.ok()) << pass.status();
    const absl::Status backward = runner_->Backward();
    ASSERT_TRUE(backward.ok()) << backward;
    *result = *pass;
  }

  static std::vector<MicroBatch> Flatten(
      const std::vector<std::vector<LocalBatch>>& batches) {
    std::vector<MicroBatch> flat;
    for (const auto& of_replica : batches) {
      for (const LocalBatch& batch : of_replica) {
        flat.push_back({batch.input, batch.target});
      }
    }
    return flat;
  }

  // importance: whether the pass has it, as in an evaluation.
  void ExpectSame(const PassResult& pass, const LocalModel::StepResult& expected,
                  bool importance) {
    double loss_sum = 0;
    for (const v1::ReplicaLoss& loss : pass.losses) loss_sum += loss.loss_sum();
    EXPECT_NEAR(loss_sum, expected.loss_sum, 1e-6 * expected.loss_sum);
    ASSERT_EQ(pass.balance.size(), runner_->mixtures().size());
    for (size_t m = 0; m < pass.balance.size(); ++m) {
      std::vector<uint64_t> assigned(pass.balance[m].assigned.size());
      uint64_t tokens = 0;
      for (size_t s = 0; s < expected.choices.size(); ++s) {
        const int32_t of = runner_->model(0).exchange(static_cast<int>(s)).mixture;
        if (of != static_cast<int32_t>(m)) continue;
        for (const auto& of_replica : expected.choices[s]) {
          for (const auto& of_wave : of_replica) {
            for (int32_t expert : of_wave.expert) ++assigned[expert];
            for (size_t t = 0; t + 1 < of_wave.offset.size(); ++t) {
              tokens += of_wave.offset[t] < of_wave.offset[t + 1];
            }
          }
        }
      }
      EXPECT_EQ(pass.balance[m].assigned, assigned);
      double sum = 0;
      for (double of_expert : pass.balance[m].importance) sum += of_expert;
      EXPECT_NEAR(sum, importance ? static_cast<double>(tokens) : 0, 1e-4);
    }
  }

  // As Trainer does.
  void Close(double rate) {
    StepClose close;
    close.learning_rate = rate;
    close.cut = true;
    for (size_t i = 0; i < runner_->owned().size(); ++i) {
      const uint32_t replica = runner_->owned()[i];
      ReplicaModel& model = runner_->model(i);
      for (const Array<float>& shard : model.gradients().shards()) {
        close.gradients[replica].emplace_back(shard.size());
        shard.Download(close.gradients[replica].back());
      }
      close.replica_states[replica] = model.SaveState();
      if (!job_.model().has_tables()) continue;
      close.embedding_gradients[replica] = model.EmbeddingGradients();
      close.softmax_gradients[replica] = model.SoftmaxGradients();
    }
    const auto closed = client_->parameters().Close(std::move(close));
    ASSERT_TRUE(closed.ok()) << closed.status();
  }

  // What the servers have at version 1: dense tensors and all rows of tables as pulled, experts and
  // groups' gates from the cut. An expert without rows is in no file, and as it was.
  NamedTensors Pulled() {
    NamedTensors pulled = initial_;
    std::vector<std::vector<float>> dense;
    for (const Array<float>& shard : parameters_.shards())
      dense.emplace_back(shard.size());
    const std::vector<std::span<float>> spans(dense.begin(), dense.end());
    const absl::Status status = client_->parameters().PullDense(1, spans);
    EXPECT_TRUE(status.ok()) << status;
    std::map<Table, std::vector<float>> rows;
    if (job_.model().has_tables()) {
      for (const Table table : {Table::kEmbedding, Table::kSoftmax}) {
        rows[table] = PullRows(table);
      }
    }
    size_t shard_of_dense = 0;
    for (const ShardSpec& shard : plan_.shards) {
      if (shard.kind == ShardKind::kDense) {
        const float* from = dense[shard_of_dense++].data();
        for (const int64_t t : shard.tensors) {
          std::vector<float>& values = pulled.at(plan_.tensors[t].name);
          std::copy_n(from, values.size(), values.begin());
          from += values.size();
        }
      } else if (shard.kind == ShardKind::kTable) {
        const int64_t width = client_->tables().columns(shard.table);
        int64_t column = 0;
        for (const int64_t t : shard.tensors) {
          const TensorSpec& tensor = plan_.tensors[t];
          for (int64_t r = 0; r < shard.rows; ++r) {
            std::copy_n(
                rows[shard.table].begin() + (shard.first_row + r) * width + column,
                tensor.cols, pulled.at(tensor.name).begin() + r * tensor.cols);
          }
          column += tensor.cols;
        }
      } else if (shard.kind == ShardKind::kExpert) {
        ReadShard(shard, &pulled);
      }
    }
    return pulled;
  }

  std::vector<float> PullRows(Table table) {
    std::vector<int32_t> words(job_.model().vocabulary());
    std::iota(words.begin(), words.end(), 0);
    std::vector<float> rows(words.size() * client_->tables().columns(table));
    absl::Status status = client_->tables().SendPull(1, PullFor::kTraining, table, words);
    EXPECT_TRUE(status.ok()) << status;
    status = client_->tables().AwaitPull(1, table, words, rows);
    EXPECT_TRUE(status.ok()) << status;
    return rows;
  }

  // Once its server has written it.
  void ReadShard(const ShardSpec& shard, NamedTensors* values) {
    {
      absl::MutexLock lock(&mutex_);
      const auto written = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return written_.contains(shard.id);
      };
      ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&written), absl::Seconds(30)));
    }
    const auto file = SafetensorsFile::Open(absl::StrCat(
        checkpoints_, "/", CutFolderName(1, 1), "/", ShardFileName(shard.id)));
    ASSERT_TRUE(file.ok()) << file.status();
    for (const int64_t t : shard.tensors) {
      std::vector<float>& of_tensor = values->at(plan_.tensors[t].name);
      const auto entry = (*file)->Find(plan_.tensors[t].name);
      if (!entry.ok()) continue;
      ASSERT_EQ(entry->bytes, of_tensor.size() * sizeof(float));
      const auto bytes = (*file)->Read(*entry);
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      std::memcpy(of_tensor.data(), bytes->data(), entry->bytes);
    }
  }

  const v1::Job job_;
  const ModelPlan plan_;
  std::string checkpoints_;
  NamedTensors initial_;
  const DenseParameters parameters_;
  absl::Mutex mutex_;
  std::set<std::string> written_ ABSL_GUARDED_BY(mutex_);  // files of the cut
  std::map<std::string, std::unique_ptr<ShardHost>> hosts_;
  std::unique_ptr<ClusterClient> client_;
  ActivityClock clock_;
  std::unique_ptr<StepRunner> runner_;
  std::unique_ptr<LocalModel> local_;
};

TEST_P(StepRunnerTest, LossesBalanceAndGradients) {
  const auto batches = testing::RandomBatches(job_, 1);
  PassResult pass;
  ASSERT_NO_FATAL_FAILURE(Pass(batches, &pass));

  const LocalModel::StepResult expected = local_->Train(0, batches);
  ExpectSame(pass, expected, /*importance=*/false);
  double balance_loss = 0;
  for (size_t m = 0; m < runner_->totals().size(); ++m) {
    const v1::Moe& moe = runner_->mixtures()[m].moe;
    const BalanceMoments& moments = runner_->totals()[m].moments;
    balance_loss += moe.w_importance() * CvSquared(moments.importance) +
                    moe.w_load() * CvSquared(moments.load);
  }
  EXPECT_NEAR(balance_loss, expected.balance_loss, 1e-5);

  for (const ShardSpec& shard : plan_.shards) {
    if (shard.kind != ShardKind::kDense) continue;
    for (int64_t index : shard.tensors) {
      const TensorSpec& tensor = plan_.tensors[index];
      std::vector<double> sum(tensor.size());
      for (size_t i = 0; i < runner_->owned().size(); ++i) {
        std::vector<float> values(tensor.size());
        TestBackend().Download(runner_->model(i).gradients().tensor(tensor.name).data,
                               values.data(), values.size() * sizeof(float));
        for (size_t j = 0; j < sum.size(); ++j) sum[j] += values[j];
      }
      const std::vector<float>& wanted = expected.gradients.at(tensor.name);
      double largest = 0;
      for (float value : wanted) largest = std::max<double>(largest, std::abs(value));
      for (size_t j = 0; j < sum.size(); ++j) {
        EXPECT_NEAR(sum[j], wanted[j], 1e-5 * largest + 1e-8)
            << tensor.name << "[" << j << "]";
      }
    }
  }
}

TEST_P(StepRunnerTest, CloseUpdatesEveryTensor) {
  const auto batches = testing::RandomBatches(job_, 1);
  PassResult pass;
  ASSERT_NO_FATAL_FAILURE(Pass(batches, &pass));
  constexpr float kRate = 0.01f;
  Close(kRate);
  const NamedTensors actual = Pulled();

  local_->Train(0, batches);
  // What the servers started from.
  local_->SetParameters(initial_);
  NamedTensors m = initial_;
  for (auto& [name, values] : m) std::fill(values.begin(), values.end(), 0);
  NamedTensors v = m;
  const v1::Adam& adam = job_.optimizer().adam();
  OptimizerStep step;
  step.kind = OptimizerStep::Kind::kAdam;
  step.adam = {.rate = kRate,
               .beta1 = adam.beta1(),
               .beta2 = adam.beta2(),
               .epsilon = adam.epsilon(),
               .count = 1};
  local_->Update(step, &m, &v);
  const NamedTensors expected = local_->GetParameters();
  ASSERT_EQ(actual.size(), expected.size());
  for (const TensorSpec& tensor : plan_.tensors) {
    const std::vector<float>& got = actual.at(tensor.name);
    const std::vector<float>& wanted = expected.at(tensor.name);
    ASSERT_EQ(got.size(), wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_NEAR(got[i], wanted[i], 1e-4 * kRate) << tensor.name << "[" << i << "]";
    }
  }
  // And that there was something to see.
  std::map<ShardKind, int> changed;
  for (const ShardSpec& shard : plan_.shards) {
    if (shard.kind == ShardKind::kReplica) continue;
    int& of_kind = changed[shard.kind];
    for (const int64_t t : shard.tensors) {
      const std::string& name = plan_.tensors[t].name;
      of_kind += actual.at(name) != initial_.at(name);
    }
  }
  for (const auto& [kind, tensors] : changed) EXPECT_GT(tensors, 0);
}

TEST_P(StepRunnerTest, EvaluationWithPadding) {
  auto batches = testing::RandomBatches(job_, 3);
  std::fill_n(batches[1][1].target.begin() + 2, 3, -1);
  const auto pass =
      runner_->Forward(0, PassMode::kEvaluate, /*version=*/0, 1, Flatten(batches));
  ASSERT_TRUE(pass.ok()) << pass.status();
  ExpectSame(*pass, local_->Evaluate(batches), /*importance=*/true);
}

INSTANTIATE_TEST_SUITE_P(Jobs, StepRunnerTest,
                         ::testing::ValuesIn(testing::SmallJobNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace moe
