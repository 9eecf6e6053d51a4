#include "common/job/step_work.h"

#include <algorithm>
#include <cmath>

#include "common/job/expert_traffic.h"
#include "common/job/step_traffic.h"
#include "common/job/tensor_state.h"

namespace moe {
namespace {

constexpr double kFloat = 4;
// A block of an expert's rows, each a product of its own (common/kernels/cpu/experts.cc).
constexpr double kRowBlock = 512;

double WeightBytes(const v1::Moe& moe) {
  return moe.parameters() == v1::PARAMETERS_BFLOAT16 ? 2 : kFloat;
}

double HiddenOf(const v1::Moe& moe) {
  double sum = 0;
  for (const int32_t hidden : moe.hidden()) sum += hidden;
  return sum;
}

}  // namespace

double RecomputedShare(const v1::Job& job, std::span<const ShardSpec> shards,
                       int64_t activation_bytes) {
  if (activation_bytes == 0) return 0;
  const v1::Training& training = job.training();
  const std::map<MixtureId, int32_t> groups = GroupsOf(shards);
  double bytes = 0;
  for (const Mixture& mixture : MixturesOf(job)) {
    const auto found = groups.find(mixture.id);
    if (found == groups.end()) continue;
    const double tokens =
        static_cast<double>(training.replicas()) * training.lanes() * training.unroll();
    // They, and their gradients.
    bytes += 2 * kFloat * EvenTraffic(mixture.moe, found->second).pairs * tokens *
             HiddenOf(mixture.moe);
  }
  return bytes > 0 ? std::max(0.0, 1 - static_cast<double>(activation_bytes) / bytes) : 0;
}

// ---------------------------------------------------------------- servers

ServerWork::ServerWork(const v1::Job& job, const ModelPlan& plan, const HostSpeed& speed,
                       double recomputed)
    : job_(job),
      plan_(plan),
      speed_(speed),
      recomputed_(recomputed),
      tables_(job, true) {}

ServerWork::Rows ServerWork::RowsOf(const Mixture& mixture, double calls) const {
  const v1::Moe& moe = mixture.moe;
  const v1::Training& training = job_.training();
  const double tokens = calls * training.replicas() *
                        (training.lanes() / training.waves()) * training.unroll() /
                        mixture.calls;
  const ExpertTraffic traffic = EvenTraffic(moe, 1);
  Rows rows;
  rows.pairs = traffic.pairs * tokens;
  rows.group_rows = traffic.group_rows * tokens;
  const double experts = static_cast<double>(moe.experts()) / moe.groups();
  // Numbers of rows vary as chance has it, but for what takes all tokens or equally many of them.
  const double mean = rows.pairs / experts;
  const bool varies = moe.gating() == v1::GATING_NOISY_TOP_K && moe.k() < moe.experts();
  const double share = varies ? -std::expm1(-mean) : 1;
  rows.experts = experts * share;
  rows.each = mean / share;
  return rows;
}

Effort ServerWork::Experts(const Mixture& mixture, const Rows& rows, bool all) const {
  const std::vector<int64_t> widths = ExpertWidths(mixture);
  const double blocks = std::ceil(rows.each / kRowBlock);
  Effort effort;
  const size_t matrices = widths.size() - (all ? 1 : 2);
  for (size_t i = 0; i < matrices; ++i) {
    effort += blocks * ExpertProductEffort(
                           speed_, rows.each / blocks, static_cast<double>(widths[i + 1]),
                           static_cast<double>(widths[i]), WeightBytes(mixture.moe));
  }
  return rows.experts * effort;
}

Effort ServerWork::Forward(const Mixture& mixture, int32_t groups) const {
  const v1::Moe& moe = mixture.moe;
  const Rows rows = RowsOf(mixture, 1);
  const auto in = static_cast<double>(mixture.in);
  const auto out = static_cast<double>(mixture.out);
  Effort effort = Experts(mixture, rows, /*all=*/true);
  // Rows one below the other and in the order of experts, ReLU, sums by row, and off the backend.
  effort += ElementEffort(speed_,
                          rows.group_rows * in + rows.pairs * (in + HiddenOf(moe) + out) +
                              rows.group_rows * out,
                          kElements.touched);
  if (moe.k_primary() > 0) {
    const double experts = static_cast<double>(moe.experts()) / moe.groups();
    effort += 2 * ProductEffort(speed_, rows.group_rows, experts, in, kFloat);
    effort += ElementEffort(speed_, rows.group_rows * experts, kElements.gate_forward);
    effort += ElementEffort(speed_, rows.group_rows * in, kElements.touched);
  }
  return groups * effort;
}

Effort ServerWork::Backward(const Mixture& mixture, int32_t groups) const {
  const v1::Moe& moe = mixture.moe;
  const Rows rows = RowsOf(mixture, 1);
  const auto in = static_cast<double>(mixture.in);
  const auto out = static_cast<double>(mixture.out);
  Effort effort = Experts(mixture, rows, /*all=*/true);
  effort += recomputed_ * Experts(mixture, rows, /*all=*/false);
  effort +=
      ElementEffort(speed_,
                    rows.group_rows * out + rows.pairs * (out + HiddenOf(moe) + in) +
                        rows.group_rows * in,
                    kElements.touched);
  if (moe.k_primary() > 0) {
    const double experts = static_cast<double>(moe.experts()) / moe.groups();
    effort += 2 * ProductEffort(speed_, rows.group_rows, in, experts, kFloat);
    effort += ElementEffort(speed_, rows.group_rows * experts, kElements.gate_backward);
  }
  return groups * effort;
}

Effort ServerWork::ExpertGradients(const Mixture& mixture, const Rows& rows) const {
  const std::vector<int64_t> widths = ExpertWidths(mixture);
  Effort each;
  for (size_t i = 0; i + 1 < widths.size(); ++i) {
    each += ProductEffort(speed_, static_cast<double>(widths[i]),
                          static_cast<double>(widths[i + 1]), rows.each, 0);
  }
  return rows.experts * each;
}

Effort ServerWork::GateGradients(const Mixture& mixture, const Rows& rows) const {
  if (mixture.moe.k_primary() == 0) return {};
  const double experts =
      static_cast<double>(mixture.moe.experts()) / mixture.moe.groups();
  return 2 * ProductEffort(speed_, static_cast<double>(mixture.in), experts,
                           rows.group_rows, 0);
}

Effort ServerWork::Update(const TensorSpec& tensor, double elements) const {
  if (tensor.size() == 0) return {};
  const TensorState state = StateOf(job_.optimizer(), tensor);
  const double kept =
      static_cast<double>(state.parameter_bytes + state.optimizer_bytes());
  // All of it is read and written.
  return Piece(speed_, 0, 2 * kept * elements / static_cast<double>(tensor.size()));
}

Effort ServerWork::Join(std::span<const ShardSpec> shards, int64_t nodes) const {
  double dense = 0;
  double rows = 0;
  for (const ShardSpec& shard : shards) {
    if (shard.kind == ShardKind::kDense) {
      dense += static_cast<double>(plan_.SizeOf(shard));
    } else if (shard.kind == ShardKind::kTable) {
      rows += tables_.Rows(shard, job_.training().replicas()) *
              static_cast<double>(plan_.SizeOf(shard)) / static_cast<double>(shard.rows);
    }
  }
  // Sums of nodes, which come in off the backend and go onto it.
  return ElementEffort(speed_, static_cast<double>(nodes + 1) * (dense + rows),
                       kElements.touched);
}

Effort ServerWork::SquareSums(std::span<const ShardSpec> shards) const {
  if (job_.optimizer().clip_norm() == 0) return {};
  Effort effort;
  for (const auto& [id, groups] : GroupsOf(shards)) {
    for (const Mixture& mixture : MixturesOf(job_)) {
      if (mixture.id != id) continue;
      const double calls = static_cast<double>(job_.training().waves()) * mixture.calls;
      effort += groups * ExpertGradients(mixture, RowsOf(mixture, calls));
    }
  }
  for (const ShardSpec& shard : shards) {
    if (shard.kind != ShardKind::kDense) continue;
    effort += Piece(speed_, 0, kFloat * static_cast<double>(plan_.SizeOf(shard)));
  }
  return effort;
}

Effort ServerWork::Apply(std::span<const ShardSpec> shards) const {
  Effort effort;
  // Of experts: each group is as any other, so the first one's tensors stand for all.
  std::map<MixtureId, const ShardSpec*> first;
  for (const ShardSpec& shard : shards) {
    if (shard.kind == ShardKind::kExpert) {
      first.try_emplace({static_cast<uint32_t>(shard.layer), shard.mixture}, &shard);
      continue;
    }
    if (shard.kind == ShardKind::kReplica) continue;
    double share = 1;
    if (shard.kind == ShardKind::kTable) {
      share = tables_.Rows(shard, job_.training().replicas()) /
              static_cast<double>(shard.rows);
    }
    for (const int64_t t : shard.tensors) {
      const TensorSpec& tensor = plan_.tensors[t];
      const double elements = share * static_cast<double>(tensor.size());
      effort += Update(tensor, elements) + Piece(speed_, 0, kFloat * elements);
    }
  }
  const std::map<MixtureId, int32_t> groups = GroupsOf(shards);
  for (const Mixture& mixture : MixturesOf(job_)) {
    const auto found = first.find(mixture.id);
    if (found == first.end()) continue;
    const ShardSpec& shard = *found->second;
    const double calls = static_cast<double>(job_.training().waves()) * mixture.calls;
    const Rows rows = RowsOf(mixture, calls);
    const auto in = static_cast<double>(mixture.in);
    const auto out = static_cast<double>(mixture.out);
    Effort group = ExpertGradients(mixture, rows) + GateGradients(mixture, rows);
    // What the step's rows are gathered from.
    group += ElementEffort(speed_, rows.pairs * (in + out + 2 * HiddenOf(mixture.moe)),
                           kElements.touched);
    const Rows call = RowsOf(mixture, 1);
    group += (recomputed_ * calls) * (Experts(mixture, call, /*all=*/false) +
                                      Experts(mixture, call, /*all=*/false));
    const double experts = static_cast<double>(shard.experts);
    for (size_t i = 0; i < shard.tensors.size(); ++i) {
      const TensorSpec& tensor = plan_.tensors[shard.tensors[i]];
      const bool gate = static_cast<int32_t>(i) < shard.gate_tensors;
      const double touched = gate ? 1 : rows.experts / experts;
      group += Update(tensor, touched * static_cast<double>(tensor.size()));
    }
    effort += groups.at(mixture.id) * group;
  }
  return effort;
}

// ---------------------------------------------------------------- workers

WorkerWork::WorkerWork(const v1::Job& job, const ModelPlan& plan, const HostSpeed& speed,
                       int64_t replicas, int threads)
    : job_(job), plan_(plan), speed_(speed), replicas_(replicas) {
  const v1::Training& training = job.training();
  if (threads > 0) {
    const double rounds = std::ceil(static_cast<double>(replicas) / threads);
    uneven_ = rounds * threads / static_cast<double>(replicas);
  }
  lanes_ = static_cast<double>(training.lanes() / training.waves());
  tokens_ = lanes_ * training.unroll();
  const double d = job.model().d_model();
  Segment embedding;
  embedding.forward =
      Elements(tokens_ * d, kElements.touched) +
      Elements(tokens_ * d, job.model().embedding_dropout() > 0 ? kElements.dropout
                                                                : kElements.residual);
  embedding.backward = embedding.forward;
  segments_.push_back(embedding);
  const std::vector<Mixture> mixtures = MixturesOf(job);
  size_t mixture = 0;
  for (const v1::Layer& layer : job.model().layers()) {
    const size_t of_layer = layer.has_moe() ? 1 : layer.has_recurrent_moe() ? 2 : 0;
    AddLayer(layer, std::span(mixtures).subspan(mixture, of_layer));
    mixture += of_layer;
  }
  segments_.back().forward += OfSoftmax();
  const double all = static_cast<double>(replicas_) * uneven_;
  for (Segment& segment : segments_) {
    segment = {all * segment.forward, all * segment.backward};
  }
}

Effort WorkerWork::Finish(float dropout) const {
  const double cost = dropout > 0 ? kElements.dropout : kElements.residual;
  return Elements(tokens_ * job_.model().d_model(), cost);
}

WorkerWork::Segment WorkerWork::OfLstm(const v1::Lstm& lstm) const {
  const double d = job_.model().d_model();
  const double hidden = lstm.hidden();
  const double recurrent = lstm.projection() > 0 ? lstm.projection() : hidden;
  const double steps = job_.training().unroll();
  Segment segment;
  segment.forward = Product(tokens_, 4 * hidden, d) +
                    steps * Product(lanes_, 4 * hidden, recurrent) +
                    Elements(tokens_ * hidden, kElements.cell_forward);
  segment.backward =
      steps * Product(lanes_, recurrent, 4 * hidden) + Product(d, 4 * hidden, tokens_) +
      Product(recurrent, 4 * hidden, tokens_) + Product(tokens_, d, 4 * hidden) +
      Elements(tokens_ * hidden, kElements.cell_backward);
  if (lstm.projection() > 0) {
    segment.forward += steps * Product(lanes_, recurrent, hidden);
    segment.backward +=
        steps * Product(lanes_, hidden, recurrent) + Product(hidden, recurrent, tokens_);
  }
  return segment;
}

WorkerWork::Segment WorkerWork::OfGate(const Mixture& mixture) const {
  const v1::Moe& moe = mixture.moe;
  const double rows = tokens_ / mixture.calls;
  const auto in = static_cast<double>(mixture.in);
  const double columns = moe.k_primary() > 0 ? moe.groups() : moe.experts();
  const bool noisy = moe.gating() == v1::GATING_NOISY_TOP_K;
  const double matrices = noisy ? 2 : 1;
  Segment segment;
  segment.forward = matrices * Product(rows, columns, in) +
                    Elements(rows * columns, noisy ? kElements.gate_forward
                                                   : kElements.plain_gate_forward) +
                    Elements(rows * in, kElements.touched);
  segment.backward =
      matrices * (Product(in, columns, rows) + Product(rows, in, columns)) +
      Elements(rows * columns,
               noisy ? kElements.gate_backward : kElements.plain_gate_backward) +
      Elements(2 * rows * in, kElements.touched);
  return segment;
}

Effort WorkerWork::OfSoftmax() const {
  const double d = job_.model().d_model();
  const double words = job_.model().has_tables() ? job_.model().tables().candidates() + 1
                                                 : job_.model().vocabulary();
  return Product(tokens_, words, d, kFloat) + Product(words, d, tokens_) +
         Product(tokens_, d, words, kFloat) +
         Elements(tokens_ * words, kElements.softmax);
}

void WorkerWork::AddLayer(const v1::Layer& layer, std::span<const Mixture> mixtures) {
  const double d = job_.model().d_model();
  const Effort finish = Finish(layer.dropout());
  if (layer.has_lstm()) {
    const Segment lstm = OfLstm(layer.lstm());
    segments_.back().forward += lstm.forward + finish;
    segments_.back().backward += lstm.backward + finish;
    return;
  }
  // Onto the backend, or off it.
  const auto moved = [&](double floats) { return Elements(floats, kElements.touched); };
  if (layer.has_moe()) {
    const Segment gate = OfGate(mixtures[0]);
    segments_.back().forward += gate.forward;
    segments_.back().backward += gate.backward;
    const double sigmoid = layer.moe().sigmoid_output() ? kElements.sigmoid : 0;
    const Effort output = finish + moved(tokens_ * d) + Elements(tokens_ * d, sigmoid);
    segments_.push_back({output, output});
    return;
  }
  const double hidden = layer.recurrent_moe().hidden();
  const Segment input = OfGate(mixtures[0]);
  segments_.back().forward += input.forward;
  segments_.back().backward += input.backward;
  // What the input's experts gave; its gradient.
  segments_.push_back({moved(2 * tokens_ * 4 * hidden), moved(2 * tokens_ * 4 * hidden)});
  const Segment gate = OfGate(mixtures[1]);
  const double units = lanes_ * hidden;
  for (int32_t t = 0; t < mixtures[1].calls; ++t) {
    segments_.back().forward += gate.forward;
    segments_.back().backward += gate.backward;
    segments_.push_back({moved(2 * 4 * units) + Elements(units, kElements.cell_forward),
                         moved(4 * units) + Elements(units, kElements.cell_backward)});
  }
  segments_.back().forward += finish;
  segments_.back().backward += finish;
}

Effort WorkerWork::Repeat(const Mixture& mixture) const {
  const double units = lanes_ * static_cast<double>(mixture.in);
  return (static_cast<double>(replicas_) * uneven_) *
         (Elements(3 * 4 * units, kElements.touched) +
          Elements(units, kElements.cell_forward));
}

double WorkerWork::DenseFloats() const {
  double floats = 0;
  for (const ShardSpec& shard : plan_.shards) {
    if (shard.kind == ShardKind::kDense)
      floats += static_cast<double>(plan_.SizeOf(shard));
  }
  return floats;
}

double WorkerWork::TableFloats() const {
  if (!job_.model().has_tables()) return 0;
  const TableTraffic tables(job_, true);
  return static_cast<double>(tables.Bytes(plan_.shards, 1)) / kFloat;
}

Effort WorkerWork::Begin() const {
  // Put together and onto the backend; gradients become zero.
  const auto replicas = static_cast<double>(replicas_);
  return Elements((2 + replicas) * DenseFloats() + 3 * replicas * TableFloats(),
                  kElements.touched);
}

Effort WorkerWork::Close(int64_t nodes) const {
  // Off the backend, summed up, and into messages.
  const auto replicas = static_cast<double>(replicas_);
  const double sums = 2 * replicas + static_cast<double>(nodes);
  return Elements(sums * (DenseFloats() + TableFloats()), kElements.touched);
}

}  // namespace moe
