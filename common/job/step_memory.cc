#include "common/job/step_memory.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/human.h"
#include "common/base/protocol.h"
#include "common/job/copy_memory.h"
#include "common/job/expert_traffic.h"
#include "common/job/placement.h"
#include "common/job/tensor_state.h"
#include "common/tensor/replica_tree.h"

namespace moe {
namespace {

// What a process of the smallest job has.
constexpr int64_t kProgram = int64_t{28} << 20;

int64_t Bytes(double floats) { return HostFloats(floats).size(); }

// Of a message that comes in: gRPC's buffers have twice its size, beside what is parsed.
int64_t Received(int64_t bytes) { return 3 * bytes; }
// Of one that goes out, as a message and as gRPC sends it.
int64_t Sent(int64_t bytes) { return 2 * bytes; }

// Arrays [rows, h_i], one for each hidden layer.
Footprint HiddenOf(const v1::Moe& moe, double rows) {
  Footprint all;
  for (const int32_t hidden : moe.hidden()) all += ArrayOf(rows * hidden);
  return all;
}

}  // namespace

std::string Describe(const MemoryNeed& need) {
  std::vector<std::string> parts;
  for (const auto& [what, bytes] :
       {std::pair("parameters", need.parameters),
        std::pair("optimizer state", need.optimizer),
        std::pair("gradients", need.gradients),
        std::pair("activations of a step", need.activations),
        std::pair("messages", need.messages), std::pair("copies", need.copies),
        std::pair("the program", need.program)}) {
    if (bytes * 100 < need.total()) continue;
    parts.push_back(absl::StrCat(what, " ", FormatBytes(bytes)));
  }
  return absl::StrCat(FormatBytes(need.total()), " (", absl::StrJoin(parts, ", "), ")");
}

int64_t CarriedStateBytes(const v1::Job& job) {
  int64_t width = 0;
  for (const v1::Layer& layer : job.model().layers()) {
    const v1::Lstm& lstm = layer.lstm();
    width += 2 * layer.recurrent_moe().hidden();
    width += lstm.hidden() + (lstm.projection() > 0 ? lstm.projection() : lstm.hidden());
  }
  return Bytes(static_cast<double>(job.training().lanes() * width));
}

MemoryNeeds ComputeMemoryNeeds(const v1::Job& job, const ModelPlan& plan,
                               const v1::Placement& placement,
                               std::span<const v1::ReplicaAssignment> replicas,
                               const std::map<std::string, ServerLimits>& servers,
                               const std::map<std::string, int>& worker_threads,
                               bool training) {
  std::map<std::string, std::vector<ShardSpec>> shards = ShardsByServer(plan, placement);
  const std::map<std::string, std::vector<uint32_t>> owned = ReplicasByWorker(replicas);
  std::vector<std::vector<uint32_t>> by_worker;
  for (const auto& [worker, of_worker] : owned) by_worker.push_back(of_worker);

  const StepMemory memory(job, plan, training);
  MemoryNeeds needs;
  for (const auto& [server, limits] : servers) {
    needs[server] = memory.OfServer(shards[server], by_worker, limits);
  }
  const auto scores = [](const auto& of_server) {
    return std::any_of(
        of_server.second.begin(), of_server.second.end(), [](const ShardSpec& shard) {
          return shard.kind == ShardKind::kTable && shard.table == Table::kSoftmax;
        });
  };
  const int64_t score_servers = std::count_if(shards.begin(), shards.end(), scores);
  const int copies = std::any_of(placement.shards().begin(), placement.shards().end(),
                                 [](const v1::ShardPlacement& placed) {
                                   return !placed.standby().empty();
                                 })
                         ? 2
                         : 1;
  for (const auto& [worker, of_worker] : owned) {
    const auto threads = worker_threads.find(worker);
    needs[worker] =
        memory.OfWorker(of_worker, score_servers,
                        threads == worker_threads.end() ? 0 : threads->second, copies);
  }
  return needs;
}

int64_t StepMemory::Rows() const {
  const v1::Training& training = job_.training();
  return int64_t{training.lanes()} / training.waves() * training.unroll();
}

int64_t StepMemory::Nodes(std::span<const uint32_t> owned) const {
  return static_cast<int64_t>(MaximalNodes(owned, job_.training().replicas()).size());
}

StepMemory::Sizes StepMemory::SizesOf(std::span<const ShardSpec> shards, ShardKind kind,
                                      bool experts) const {
  Sizes sizes;
  for (const ShardSpec& shard : shards) {
    if (shard.kind != kind) continue;
    double first = 0;
    double second = 0;
    int64_t parameter_bytes = 0;
    for (const int64_t t : shard.tensors) {
      if (plan_.tensors[t].of_expert && !experts) continue;
      const TensorState state = StateOf(job_.optimizer(), plan_.tensors[t]);
      first += static_cast<double>(state.m);
      second += static_cast<double>(state.v);
      parameter_bytes += state.parameter_bytes;
    }
    // Each row of a table has its own count of updates, of eight bytes.
    const Footprint counts = HostFloats(2 * static_cast<double>(shard.rows));
    const Footprint optimizer = ArrayOf(first) + ArrayOf(second) + counts;
    sizes.parameters += ArrayOf(static_cast<double>(parameter_bytes) / sizeof(float));
    sizes.optimizer += optimizer;
    const int64_t floats = Bytes(static_cast<double>(plan_.SizeOf(shard)));
    sizes.floats += floats;
    sizes.largest = std::max(sizes.largest, floats);
  }
  return sizes;
}

// ---------------------------------------------------------------- servers

MemoryNeed StepMemory::OfServer(std::span<const ShardSpec> shards,
                                std::span<const std::vector<uint32_t>> owned,
                                const ServerLimits& limits) const {
  const int threads = limits.threads;
  const bool clips = job_.optimizer().clip_norm() > 0;
  const Sizes dense = SizesOf(shards, ShardKind::kDense);
  const Sizes table = SizesOf(shards, ShardKind::kTable);
  const Sizes expert = SizesOf(shards, ShardKind::kExpert, !limits.tier);
  int64_t states = 0;
  std::map<MixtureId, int32_t> groups;
  for (const ShardSpec& shard : shards) {
    if (shard.kind == ShardKind::kReplica) states += CarriedStateBytes(job_);
    if (shard.kind == ShardKind::kExpert) {
      ++groups[{static_cast<uint32_t>(shard.layer), shard.mixture}];
    }
  }

  Work kept;
  Footprint hidden;
  Work wave;
  // A wave of an evaluation, with what only it has.
  Work evaluation;
  // The end of a step: a dense shard's sum goes to the backend when its turn comes, as do the
  // groups of a layer. Clipping needs all of both at once.
  Work close;
  std::vector<std::pair<int32_t, MixtureWork>> works;
  for (const Mixture& mixture : MixturesOf(job_)) {
    if (!groups.contains(mixture.id)) continue;
    const int32_t count = groups.at(mixture.id);
    MixtureWork work = WorkOf(mixture, count, threads);
    // Of sizes that change with every step some are kept for later
    // (common/kernels/cpu/large_blocks.h).
    for (Footprint* part : {&work.kept.activations, &work.hidden, &work.wave.activations,
                            &work.untouched, &work.close}) {
      part->pages += part->pages / 4;
    }
    if (training_) hidden += count * work.hidden;
    if (limits.tier) {
      evaluation = Larger(evaluation, work.wave + Work{.activations = work.untouched});
    }
    works.emplace_back(count, work);
  }
  // Whose hidden activations there is room for depends on who comes first.
  const int64_t budget = limits.activation_bytes;
  const bool again = budget > 0 && budget < hidden.size();
  if (again) hidden = {.pages = 0, .heap = budget};
  for (auto& [count, work] : works) {
    const int32_t at_once = threads > 0 && !clips ? std::min(threads, count) : count;
    if (again) {
      // All waves of a group again at the end of the step, and one for the backward pass.
      work.close += work.hidden;
      work.wave.activations += std::max(threads, 1) * work.hidden;
    }
    kept = kept + work.kept;
    wave = Larger(wave, work.wave);
    const Work of_mixture = {.activations = at_once * work.close};
    close = clips ? close + of_mixture : Larger(close, of_mixture);
  }
  close.activations += clips
                           ? dense.parameters
                           : ArrayOf(static_cast<double>(dense.largest) / sizeof(float));
  close.activations += RowSums(shards, clips);
  kept.activations += hidden;
  int64_t nodes = 0;
  int64_t pulled = 0;  // rows of tables by each worker, and their gradients
  int64_t pushed = 0;
  for (const std::vector<uint32_t>& of_worker : owned) {
    nodes += Nodes(of_worker);
    pulled += traffic_.Bytes(shards, static_cast<int64_t>(of_worker.size()));
    pushed += traffic_.PushedBytes(shards, of_worker);
  }
  // Rows as they come in, or while they are joined, beside what they are decoded to.
  close.messages = Received(nodes * dense.floats) + 2 * pushed + states;

  // Dense shards and rows of tables that all workers pull; scores.
  const int64_t workers = static_cast<int64_t>(owned.size());
  const Work pull = {.messages = Sent(workers * dense.floats + pulled)};
  Work most = Larger(pull.with_holes(), ServerScores(shards, owned).with_holes());
  most = Larger(most, kept + wave.with_holes());
  most = Larger(most, evaluation.with_holes());
  if (training_) most = Larger(most, kept + close.with_holes());

  MemoryNeed need;
  need.program = kProgram;
  need.parameters =
      (dense.parameters + table.parameters + expert.parameters).size() + states;
  need.optimizer = (dense.optimizer + table.optimizer + expert.optimizer).size();
  need.activations = most.activations.size();
  need.messages = most.messages;
  if (training_ && !shards.empty()) {
    // Beside copies a piece of a file as it is written, and states that steps have replaced.
    need.copies = CopyBytes(job_, plan_, shards, limits.tier, limits.copy_bytes) +
                  kCutChunk + states;
  }
  return need;
}

Footprint StepMemory::RowSums(std::span<const ShardSpec> shards, bool clips) const {
  Footprint sums;
  Footprint updates;
  for (const ShardSpec& shard : shards) {
    const double floats =
        static_cast<double>(traffic_.Bytes({&shard, 1}, job_.training().replicas())) /
        sizeof(float);
    sums += HostFloats(floats);
    const Footprint update = HostFloats(floats) + ArrayOf(floats);
    if (clips) {
      updates += ArrayOf(floats);
    } else if (updates.size() < update.size()) {
      updates = update;
    }
  }
  return sums + updates;
}

double StepMemory::ScoreTokens(int64_t replicas) const {
  return static_cast<double>(std::min<int64_t>(replicas * Rows(), kMaxScoreTokens));
}

StepMemory::Work StepMemory::ServerScores(
    std::span<const ShardSpec> shards,
    std::span<const std::vector<uint32_t>> owned) const {
  int64_t rows = 0;
  for (const ShardSpec& shard : shards) {
    if (shard.kind == ShardKind::kTable && shard.table == Table::kSoftmax) {
      rows = std::max(rows, shard.rows);
    }
  }
  if (rows == 0) return {};
  const double d = job_.model().d_model();
  Footprint x;
  int64_t received = 0;
  for (const std::vector<uint32_t>& of_worker : owned) {
    const Footprint request = ArrayOf(ScoreTokens(of_worker.size()) * d);
    x += kMaxScoresUnderWay * request;
    received += Received(request.size());
  }
  // Decoded inputs, and logits of a block of words.
  const auto block = static_cast<double>(std::min<int64_t>(rows, kScoreBlockRows));
  return {.activations = x + ArrayOf(ScoreTokens(1) * block), .messages = received};
}

StepMemory::MixtureWork StepMemory::WorkOf(const Mixture& mixture, int32_t groups,
                                           int threads) const {
  const v1::Moe& moe = mixture.moe;
  const auto in = static_cast<double>(mixture.in);
  const auto out = static_cast<double>(mixture.out);
  const double wider = std::max(in, out);
  const int64_t waves = job_.training().waves();
  const int64_t calls = waves * mixture.calls;
  // Of a call, all replicas; then of one group.
  const double tokens =
      static_cast<double>(job_.training().replicas() * Rows()) / mixture.calls;
  const ExpertTraffic traffic = EvenTraffic(moe, groups);
  const double rows = traffic.rows * tokens;
  const double group_rows = traffic.group_rows * tokens / groups;
  const double pairs = traffic.pairs * tokens / groups;
  const int32_t at_once = threads > 0 ? std::min(threads, groups) : groups;

  MixtureWork work;
  // On each thread the matrices of one expert, and the largest as it is made: floats, and off the
  // backend.
  const bool bfloat16 = moe.parameters() == v1::PARAMETERS_BFLOAT16;
  double before = in;
  double largest = 0;
  const auto add_matrix = [&](double cols) {
    work.untouched += ArrayOf(before * cols / (bfloat16 ? 2 : 1));
    largest = std::max(largest, before * cols);
    before = cols;
  };
  for (const int32_t hidden : moe.hidden()) add_matrix(hidden);
  add_matrix(out);
  work.untouched += HostFloats(bfloat16 ? 1.5 * largest : largest);
  const int32_t experts = groups * (moe.experts() / moe.groups());
  work.untouched = (threads > 0 ? std::min(threads, experts) : groups) * work.untouched;

  // The rows of all waves, of each replica, decoded, may wait for their turn; one wave's come in
  // meanwhile. A group's batch in and out, and its sums by row. Experts without a hidden layer need
  // their input in the backward pass, too.
  const int64_t replicas = job_.training().replicas();
  work.wave.messages = Received(Bytes(rows * wider));
  work.wave.activations =
      waves * replicas * ArrayOf(rows * wider / static_cast<double>(replicas)) +
      at_once *
          (ArrayOf(pairs * in) + ArrayOf(pairs * out) + ArrayOf(group_rows * wider));
  if (!training_) {
    work.wave.activations += at_once * HiddenOf(moe, pairs);
    work.wave.messages += groups * Bytes(group_rows * out);
    return work;
  }
  work.untouched += at_once * HiddenOf(moe, pairs);
  if (moe.hidden().empty()) work.wave.activations += at_once * ArrayOf(pairs * in);
  // Hidden and dhidden; x and dy; numbers of each pair (its row, its gate, its place in the
  // batch); the replies of both passes.
  work.hidden = 2 * calls * HiddenOf(moe, pairs);
  work.kept.activations =
      calls * (ArrayOf(rows * in) + ArrayOf(rows * out) + groups * HostFloats(5 * pairs));
  work.kept.messages = calls * groups * Bytes(group_rows * (in + out) + pairs);
  // x, gated dy, hidden and dhidden of all calls once more, in the order of experts.
  const double step_rows = static_cast<double>(calls) * group_rows;
  const double step_pairs = static_cast<double>(calls) * pairs;
  work.close = ArrayOf(step_pairs * in) + ArrayOf(step_pairs * out) +
               2 * HiddenOf(moe, step_pairs);
  if (moe.k_primary() > 0) {
    // The secondary gate's logits, raw and noise, or later their gradients; what it chose,
    // which the replies have too; and its batch of all waves.
    const double columns = static_cast<double>(moe.experts()) / moe.groups();
    work.kept.activations +=
        waves * groups *
        (3 * ArrayOf(group_rows * columns) + HostFloats(2 * group_rows + 2 * pairs));
    work.kept.messages += waves * groups * Bytes(3 * pairs);
    work.close += ArrayOf(step_rows * in) + 2 * ArrayOf(step_rows * columns);
  }
  return work;
}

// ---------------------------------------------------------------- workers

MemoryNeed StepMemory::OfWorker(std::span<const uint32_t> owned, int64_t score_servers,
                                int threads, int copies) const {
  const int64_t replicas = static_cast<int64_t>(owned.size());
  const Sizes dense = SizesOf(plan_.shards, ShardKind::kDense);

  // A call's rows to the servers of a mixture, kept until they are answered while those of the other
  // waves are sent, and those that come back, in either pass; of each copy of a group.
  int64_t frames = 0;
  const int64_t others = job_.training().waves() - 1;
  for (const Mixture& mixture : MixturesOf(job_)) {
    const ExpertTraffic traffic = EvenTraffic(mixture.moe, mixture.moe.groups());
    const double rows =
        traffic.group_rows * static_cast<double>(replicas * Rows()) / mixture.calls;
    const int64_t in = Bytes(rows * static_cast<double>(mixture.in));
    const int64_t out = Bytes(rows * static_cast<double>(mixture.out));
    frames = std::max({frames, copies * (others * in + Sent(in) + Received(out)),
                       copies * (others * out + Sent(out) + Received(in))});
  }
  const Work kept = {.activations = replicas * Activations()};
  Work work;
  const int64_t at_once = threads > 0 ? std::min<int64_t>(threads, replicas) : replicas;
  work.activations = at_once * CandidateLogits() + WorkerRows(owned);
  // Dense shards come in first, then rows of tables, which are put together.
  const int64_t pulled = traffic_.Bytes(plan_.shards, replicas);
  work.messages = std::max({frames, Received(dense.floats), Received(pulled) + pulled,
                            WorkerScores(replicas, score_servers)});
  if (training_) {
    // Gradients off the backend, which become messages shard by shard; then these on their
    // way.
    const int64_t nodes = Nodes(owned);
    // Rows of each replica, and of one shard at a time once more, to be joined.
    int64_t largest = 0;
    for (const ShardSpec& shard : plan_.shards) {
      largest = std::max(largest, traffic_.Bytes({&shard, 1}, 1));
    }
    const int64_t touched = replicas * (traffic_.Bytes(plan_.shards, 1) + largest);
    const int64_t pushed = traffic_.PushedBytes(plan_.shards, owned);
    const int64_t again = (copies - 1) * (nodes * dense.floats + pushed);
    work.messages = std::max(
        {work.messages,
         replicas * dense.floats + nodes * dense.largest + touched + pushed + again,
         copies * Sent(nodes * dense.floats + pushed)});
  }
  MemoryNeed need;
  need.program = kProgram;
  need.parameters = dense.parameters.size() + dense.floats;
  need.gradients = replicas * dense.parameters.size();
  const Work all = kept + work.with_holes();
  need.activations = all.activations.size();
  need.messages = all.messages;
  return need;
}

Footprint StepMemory::CandidateLogits() const {
  if (!training_ || !job_.model().has_tables()) return {};
  const auto rows = static_cast<double>(std::min<int64_t>(Rows(), kSampledSoftmaxTokens));
  return ArrayOf(rows * (job_.model().tables().candidates() + 1));
}

Footprint StepMemory::Activations() const {
  const double d = job_.model().d_model();
  const double rows = static_cast<double>(Rows());
  const int64_t waves = job_.training().waves();
  // Logits, one wave at a time; words as embedded and their gradient, of each wave; scratch;
  // rows from servers.
  // With tables: in evaluations the softmax's input of each wave off the backend.
  const bool tables = job_.model().has_tables();
  const int32_t words = tables ? 0 : job_.model().vocabulary();
  double from_servers = rows * d;
  for (const Mixture& mixture : MixturesOf(job_)) {
    const auto width = static_cast<double>(std::max(mixture.in, mixture.out));
    from_servers = std::max(from_servers, rows / mixture.calls * width);
  }
  Footprint all = ArrayOf(rows * words) + (2 * waves + 1) * ArrayOf(rows * d) +
                  HostFloats(from_servers) + (tables ? waves : 0) * HostFloats(rows * d);
  for (const v1::Layer& layer : job_.model().layers()) {
    all += waves * ArrayOf(rows * d);  // output
    if (layer.has_lstm()) all += OfLstm(layer.lstm());
    // Of a MoE layer the output, and what the sigmoid takes; its gradient, off the backend.
    if (layer.has_moe()) all += (waves + 1) * ArrayOf(rows * d) + HostFloats(rows * d);
    if (layer.has_recurrent_moe()) all += OfRecurrentMoe(layer.recurrent_moe());
  }
  for (const Mixture& mixture : MixturesOf(job_)) {
    const v1::RecurrentMoe& layer =
        job_.model().layers(static_cast<int>(mixture.id.layer)).recurrent_moe();
    all += OfMixture(mixture, layer.kept_states() > 0 ? 1 : mixture.calls);
  }
  return all;
}

Footprint StepMemory::OfRecurrentMoe(const v1::RecurrentMoe& layer) const {
  const v1::Training& training = job_.training();
  const double rows = static_cast<double>(Rows());
  const double lanes = static_cast<double>(training.lanes() / training.waves());
  const double hidden = layer.hidden();
  const Footprint state = ArrayOf(lanes * 2 * hidden);
  // Gates; the gradient of the output, and of c in one time step; the state after. Without
  // recomputation tanh(c), and c and h with the state before; with it those of a time step, its
  // gates and the states that are kept.
  Footprint of_wave = ArrayOf(rows * 4 * hidden) + ArrayOf(rows * hidden) +
                      ArrayOf(lanes * hidden) + state;
  if (layer.kept_states() == 0) {
    of_wave += ArrayOf(rows * hidden) + 2 * ArrayOf((lanes + rows) * hidden);
  } else {
    of_wave += ArrayOf(lanes * 4 * hidden) + ArrayOf(lanes * hidden) +
               2 * ArrayOf(2 * lanes * hidden) +
               std::min(layer.kept_states(), training.unroll()) * state;
  }
  // What comes from the servers for a time step; what goes to them, off the backend.
  return training.waves() * of_wave + ArrayOf(lanes * 4 * hidden) +
         HostFloats(rows * 4 * hidden);
}

Footprint StepMemory::WorkerRows(std::span<const uint32_t> owned) const {
  if (!job_.model().has_tables()) return {};
  const double d = job_.model().d_model();
  const v1::Training& training = job_.training();
  const int64_t vocabulary = job_.model().vocabulary();
  // Rows of input and target words of each replica; of candidates, once for all.
  const auto tokens = static_cast<double>(training.lanes() * training.unroll());
  const double words = DistinctWords(0, vocabulary, tokens, vocabulary);
  const auto replicas = static_cast<int64_t>(owned.size());
  const Footprint input = ArrayOf(words * d);
  if (!training_) return replicas * input;
  const Footprint target = ArrayOf(words * d) + ArrayOf(words);
  const double candidates = job_.model().tables().candidates();
  const Footprint candidate = ArrayOf(candidates * d) + ArrayOf(candidates);
  return replicas * (2 * (input + target) + candidate) + candidate;
}

int64_t StepMemory::WorkerScores(int64_t replicas, int64_t servers) const {
  const int64_t x = Bytes(ScoreTokens(replicas) * job_.model().d_model());
  // As requests; and for every server, kept until it has answered, one of them on its way.
  constexpr int64_t kOthers = kMaxScoresUnderWay - 1;
  return servers == 0 ? 0 : kMaxScoresUnderWay * x + servers * (kOthers * x + Sent(x));
}

Footprint StepMemory::OfLstm(const v1::Lstm& lstm) const {
  const int64_t waves = job_.training().waves();
  const double rows = static_cast<double>(Rows());
  const double lanes = static_cast<double>(job_.training().lanes() / waves);
  const double hidden = lstm.hidden();
  const bool projects = lstm.projection() > 0;
  const double recurrent = projects ? lstm.projection() : hidden;
  // Gates; tanh(c), and what is projected; c and the output, each with the state before; the
  // state after. Gradients of one time step.
  return waves *
             (ArrayOf(rows * 4 * hidden) + (projects ? 2 : 1) * ArrayOf(rows * hidden) +
              ArrayOf((lanes + rows) * hidden) + ArrayOf((lanes + rows) * recurrent) +
              ArrayOf(lanes * (hidden + recurrent))) +
         (projects ? 2 : 1) * ArrayOf(lanes * hidden);
}

Footprint StepMemory::OfMixture(const Mixture& mixture, int32_t kept) const {
  const v1::Moe& moe = mixture.moe;
  const int64_t waves = job_.training().waves();
  const double rows = static_cast<double>(Rows()) / mixture.calls;
  const bool hierarchical = moe.k_primary() > 0;
  const double columns = hierarchical ? moe.groups() : moe.experts();
  const double chosen = hierarchical                         ? moe.k_primary()
                        : moe.gating() == v1::GATING_SOFTMAX ? moe.experts()
                                                             : moe.k();
  // Noisy top-k: logits, raw and noise, and two gradients; the others: logits and their gradient.
  const bool noisy = moe.gating() == v1::GATING_NOISY_TOP_K;
  return (noisy ? 3 * waves * kept + 2 : 2) * ArrayOf(rows * columns) +
         // Of each choice: expert and gate on the backend; these off it, its place in frames.
         waves * kept * HostFloats(2 * rows * chosen) +
         waves * mixture.calls * HostFloats(8 * rows * chosen) +
         // Input, off the backend.
         HostFloats(rows * static_cast<double>(mixture.in));
}

}  // namespace moe
