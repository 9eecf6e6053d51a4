// Runs the sampled softmax of some replicas as a training step does, from the pull of the rows to
// their gradients, and writes what went in and what came out, for a comparison with another
// implementation (sampled_softmax_torch_test.py).
//
//   sampled_softmax_dump FOLDER
//
// Tensors (dump.h):
//   table                      f32 [V, d + 1]: w, then b, of each word
//   candidates                 i32 [S]; "draws": how many drew them
//   x/<r>/<w>, dx/<r>/<w>      f32 [T, d]
//   target/<r>/<w>             i32 [T]; -1: not counted
//   row/<r>, gradient/<r>      i32 [n] words, f32 [n, d + 1]
// r: replica, w: wave. "loss": by replica and wave; "scale": of the gradients.
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "common/kernels/backend.h"
#include "common/random/random.h"
#include "glog/logging.h"
#include "tests/worker/dump.h"
#include "tests/worker/local_tables.h"
#include "tests/worker/values.h"
#include "worker/models/word_layers.h"
#include "worker/trainer/activity_clock.h"
#include "worker/trainer/table_pass.h"

namespace moe::testing {
namespace {

constexpr int64_t kVocabulary = 50;
constexpr int64_t kWidth = 9;
constexpr int32_t kCandidates = 14;
constexpr int kReplicas = 2;
constexpr int kWaves = 2;
constexpr int64_t kTokens = 40;
constexpr uint64_t kStep = 3;
constexpr float kScale = 0.125;

v1::Job Job() {
  v1::Job job;
  job.set_seed(5);
  job.mutable_model()->set_d_model(kWidth);
  job.mutable_model()->set_vocabulary(kVocabulary);
  job.mutable_model()->mutable_tables()->set_shards(1);
  job.mutable_model()->mutable_tables()->set_candidates(kCandidates);
  job.mutable_training()->set_replicas(kReplicas);
  job.mutable_training()->set_waves(kWaves);
  return job;
}

// Every seventh token has no target; the others have frequent and seldom words.
std::vector<int32_t> Targets(uint64_t seed) {
  std::vector<uint32_t> bits(kTokens);
  FillBits(MakeKey(seed, Purpose::kProbe, {}), 0, bits);
  std::vector<int32_t> words;
  for (int64_t t = 0; t < kTokens; ++t) {
    const int64_t range = t % 2 == 0 ? 8 : kVocabulary;
    words.push_back(t % 7 == 3 ? -1 : static_cast<int32_t>(bits[t] % range));
  }
  return words;
}

void Run(const std::string& folder) {
  const v1::Job job = Job();
  Backend& backend = TestBackend();
  LocalTables tables(kVocabulary, kWidth);
  const std::vector<float> table = RandomValues(1, kVocabulary * (kWidth + 1));
  tables.Set(Table::kEmbedding, RandomValues(2, kVocabulary * kWidth));
  tables.Set(Table::kSoftmax, table);
  std::vector<MicroBatch> batches;
  for (int i = 0; i < kReplicas * kWaves; ++i) {
    batches.push_back({std::vector<int32_t>(kTokens, i), Targets(10 + i)});
  }
  ActivityClock clock;
  TablePass pass(backend, job, tables, clock);
  const auto pulled = pass.Pull(/*version=*/0, PassMode::kTrain, kStep, batches);
  CHECK(pulled.ok()) << pulled.status();

  Dump dump;
  dump.Add("table", {kVocabulary, kWidth + 1}, table);
  const Candidates& drawn = pulled->front().candidates->candidates;
  dump.Add("candidates", {kCandidates}, drawn.words);
  dump.json()["draws"] = drawn.draws;
  dump.json()["scale"] = kScale;
  for (int r = 0; r < kReplicas; ++r) {
    TableWordLayers words(backend, kWidth, /*dropout=*/0, kWaves);
    words.BeginStep({.step = kStep, .replica = static_cast<uint32_t>(r)}, &(*pulled)[r]);
    for (int w = 0; w < kWaves; ++w) {
      const std::vector<float> x = RandomValues(20 + r * kWaves + w, kTokens * kWidth);
      const std::vector<int32_t>& target = batches[r * kWaves + w].target;
      const Tensor dx(backend, kTokens, kWidth);
      const double loss =
          words.Train(MakeTensor(kTokens, kWidth, x).view(), target, kScale, dx.view());
      dump.json()["loss"][r][w] = loss;
      dump.Add(Path("x", r, w), {kTokens, kWidth}, x);
      dump.Add(Path("dx", r, w), {kTokens, kWidth}, Values(dx));
      dump.Add(Path("target", r, w), {kTokens}, target);
    }
    const SparseRows gradients = words.SoftmaxGradients();
    const std::vector<int32_t> row(gradients.row.begin(), gradients.row.end());
    const auto rows = static_cast<int64_t>(row.size());
    dump.Add("row/" + std::to_string(r), {rows}, row);
    dump.Add("gradient/" + std::to_string(r), {rows, kWidth + 1}, gradients.value);
  }
  dump.Write(folder);
}

}  // namespace
}  // namespace moe::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "Usage: sampled_softmax_dump FOLDER\n";
    return 2;
  }
  moe::testing::Run(argv[1]);
}
